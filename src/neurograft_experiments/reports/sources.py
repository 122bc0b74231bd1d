"""Where a report's rows come from: the folder of a run, finished or not, or rows that were kept in a repository."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from neurograft.errors import InputError
from neurograft_experiments.reports.results import Results, collect
from neurograft_experiments.study_file import Study
from neurograft_experiments.trials import trials_of


class RowFiles:
    """The result rows and failures in the `.jsonl` files of a folder and the folders in it.

    Of equal keys the first row counts. Lines that are torn (a run may be writing them at this moment) are passed over:
    their trials are not done.

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
        for path in sorted(folder.rglob("*.jsonl")):
            for entry in _entries(path):
                if "row" in entry:
                    self.rows.setdefault(entry["key"], entry)
                elif "error" in entry:
                    self.failures[entry["key"]] = f"{entry.get('label', entry['key'])}: {entry['error']}"

    def results(self, study: Study, preset: str, seeds: Sequence[int] | None = None) -> Results:
        """What a preset of a study has of rows here, and what is missing.

        Raises:
            StudyError: if the study has no such preset.
        """
        trials = trials_of(study, preset, seeds)
        return collect((task.labels | {"key": task.key} for task in trials), self.rows, self.failures)


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and isinstance(entry.get("key"), str):
                yield entry
