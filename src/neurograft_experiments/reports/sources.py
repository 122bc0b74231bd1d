"""Where a report's rows come from: the folder of a run, finished or not, or rows that were kept in a repository."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from neurograft.errors import InputError, StoreError
from neurograft_experiments.reports.results import StudyResults, collect
from neurograft_experiments.reports.stored_row import StoredFailure, StoredRow, entry_of
from neurograft_experiments.store import DATABASE, Store
from neurograft_experiments.study_file import Study
from neurograft_experiments.trials import trials_of

MOST_NAMED = 3
"""Damaged lines of one file that are named."""


class RowFiles:
    """The result rows and failures in the databases and `.jsonl` files of a folder and the folders in it.

    Of equal keys the first row counts. What is damaged is left out.

    Args:
        folder: of a run, or of a repository's results.

    Attributes:
        left_out: for each damaged file, which lines or entries were left out and why.

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
        self.left_out: list[str] = []
        for path in sorted(folder.rglob(DATABASE)):
            self._add_database(path)
        for path in sorted(folder.rglob("*.jsonl")):
            try:
                lines = path.read_bytes().split(b"\n") if path.is_file() else []
            except OSError as error:
                self.left_out.append(f"{path} cannot be read: {error.strerror}")
                continue
            self._add_rows(self._entries(lines, StoredRow, f"{path}, line"))

    def _add_database(self, path: Path) -> None:
        store = Store(path.parent)
        try:
            rows, failures = store.texts("results"), store.texts("failures")
        except StoreError as error:
            self.left_out.append(str(error))
            return
        finally:
            store.close()
        self._add_rows(self._entries(rows, StoredRow, f"{path}, result"))
        for failure in self._entries(failures, StoredFailure, f"{path}, failure"):
            self.failures[failure["key"]] = f"{failure['label']}: {failure['error']}"

    def _add_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            self.rows.setdefault(row["key"], row)

    def _entries(self, texts: Iterable[bytes], model: type[BaseModel], where: str) -> list[Mapping[str, Any]]:
        found, damaged = [], []
        for number, text in enumerate(texts, 1):
            if text.strip():
                try:
                    found.append(entry_of(text, model))
                except ValueError as error:
                    damaged.append(f"{number} ({error})")
        if damaged:
            more = f" and {len(damaged) - MOST_NAMED} more" if len(damaged) > MOST_NAMED else ""
            self.left_out.append(f"{where} {', '.join(damaged[:MOST_NAMED])}{more}: left out")
        return found

    def results(self, study: Study, preset: str, seeds: Sequence[int] | None = None) -> StudyResults:
        """What a preset of a study has of rows here, and what is missing.

        Raises:
            StudyError: if the study has no such preset.
        """
        trials = trials_of(study, preset, seeds)
        return collect((task.labels | {"key": task.key} for task in trials), self.rows, self.failures)
