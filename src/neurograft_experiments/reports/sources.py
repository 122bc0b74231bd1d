"""Where a report's rows come from: the folder of a run, finished or not, or rows that were kept in a repository."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from neurograft.errors import InputError
from neurograft_experiments.reports.results import Results, collect
from neurograft_experiments.store import DATABASE, Store
from neurograft_experiments.study_file import Study
from neurograft_experiments.trials import trials_of


class RowFiles:
    """The result rows and failures in the databases and `.jsonl` files of a folder and the folders in it.

    Of equal keys the first row counts; lines that are torn are passed over.

    Args:
        folder: of a run, or of a repository's results.

    Raises:
        InputError: if there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(
                f"{folder}: no such folder; give the folder that `neurograft experiment run` was given as --output"
            )
        self.folder = folder
        self.rows: dict[str, Mapping[str, Any]] = {}
        self.failures: dict[str, str] = {}
        for path in sorted(folder.rglob(DATABASE)):
            store = Store(path.parent)
            self._add(store.rows(), store.failures())
        for path in sorted(folder.rglob("*.jsonl")):
            self._add(_lines(path), ())

    def _add(self, rows: Iterable[dict[str, Any]], failures: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            self.rows.setdefault(row["key"], row)
        for failure in failures:
            self.failures[failure["key"]] = f"{failure['label']}: {failure['error']}"

    def results(self, study: Study, preset: str, seeds: Sequence[int] | None = None) -> Results:
        """What a preset of a study has of rows here, and what is missing.

        Raises:
            StudyError: if the study has no such preset.
        """
        trials = trials_of(study, preset, seeds)
        return collect((task.labels | {"key": task.key} for task in trials), self.rows, self.failures)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("key"), str) and "row" in row:
                yield row
