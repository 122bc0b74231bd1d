"""SHA-256 of files, while other work goes on; and whether a file is still the one that was opened."""

import hashlib
import os
from collections.abc import Iterable, Mapping
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
    """What changes when a file is written to or replaced: its number, size in bytes and time of change in ns."""

    inode: int
    size: int
    changed: int

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
        return cls(found.st_ino, found.st_size, found.st_mtime_ns)


def check_unchanged(stamps: Mapping[Path, Stamp]) -> None:
    """Refuse files that are no longer what they were when they were opened.

    Raises:
        CheckpointError: names the file and what changed.
    """
    for path, before in stamps.items():
        now = Stamp.of(path)
        if now != before:
            sizes = f"from {before.size} to {now.size} bytes" if now.size != before.size else "on the disk"
            raise CheckpointError(f"{path} changed {sizes} while it was read; nothing was written, try again")


class Hashing:
    """Hash files in the background, one after the other; `with` stops the work early if something fails.

    Example:
        >>> with Hashing([Path(torch.__file__)]) as hashing:
        ...     found = hashing.results()
        >>> found == {Path(torch.__file__): sha256(Path(torch.__file__))}
        True
    """

    def __init__(self, files: Iterable[Path]):
        self._stopped = False
        self._pool = ThreadPoolExecutor(1, "hashing")
        self._found: dict[Path, Future[str]] = {path: self._pool.submit(self._hash, path) for path in files}

    def results(self) -> dict[Path, str]:
        """Wait for the hashes, in hexadecimal.

        Raises:
            CheckpointError: a file cannot be read.
        """
        return {path: future.result() for path, future in self._found.items()}

    def _hash(self, path: Path) -> str:
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(PIECE))
        try:
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            with os.fdopen(handle, "rb", buffering=0) as file:
                while not self._stopped and (count := file.readinto(buffer)):
                    digest.update(buffer[:count])
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        return digest.hexdigest()

    def __enter__(self) -> "Hashing":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self._pool.shutdown(wait=True, cancel_futures=True)
