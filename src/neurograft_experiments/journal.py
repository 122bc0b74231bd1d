"""Rows that survive: one JSON object a line, appended by any number of processes, whatever kills them."""

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from neurograft.checkpoints.atomic import flush, whole
from neurograft.errors import CheckpointError, StoreError

PATIENCE = 300.0
"""Seconds to wait for another process that is appending; an append takes milliseconds."""


@dataclass(slots=True)
class _Content:
    """What a file said when it was last looked at."""

    seen: tuple[int, ...] | None = None
    first: dict[str, dict[str, Any]] = field(default_factory=dict)
    last: dict[str, dict[str, Any]] = field(default_factory=dict)
    torn: list[bytes] = field(default_factory=list)
    unfinished: bool = False


class Journal:
    """A file of JSON objects, one a line, each with a `key`.

    Appending is one write under a lock between processes, flushed to the disk before it returns. A process that is
    killed in the middle of it leaves a torn line: readers pass over it, and the next writer moves it to `NAME.torn`.
    Numbers that JSON does not have (NaN, infinity) are kept as null.

    Attributes:
        path: the file; it appears with its first entry.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     journal = Journal(Path(folder) / "results.jsonl")
        ...     journal.append({"key": "a", "accuracy": 0.5}), journal.append({"key": "a", "accuracy": 0.6})
        ...     with journal.path.open("a") as file:
        ...         written = file.write('{"key": "b", "accur')
        ...     journal.first(), journal.mend()
        (True, False)
        ({'a': {'key': 'a', 'accuracy': 0.5}}, 1)
    """

    def __init__(self, path: Path):
        self.path = path
        self._content = _Content()

    def first(self) -> dict[str, dict[str, Any]]:
        """The first entry of every key, in the order of the file."""
        return self._read().first

    def last(self) -> dict[str, dict[str, Any]]:
        """The last entry of every key."""
        return self._read().last

    def append(self, entry: Mapping[str, Any], *, once: bool = True) -> bool:
        """Add an entry and wait until it is on the disk; False if `once` and its key is there already.

        Raises:
            StoreError: nothing can be written; the file is as it was before.
        """
        line = json.dumps(_plain(entry), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with self._writing():
            content = self._mended()
            if once and entry["key"] in content.first:
                return False
            seen = _append(self.path, line)
            kept = json.loads(line)
            content.first.setdefault(kept["key"], kept)
            content.last[kept["key"]] = kept
            content.seen = seen
        return True

    def mend(self) -> int:
        """Move torn lines, left by processes that died while writing, to `NAME.torn`; gives how many there were.

        Raises:
            StoreError: nothing can be written.
        """
        if not self.path.exists():
            return 0
        with self._writing():
            found = len(self._read().torn)
            self._mended()
        return found

    @contextmanager
    def _writing(self) -> Iterator[None]:
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            raise StoreError(
                f"{self.path}: another process has kept it locked for {PATIENCE:.0f} s; end that process, then give "
                "the same command again"
            ) from None
        except OSError as error:
            raise StoreError(f"{self.path} cannot be locked: {reason(error)}") from error
        try:
            yield
        except (OSError, CheckpointError) as error:
            raise StoreError(f"{self.path} cannot be written to: {reason(error)}") from error
        finally:
            lock.release()

    def _mended(self) -> _Content:
        """The content, after torn lines were moved aside; only under the lock, where no living process writes."""
        content = self._read()
        if content.torn or content.unfinished:
            if content.torn:
                _append(self.path.with_suffix(".torn"), b"".join(line + b"\n" for line in content.torn))
            sound = [line for line in self.path.read_bytes().split(b"\n") if _entry(line) is not None]
            with whole(self.path) as part:
                part.write_bytes(b"".join(line + b"\n" for line in sound))
            content = self._read()
        return content

    def _read(self) -> _Content:
        try:
            status = self.path.stat()
            seen = _signature(status)
            if seen != self._content.seen:
                self._content = _parse(self.path.read_bytes(), seen)
        except FileNotFoundError:
            self._content = _Content()
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {reason(error)}") from error
        return self._content


def reason(error: BaseException) -> str:
    """What went wrong with the disk, in words a person can act on.

    Example:
        >>> reason(OSError(errno.ENOSPC, "No space left on device"))
        'the disk is full (No space left on device)'
    """
    cause = error if isinstance(error, OSError) else error.__cause__
    if not isinstance(cause, OSError):
        return str(error)
    text = cause.strerror or str(cause)
    known = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "it is read-only",
        errno.EACCES: "it may not be written to by you",
    }.get(cause.errno or 0)
    return f"{known} ({text})" if known else text


def counted(number: int, name: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "trial"), counted(2, "trial")
        ('1 trial', '2 trials')
    """
    return f"{number} {name}" + ("" if number == 1 else "s")


def of_the_disk(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that the disk takes no more: every other task would meet it.

    Example:
        >>> of_the_disk(OSError(errno.ENOSPC, "No space left on device")), of_the_disk(ValueError("no"))
        (True, False)
    """
    while error is not None:
        if isinstance(error, StoreError):
            return True
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            return True
        error = error.__cause__
    return False


def _append(path: Path, data: bytes) -> tuple[int, ...]:
    """Append in one write, flushed; what a full disk took of it is cut off again."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    try:
        before = os.fstat(handle).st_size
        try:
            written = os.write(handle, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        except OSError:
            with suppress(OSError):
                os.ftruncate(handle, before)
            raise
        seen = _signature(os.fstat(handle))
    finally:
        os.close(handle)
    if not before:
        flush(path.parent)
    return seen


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _parse(data: bytes, seen: tuple[int, ...]) -> _Content:
    content = _Content(seen, unfinished=bool(data) and not data.endswith(b"\n"))
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        entry = _entry(line)
        if entry is None:
            content.torn.append(line)
            continue
        content.first.setdefault(entry["key"], entry)
        content.last[entry["key"]] = entry
    return content


def _entry(line: bytes) -> dict[str, Any] | None:
    """The object of a line, None if the line is torn: no part of a JSON object is one."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("key"), str) else None


def _plain(value: Any) -> Any:
    """The value with null for numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
