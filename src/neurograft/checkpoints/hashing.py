"""SHA-256 of files, while other work goes on; and whether a file is still the one that was opened."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from neurograft.errors import CheckpointError

PIECE = 1 << 22  # bytes read at a time


def sha256(path: Path) -> str:
    """The SHA-256 hash of a file, in hexadecimal.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when a file is written to or replaced: its number, its size in bytes, and times in ns.

    A program may set the time of the last change back; that this happened shows in the time of the last status.
    """

    inode: int
    size: int
    changed: int
    status: int

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """The stamp of a file as it is now.

        Raises:
            CheckpointError: the file is gone.
        """
        try:
            found = path.stat()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        return cls._from(found)

    @classmethod
    def of_open(cls, handle: int) -> "Stamp":
        """The stamp of an open file."""
        return cls._from(os.fstat(handle))

    @classmethod
    def _from(cls, found: os.stat_result) -> "Stamp":
        return cls(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def check_unchanged(stamps: Mapping[Path, Stamp]) -> None:
    """Refuse files that are no longer what they were when they were opened.

    Raises:
        CheckpointError: names the file and what changed.
    """
    for path, before in stamps.items():
        check_stamp(path, before, Stamp.of(path))


def check_stamp(path: Path, before: Stamp, now: Stamp) -> None:
    """Refuse a file that is no longer what it was.

    Raises:
        CheckpointError: names the file and what changed.
    """
    if now != before:
        sizes = f"from {before.size} to {now.size} bytes" if now.size != before.size else "on the disk"
        raise CheckpointError(f"{path} changed {sizes} while it was read; nothing was written, try again")


class Hashing:
    """Hash the members' files in the background; `with` stops the work early if something fails.

    The members are hashed side by side, a piece of each at a time: that is how fusing reads them, so each byte is
    fetched from the disk once.

    Example:
        >>> with Hashing([[Path(torch.__file__)]]) as hashing:
        ...     found = hashing.results()
        >>> found == {Path(torch.__file__): sha256(Path(torch.__file__))}
        True
    """

    def __init__(self, members: Iterable[Iterable[Path]]):
        self._stopped = False
        self._pool = ThreadPoolExecutor(1, "hashing")
        self._found: Future[dict[Path, str]] = self._pool.submit(self._hash, [list(files) for files in members])

    def results(self) -> dict[Path, str]:
        """Wait for the hashes, in hexadecimal.

        Raises:
            CheckpointError: a file cannot be read.
        """
        return self._found.result()

    def _hash(self, members: list[list[Path]]) -> dict[Path, str]:
        found: dict[Path, str] = {}
        buffer = memoryview(bytearray(PIECE))  # one for all members: memory must not grow with their number
        running = [self._pieces(files, found, buffer) for files in members]
        while running:
            running = [pieces for pieces in running if next(pieces, False)]
        return found

    def _pieces(self, files: list[Path], found: dict[Path, str], buffer: memoryview) -> Iterator[bool]:
        for path in files:
            digest = hashlib.sha256()
            try:
                with path.open("rb", buffering=0) as file:
                    while count := file.readinto(buffer):
                        digest.update(buffer[:count])
                        if self._stopped:
                            return
                        yield True
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
            found[path] = digest.hexdigest()

    def __enter__(self) -> "Hashing":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self._pool.shutdown(wait=True, cancel_futures=True)
