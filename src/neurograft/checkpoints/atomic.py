"""Files and folders that appear whole or not at all, and what killed runs left behind."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neurograft.errors import CheckpointError

PART = ".neurograft-part"


@contextmanager
def whole(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it becomes `path` if nothing is raised, else it is removed.

    Everything is flushed to the disk before it is renamed. A killed process leaves `.<name>.<random>.neurograft-part`
    behind, which nobody mistakes for a result; the next run with the same name removes it, unless the process that
    writes it still lives.

    Args:
        path: the file or folder that shall appear; an existing file is replaced, a folder must be new or empty.
        folder: whether a folder is written.

    Raises:
        CheckpointError: nothing can be written there; the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     with whole(Path(place) / "notes.txt") as part:
        ...         size = part.write_text("all or nothing")
        ...     [file.name for file in Path(place).iterdir()]
        ['notes.txt']
    """
    clean(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        handle = _start(part, folder)
        try:
            yield part
            for found in sorted(part.rglob("*")) if folder else []:
                flush(found)
            flush(part)
            part.replace(path)
            flush(path.parent)
        finally:
            if handle is not None:
                os.close(handle)
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        remove(part)


def clean(path: Path) -> None:
    """Remove what killed runs left of `path`; what a living process still writes stays."""
    for part in path.parent.glob(f".{_literal(path.name)}.*{PART}"):
        handle = _locked(part)
        if handle is not None:
            remove(part)
            os.close(handle)


def remove(part: Path) -> None:
    """Remove a temporary file or folder if it is there."""
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _start(part: Path, folder: bool) -> int | None:
    if folder:
        part.mkdir()
    else:
        part.touch(exist_ok=False)
    return _locked(part)


def _locked(part: Path) -> int | None:
    """A handle that holds the lock of a temporary file or folder until it is closed; None if another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows: leftovers stay, they are named so that people can tell
        return None
    try:
        handle = os.open(part, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
