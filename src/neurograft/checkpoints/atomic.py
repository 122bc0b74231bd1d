"""Files and folders that appear whole or not at all, and what killed runs left behind."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from neurograft.errors import CheckpointError

PART = ".neurograft-part"
LONGEST_NAME = 255  # bytes, on all common file systems
TRIES = 100  # to make a temporary file that nobody who cleans up takes for a leftover


@contextmanager
def whole(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it becomes `path` if nothing is raised, else it is removed.

    Everything is flushed to the disk before it is renamed. A killed process leaves `.<name>.<random>.neurograft-part`
    behind, which nobody mistakes for a result; the next run with the same name removes it, unless the process that
    writes it still lives.

    Args:
        path: the file or folder that shall appear; an existing file (or a link) is replaced, a folder must be new or
            empty. A link to an empty folder stands for that folder.
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
    target = _named(path, folder)
    try:
        with temporary(target, folder=folder) as part:
            yield part
            for found in sorted(part.rglob("*")) if folder else []:
                flush(found)
            flush(part)
            part.replace(target)
            flush(target.parent)
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error.strerror or error}") from error


@contextmanager
def temporary(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Give a temporary file or folder beside `path`, which is gone at the end; what killed runs left of it goes first.

    Raises:
        OSError: nothing can be written there.
    """
    clean(path)
    part, handle = _started(path, folder)
    try:
        yield part
    finally:
        remove(part)
        if handle is not None:
            os.close(handle)


def check_target(path: Path, *, folder: bool = False) -> None:
    """Find out before any work whether `whole` can make a file or folder appear here.

    Raises:
        CheckpointError: with the reason: a missing or read-only folder, too long a name, something else of that name,
            a folder that is not empty or cannot be replaced (the current one, a mount point).
    """
    target = _named(path, folder)
    try:
        if not target.parent.is_dir():
            raise CheckpointError(f"{path}: the folder {target.parent} does not exist")
        if target.is_symlink() and (folder or target.is_dir()):
            raise CheckpointError(f"{path} is a link that leads to {target.readlink()}; choose another name")
        if target.is_dir():
            _check_replaceable(path, target, folder)
        elif folder and target.exists():
            raise CheckpointError(f"{path} exists and is no folder; choose another name or remove it first")
        part, handle = _started(target, folder)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written to: {error.strerror or error}") from error
    remove(part)
    if handle is not None:
        os.close(handle)


def _check_replaceable(path: Path, target: Path, folder: bool) -> None:
    if not folder:
        raise CheckpointError(f"{path} is a folder; give the file's name in it")
    if any(target.iterdir()):
        raise CheckpointError(f"{path} exists and is not empty; choose another name or remove it first")
    if os.path.ismount(target) or Path.cwd().is_relative_to(target):
        what = "a mount point" if os.path.ismount(target) else "the current folder"
        raise CheckpointError(f"{path} is {what}, which cannot be replaced; name a new folder in it")


def _named(path: Path, folder: bool) -> Path:
    """The absolute path with a name of its own; of a link to a folder, the folder.

    Raises:
        CheckpointError: there is no name, or one that no system takes.
    """
    try:
        if folder and path.is_dir():
            path = path.resolve()
        named = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link that is to be replaced
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{path} cannot be written to: {reason}") from error
    if not named.name or "\0" in named.name:
        raise CheckpointError(f"{path} cannot be written to: it is no name of a file or folder")
    return named


def clean(path: Path) -> None:
    """Remove what killed runs left of `path`; what a living process still writes stays."""
    for part in path.parent.glob(f"{_literal(_start_of_name(path))}*{PART}"):
        handle = _locked(part)
        if handle is not None:
            remove(part)
            os.close(handle)


def remove(part: Path) -> None:
    """Remove a temporary file or folder if it is there and can be removed: what went wrong before matters more."""
    with suppress(OSError):
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


def _started(path: Path, folder: bool) -> tuple[Path, int | None]:
    """A new temporary file or folder, and the handle that holds its lock (None where there are no locks).

    Whoever cleans up may find it before it is locked; it is then gone as soon as the lock is there, and made anew.
    """
    for _ in range(TRIES):
        part = path.with_name(f"{_start_of_name(path)}{secrets.token_hex(4)}{PART}")
        if folder:
            part.mkdir()
        else:
            part.touch(exist_ok=False)
        handle = _locked(part, wait=True)
        if handle is None and part.exists():
            return part, None
        if handle is not None and _is_at(handle, part):
            return part, handle
        if handle is not None:
            os.close(handle)
    raise OSError(f"temporary files beside it vanish: {part.name}")


def _start_of_name(path: Path) -> str:
    """How temporary names of a path begin: with its name, or a hash of it where the whole would be too long."""
    size = len(os.fsencode(path.name))
    if size <= LONGEST_NAME < size + len(f"..01234567{PART}"):
        return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}."
    return f".{path.name}."


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file or folder still has this name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _locked(part: Path, *, wait: bool = False) -> int | None:
    """A handle that holds the lock of a temporary file or folder until it is closed; None if it cannot be had."""
    try:
        import fcntl
    except ImportError:  # Windows: leftovers stay, they are named so that people recognise them
        return None
    try:
        handle = os.open(part, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        return None
    return handle


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
