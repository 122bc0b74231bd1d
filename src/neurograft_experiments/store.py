"""What experiments keep: rows, members, failures, in one folder that any number of processes share and survive."""

import os
import secrets
import shutil
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from neurograft.checkpoints.atomic import whole
from neurograft.checkpoints.writing import size_text
from neurograft.errors import CheckpointError, StoreError
from neurograft_experiments.journal import Journal, counted, reason

ROW_BYTES = 20_000
"""Space to plan for one row: its curve, configuration and versions."""
SIGN = ".sign"
SPARE_BYTES = 100_000_000
"""Space that must be left when everything is written."""


class Store:
    """The folder of one output.

    Layout: `results.jsonl` has one row per finished trial, `members.jsonl` one record per trained member, whose tensors
    are in `members/KEY.safetensors`; `failures.jsonl` says what went wrong and when; `claims/` has a lock per task that
    is running, `unfinished/` the training states of members that are not done.

    A `Store` only reads until something is added; call `prepare` first to find out in time whether that will work.

    Attributes:
        folder: where all of it lies.
        unfinished: where the states of trainings that are not done lie, if not in that folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = Store(Path(folder) / "runs")
        ...     torn = store.prepare()
        ...     store.add({"key": "a", "row": "average"}), store.has("a"), store.has("b"), len(store.rows())
        (True, True, False, 1)
    """

    def __init__(self, folder: Path, unfinished: Path | None = None):
        self.folder = folder
        self.unfinished = folder / "unfinished" if unfinished is None else unfinished
        self._results = Journal(folder / "results.jsonl")
        self._members = Journal(folder / "members.jsonl")
        self._failures = Journal(folder / "failures.jsonl")

    def prepare(self) -> int:
        """Make the folder and try that it can be written to; gives the number of torn lines that were moved aside.

        Raises:
            StoreError: the folder cannot be made or written to, or the disk is full.
        """
        probe = self.folder / f".probe.{secrets.token_hex(4)}"
        try:
            for name in ("members", "claims", "unfinished"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            try:
                with probe.open("wb") as file:
                    file.write(bytes(ROW_BYTES))
                    file.flush()
                    os.fsync(file.fileno())
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self.folder} cannot be written to: {reason(error)}; nothing was run. Choose another folder with "
                "--output"
            ) from error
        return sum(journal.mend() for journal in (self._results, self._members, self._failures))

    def check_room(self, needed: int) -> None:
        """Refuse to start what will not fit on the disk.

        Args:
            needed: bytes that are going to be written.

        Raises:
            StoreError: less than that is free, or too little would be left over.
        """
        free = shutil.disk_usage(self.folder).free
        if free < needed + SPARE_BYTES:
            raise StoreError(
                f"{self.folder}: {size_text(needed)} are going to be written and {size_text(SPARE_BYTES)} must be left "
                f"over, but only {size_text(free)} are free; nothing was run. Free some space, or choose another disk "
                "with --output"
            )

    def sign(self) -> str:
        """What another host finds in this folder if it sees the same disk, see `same_folder`."""
        path = self.folder / SIGN
        with self._keeping("a sign of this folder"):
            if not path.is_file():
                with whole(path) as part:
                    part.write_text(secrets.token_hex(16), encoding="ascii")
            return path.read_text(encoding="ascii")

    def has(self, key: str) -> bool:
        """Whether a trial's row is there, or a member with its tensors."""
        if key in self._results.first():
            return True
        return key in self._members.last() and self.member_path(key).is_file()

    def row(self, key: str) -> dict[str, Any]:
        """The row of a finished trial, or the record of a member.

        Raises:
            StoreError: there is none.
        """
        found = self._results.first().get(key) or self._members.last().get(key)
        if found is None:
            raise StoreError(f"{self.folder} has no result for {key}")
        return found

    def rows(self) -> tuple[dict[str, Any], ...]:
        """The rows of all finished trials, each trial once, in the order they were finished."""
        return tuple(self._results.first().values())

    def members(self) -> tuple[dict[str, Any], ...]:
        """The records of the members that are there."""
        return tuple(record for key, record in self._members.last().items() if self.has(key))

    def failures(self) -> tuple[dict[str, Any], ...]:
        """What failed last and has not succeeded since."""
        return tuple(failure for key, failure in self._failures.last().items() if not self.has(key))

    def member_path(self, key: str) -> Path:
        """Where the tensors of a member lie, or are to be written (whole or not at all)."""
        return self.folder / "members" / f"{key}.safetensors"

    def unfinished_path(self, key: str) -> Path:
        """Where the state of a training that is not done may be kept, or beside it under names that begin alike.

        It is removed when its task is finished.
        """
        return self.unfinished / f"{key}.pt"

    def add(self, row: Mapping[str, Any]) -> bool:
        """Keep the row of a trial; False if there is one already.

        Raises:
            StoreError: it cannot be written. The message says what is safe.
        """
        with self._keeping(f"the row of {row['key']}"):
            added = self._results.append(row)
        self._forget(row["key"])
        return added

    def add_member(self, key: str, record: Mapping[str, Any], tensors: bytes | memoryview | None = None) -> None:
        """Keep the record of a member whose tensors are at `member_path`, or are given as a file's bytes.

        Raises:
            StoreError: it cannot be written, or the tensors are not there.
        """
        path = self.member_path(key)
        with self._keeping(f"member {key}"):
            if tensors is not None:
                with whole(path) as part:
                    part.write_bytes(tensors)
            elif not path.is_file():
                raise StoreError(f"member {key} was trained but {path} was not written")
            self._members.append({**record, "key": key}, once=False)
        self._forget(key)

    def fail(self, key: str, label: str, error: BaseException | str, trace: str | None = None) -> None:
        """Write down that a task failed: it is no row, and is tried again next time.

        Raises:
            StoreError: it cannot be written.
        """
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        if trace is None and isinstance(error, BaseException):
            trace = "".join(traceback.format_exception(error))
        when = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"key": key, "label": label, "error": text, "time": when, "trace": trace}
        with self._keeping(f"the failure of {label}"):
            self._failures.append(entry, once=False)

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Hold a task for this process; gives False if another process holds it.

        The lock is the operating system's: it is free again when its owner is gone, whatever ended it.
        """
        path = self.folder / "claims" / key
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise StoreError(f"{path} cannot be locked: {reason(error)}. {self.safe()}") from error
        try:
            yield True
        finally:
            with suppress(OSError):  # while it is held: who waits for this very file sees that it is gone
                path.unlink(missing_ok=True)
            lock.release()

    def safe(self) -> str:
        """What is on the disk, for messages."""
        rows, members = counted(len(self._results.first()), "result"), counted(len(self._members.last()), "member")
        return f"Safe in {self.folder}: {rows} and {members}. The same command goes on from there"

    @contextmanager
    def _keeping(self, what: str) -> Iterator[None]:
        try:
            yield
        except (StoreError, CheckpointError, OSError) as error:
            raise StoreError(f"{what} could not be kept: {reason(error)}. {self.safe()}") from error

    def _forget(self, key: str) -> None:
        with suppress(OSError):
            for path in self.unfinished.glob(f"{key}*"):
                path.unlink()


def same_folder(folder: Path, sign: str) -> bool:
    """Whether this host sees the folder that another host means by the same path.

    Example:
        >>> same_folder(Path("no/such/folder"), "0123")
        False
    """
    try:
        return (folder / SIGN).read_text(encoding="ascii") == sign
    except (OSError, UnicodeDecodeError):
        return False
