"""Decoded images are kept in files, so that 60,000 images are decoded once and not in every process.

The folder is `$NEUROGRAFT_CACHE/images`, else `neurograft/images` in `$XDG_CACHE_HOME` or `~/.cache`. A file is named
after the data set and a hash of its source files' paths, sizes and times, and is written completely or not at all.
Files are bytes, 3 KB for an image of CIFAR; delete them at any time.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from neurograft_experiments.data.decoding import Decoded, Found

FORMAT = 1
TENSORS = ("train_pixels", "train_labels", "test_pixels", "test_labels")


def kept_folder() -> Path:
    """Where decoded images are kept."""
    own, cache = os.environ.get("NEUROGRAFT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own) / "images"
    return (Path(cache) if cache else Path.home() / ".cache") / "neurograft" / "images"


def kept(found: Found, size: int | None, seed: int) -> Decoded:
    """The decoded data set, from its file if there is one; otherwise it is decoded now, and the file written.

    Several processes may ask at once: one decodes, the others wait for its file. A folder that cannot be written to
    costs a warning and decoding in every process.

    Args:
        found: the data set.
        size: as `Found.decoded` takes it.
        seed: of the cut into training and test images, where the data set itself has none.

    Raises:
        InputError: as `Found.decoded`.
    """
    if not found.files:
        return found.decoded(size)
    file = kept_folder() / f"{found.name.replace('/', '-')}-{_identity(found, size, seed)}.safetensors"
    if (decoded := _read(file)) is not None:
        return decoded
    with _alone(file) as writable:
        if (decoded := _read(file)) is not None:
            return decoded
        decoded = found.decoded(size)
        if writable:
            _write(file, decoded)
    return decoded


def _identity(found: Found, size: int | None, seed: int) -> str:
    stats = [(str(path.resolve()), path.stat()) for path in found.files]
    files = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    return hashlib.sha256(json.dumps([FORMAT, size, seed, files]).encode()).hexdigest()[:16]


def _read(file: Path) -> Decoded | None:
    try:
        with safe_open(file, "pt") as tensors:
            return Decoded(*(tensors.get_tensor(name) for name in TENSORS))
    except (OSError, SafetensorError):
        return None


@contextmanager
def _alone(file: Path) -> Iterator[bool]:
    """Hold the file's lock; false where the folder cannot be written to."""
    from filelock import FileLock

    lock = FileLock(file.with_suffix(".lock"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        _warn(file.parent, error)
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _write(file: Path, decoded: Decoded) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        save_file({name: getattr(decoded, name) for name in TENSORS}, part)
        part.replace(file)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        _warn(file.parent, error)


def _warn(folder: Path, error: Exception) -> None:
    warnings.warn(
        f"decoded images cannot be kept in {folder} ({error}): every run decodes them again; set NEUROGRAFT_CACHE to a "
        "folder that can be written to",
        stacklevel=4,
    )
