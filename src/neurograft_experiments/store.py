"""What experiments keep: rows, records of members and failures in one SQLite database, members' tensors beside it."""

import errno
import json
import math
import os
import shutil
import sqlite3
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from neurograft.checkpoints.atomic import whole
from neurograft.checkpoints.writing import size_text
from neurograft.errors import CheckpointError, StoreError
from neurograft.escaping import named

DATABASE = "results.sqlite"
ROW_BYTES = 20_000
"""Space to plan for one row: its curve, configuration and versions."""
SPARE_BYTES = 100_000_000
"""Space that must be left when everything is written."""
TABLES = """
CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, entry TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS members (key TEXT PRIMARY KEY, entry TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS failures (key TEXT PRIMARY KEY, entry TEXT NOT NULL);
"""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class Store:
    """The folder of one output.

    `results.sqlite` has the tables `results` (one row per finished trial), `members` (one record per trained member)
    and `failures`, each with a key and a JSON object; `members/KEY.safetensors` are the members' tensors, `unfinished/`
    the training states of what is not done. Every change is a transaction, flushed to the disk before it returns.

    A `Store` only reads until `prepare` is called.

    Attributes:
        folder: where all of it lies.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = Store(Path(folder) / "runs")
        ...     store.prepare()
        ...     store.add({"key": "a", "row": "average"}), store.has("a"), store.has("b"), len(store.rows())
        (True, True, False, 1)
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._connection: sqlite3.Connection | None = None

    def prepare(self) -> None:
        """Make the folder and try that it can be written to.

        Raises:
            StoreError: the folder cannot be made or written to, or the disk is full.
        """
        try:
            for name in ("members", "unfinished"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            self.close()
            self._connection = sqlite3.connect(self.folder / DATABASE, timeout=60)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            with self._connection:
                self._connection.executescript(TABLES)
                self._connection.execute("INSERT INTO failures VALUES ('probe', zeroblob(?))", (ROW_BYTES,))
                self._connection.execute("DELETE FROM failures WHERE key = 'probe'")
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"{self.folder} cannot be written to: {reason(error)}; nothing was run. Choose another folder with "
                "--output"
            ) from error

    def close(self) -> None:
        """Close the database; the next query opens it again, for reading."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    @contextmanager
    def working(self) -> Iterator[None]:
        """Be the only run that works on this folder; the lock is free again when its process is gone, however it ends.

        Raises:
            StoreError: another run holds it.
        """
        lock = sqlite3.connect(self.folder / "running.sqlite", timeout=0, isolation_level=None)
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            lock.close()
            raise StoreError(
                f"another run is at work on {self.folder}; wait until it is done, choose another folder with --output, "
                "or let one run do several trials at a time with --engine ray"
            ) from error
        try:
            yield
        finally:
            lock.close()

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

    def has(self, key: str) -> bool:
        """Whether a trial's row is there, or a member with its tensors."""
        if self._found("results", key) is not None:
            return True
        return self._found("members", key) is not None and self.member_path(key).is_file()

    def row(self, key: str) -> dict[str, Any]:
        """The row of a finished trial, or the record of a member.

        Raises:
            StoreError: there is none.
        """
        found = self._found("results", key) or self._found("members", key)
        if found is None:
            raise StoreError(f"{self.folder} has no result for {key}")
        return self._entry(found)

    def rows(self) -> tuple[dict[str, Any], ...]:
        """The rows of all finished trials, in the order they were finished."""
        return self._all("results")

    def members(self) -> tuple[dict[str, Any], ...]:
        """The records of the members that are there."""
        return tuple(record for record in self._all("members") if self.has(record["key"]))

    def failures(self) -> tuple[dict[str, Any], ...]:
        """What failed last and has not succeeded since."""
        return tuple(failure for failure in self._all("failures") if not self.has(failure["key"]))

    def texts(self, table: str) -> list[bytes]:
        """The JSON texts of a table, damaged or not, in the order they were written.

        Raises:
            StoreError: the database cannot be read.
        """
        return self._select(f"SELECT CAST(entry AS BLOB) FROM {table} ORDER BY rowid")

    def member_path(self, key: str) -> Path:
        """Where the tensors of a member lie."""
        return self.folder / "members" / f"{key}.safetensors"

    def tensors(self, key: str) -> bytes:
        """The file of a member's tensors.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            return self.member_path(key).read_bytes()
        except OSError as error:
            raise StoreError(f"member {key} cannot be read: {reason(error)}") from error

    @property
    def unfinished(self) -> Path | None:
        """Where the states of trainings that are not done are kept, under names that begin with their keys."""
        return self.folder / "unfinished"

    def add(self, row: Mapping[str, Any]) -> bool:
        """Keep the row of a trial; False if there is one already.

        Raises:
            StoreError: it cannot be written. The message names what is safe.
        """
        with self._keeping(f"the row of {row['key']}"):
            added = self._put("INSERT OR IGNORE INTO results VALUES (?, ?)", row)
        self._forget(row["key"])
        return added

    def add_member(self, key: str, record: Mapping[str, Any], tensors: bytes) -> None:
        """Keep the record of a member and its tensors, the bytes of a safetensors file.

        Raises:
            StoreError: it cannot be written.
        """
        with self._keeping(f"member {key}"):
            with whole(self.member_path(key)) as part:
                part.write_bytes(tensors)
            self._put("INSERT OR REPLACE INTO members VALUES (?, ?)", {**record, "key": key})
        self._forget(key)

    def fail(self, key: str, label: str, error: BaseException) -> None:
        """Write down that a task failed: it is no row, and is tried again next time.

        Raises:
            StoreError: it cannot be written.
        """
        when = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"key": key, "label": label, "error": f"{type(error).__name__}: {error}", "time": when}
        entry["trace"] = "".join(traceback.format_exception(error))
        with self._keeping(f"the failure of {label}"):
            self._put("INSERT OR REPLACE INTO failures VALUES (?, ?)", entry)

    def safe(self) -> str:
        """What is on the disk, for messages."""
        rows, members = counted(len(self._all("results")), "result"), counted(len(self._all("members")), "member")
        return f"Safe in {self.folder}: {rows} and {members}. The same command goes on from there"

    def _put(self, statement: str, entry: Mapping[str, Any]) -> bool:
        assert self._connection is not None, "prepare comes first"
        text = json.dumps(_plain(entry), allow_nan=False)
        with self._connection as connection:
            return connection.execute(statement, (entry["key"], text)).rowcount > 0

    def _found(self, table: str, key: str) -> bytes | None:
        found = self._select(f"SELECT CAST(entry AS BLOB) FROM {table} WHERE key = ?", key)
        return found[0] if found else None

    def _all(self, table: str) -> tuple[dict[str, Any], ...]:
        return tuple(map(self._entry, self.texts(table)))

    def _entry(self, text: bytes) -> dict[str, Any]:
        with suppress(ValueError, RecursionError):
            entry = json.loads(text)
            if isinstance(entry, dict) and "key" in entry:
                return entry
        raise StoreError(f"{self.folder / DATABASE} holds a damaged entry: {named(repr(text))}")

    def _select(self, statement: str, *values: str) -> list[bytes]:
        if self._connection is None:
            if not (self.folder / DATABASE).is_file():
                return []
            self._connection = opened(self.folder / DATABASE)
        try:
            return [entry or b"" for (entry,) in self._connection.execute(statement, values)]
        except sqlite3.Error as error:
            if "no such table" in str(error):  # another process is about to make them
                return []
            raise StoreError(f"{self.folder / DATABASE} cannot be read: {error}") from error

    @contextmanager
    def _keeping(self, what: str) -> Iterator[None]:
        try:
            yield
        except (CheckpointError, OSError, sqlite3.Error) as error:
            raise StoreError(f"{what} could not be kept: {reason(error)}. {self.safe()}") from error

    def _forget(self, key: str) -> None:
        with suppress(OSError):
            for path in (self.folder / "unfinished").glob(f"{key}*"):
                path.unlink()


def opened(database: Path) -> sqlite3.Connection:
    """A connection that only reads, on a disk that may be read-only."""
    mode = "mode=ro" if os.access(database.parent, os.W_OK) else "immutable=1"
    return sqlite3.connect(f"{database.resolve().as_uri()}?{mode}", timeout=60, uri=True)


def reason(error: BaseException) -> str:
    """What went wrong with the disk, in words a person can act on.

    Example:
        >>> reason(OSError(errno.ENOSPC, "No space left on device"))
        'the disk is full (No space left on device)'
    """
    cause = error if isinstance(error, OSError) else error.__cause__
    if not isinstance(cause, OSError):
        return "the disk is full" if "disk is full" in str(error) else str(error)
    text = cause.strerror or str(cause)
    known = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "it is read-only",
        errno.EACCES: "it may not be written to by you",
    }.get(cause.errno or 0)
    return f"{known} ({text})" if known else text


def is_disk_error(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, means that the disk takes no more: every other task would meet it.

    Example:
        >>> is_disk_error(OSError(errno.ENOSPC, "No space left on device")), is_disk_error(ValueError("no"))
        (True, False)
    """
    while error is not None:
        if isinstance(error, StoreError) or (isinstance(error, OSError) and error.errno in FULL):
            return True
        error = error.__cause__
    return False


def counted(number: int, name: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "trial"), counted(2, "trial")
        ('1 trial', '2 trials')
    """
    return f"{number} {name}" + ("" if number == 1 else "s")


def _plain(value: Any) -> Any:
    """The value with null for numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
