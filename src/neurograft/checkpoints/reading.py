"""Checkpoints of any size: opened without reading them, their tensors mapped from the files when they are asked for."""

import json
import mmap
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from neurograft.checkpoints.hashing import Stamp, check_unchanged
from neurograft.checkpoints.header import Entry, read_header
from neurograft.errors import CheckpointError, closest

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
LONGEST_INDEX = 200_000_000  # bytes
IN_FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One member on disk: `tensors` maps names to tensors that lie in memory-mapped files, read-only.

    A mapped tensor must not be written to. `stamps` says what the files were when they were opened.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    stamps: Mapping[Path, Stamp]
    metadata: Mapping[str, str]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold tensors."""
        return tuple(self.stamps)

    @cached_property
    def nbytes(self) -> int:
        """The size of all tensors, in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def check_unchanged(self) -> None:
        """Refuse a checkpoint that was written to or replaced after it was opened.

        Raises:
            CheckpointError: names the file.
        """
        check_unchanged(self.stamps)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a safetensors file, an index of shards, a folder with one of these, or a `.pt` file of tensors.

    Headers are read and checked, tensors are not. A `.pt` file is read with `weights_only=True`, so it cannot run
    code; a state dict under the key `state_dict` or `model` is found there.

    Args:
        path: a folder, or a file that ends in `.safetensors`, `.index.json`, `.pt`, `.pth`, `.bin` or `.ckpt`.

    Raises:
        CheckpointError: missing, truncated, damaged or mislabelled files, with the tensor where there is one; an
            index that leads outside its folder or names tensors its files do not hold.

    Example:
        >>> open_checkpoint(Path("nowhere.safetensors"))
        Traceback (most recent call last):
        neurograft.errors.CheckpointError: nowhere.safetensors: no such file
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is no plain file' if path.exists() else 'no such file'}")
    if path.name.endswith(".index.json"):
        return _open_index(path)
    if path.suffix == ".safetensors":
        return _joined(path, {path: None})
    if path.suffix in PICKLED:
        return _joined(path, {path: None})
    raise CheckpointError(f"{path}: a checkpoint must end in .safetensors, {', '.join(PICKLED)}, or be a folder")


def _open_folder(folder: Path) -> Checkpoint:
    for name in IN_FOLDER:
        if (folder / name).is_file():
            found = open_checkpoint(folder / name)
            return Checkpoint(folder, found.tensors, found.stamps, found.metadata)
    alone = sorted(folder.glob("*.safetensors"))
    if len(alone) == 1:
        found = open_checkpoint(alone[0])
        return Checkpoint(folder, found.tensors, found.stamps, found.metadata)
    several = f"{len(alone)} safetensors files but no index" if alone else "no checkpoint"
    raise CheckpointError(f"{folder} is a folder with {several}; expected {', '.join(IN_FOLDER)}")


def _open_index(path: Path) -> Checkpoint:
    if path.stat().st_size > LONGEST_INDEX:
        raise CheckpointError(f"{path} is no index of shards: it has {path.stat().st_size} bytes")
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no readable index: {str(error)[:200]}") from error
    placed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(placed, dict) or not placed or not all(isinstance(file, str) for file in placed.values()):
        raise CheckpointError(f"{path}: its weight_map must map names of tensors to names of files")
    names: dict[Path, set[str]] = {}
    checked = {file: _inside(path, file) for file in dict.fromkeys(placed.values())}
    for name, file in placed.items():
        names.setdefault(checked[file], set()).add(name)
    return _joined(path, names)


def _inside(index: Path, file: str) -> Path:
    """The shard that an index names, which must lie in the index's folder (or in its hub cache's blobs)."""
    pure = PurePosixPath(file)
    if pure.is_absolute() or ".." in pure.parts or "\\" in file or ":" in file or "\0" in file or not pure.parts:
        raise CheckpointError(f"{index} leads outside its folder: {file!r:.120}")
    folder = index.parent.resolve()
    roots = [folder]
    if folder.parent.name == "snapshots":  # the hub's cache keeps snapshots/<revision>/<file> as links into blobs/
        roots.append(folder.parent.parent / "blobs")
    try:
        real = (index.parent / pure).resolve()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{index}: {file!r:.120} cannot be found: {error}") from error
    if not any(real.is_relative_to(root) for root in roots):
        raise CheckpointError(f"{index} leads outside its folder: {file!r} is a link to {real}")
    if not real.is_file():
        raise CheckpointError(f"{index} names {file!r:.120}, which is not there")
    return index.parent / pure


def _joined(path: Path, names: Mapping[Path, set[str] | None]) -> Checkpoint:
    """One checkpoint out of files; of each the tensors named, or all."""
    stamps = {file: Stamp.of(file) for file in names}
    tensors: dict[str, Tensor] = {}
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    for file, wanted in names.items():
        held: Mapping[str, Any]
        if file.suffix == ".safetensors":
            header = read_header(file)
            held = header.entries
            metadata |= header.metadata
        else:
            held = _read_pickled(file)
        if wanted is not None and (missing := sorted(wanted - held.keys())):
            raise CheckpointError(f"{path} says that {file.name} holds {missing[0]!r}; {closest(missing[0], held)}")
        for name in held if wanted is None else [name for name in held if name in wanted]:
            found = held[name]
            if isinstance(found, Entry):
                entries[name] = found
            else:
                tensors[name] = found
    check_unchanged(stamps)
    return Checkpoint(path, MappedTensors(entries) if entries else tensors, stamps, metadata)


class MappedTensors(Mapping[str, Tensor]):
    """Tensors that lie in safetensors files, by name: each file is mapped when its first tensor is asked for."""

    def __init__(self, entries: Mapping[str, Entry]):
        self.entries = dict(entries)
        self._maps: dict[Path, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        if not entry.nbytes:
            return torch.empty(entry.shape, dtype=entry.dtype)
        if entry.file not in self._maps:
            self._maps[entry.file] = map_file(entry.file)
        if entry.start + entry.nbytes > len(self._maps[entry.file]):
            raise CheckpointError(f"{entry.file} shrank while it was read: {name} is no longer whole")
        found = self._maps[entry.file][entry.start : entry.start + entry.nbytes]
        if entry.start % entry.dtype.itemsize:
            found = found.clone()  # a view needs aligned bytes, which the format recommends but does not demand
        return found.view(entry.dtype).view(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class Renamed(Mapping[str, Tensor]):
    """Tensors under other names: `names` maps the new name to the old."""

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]):
        self._tensors = tensors
        self._names = names

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def map_file(path: Path) -> Tensor:
    """The bytes of a file as a tensor of uint8 that is never written to; the pages are read when they are used.

    Raises:
        CheckpointError: the file cannot be mapped.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be mapped: {error}") from error
    with warnings.catch_warnings():
        # a private writable mapping would silence torch, but it counts as memory of the process
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        return torch.frombuffer(mapped, dtype=torch.uint8)


def _read_pickled(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"{path} cannot be read as tensors only (it may be truncated, or hold more than a state dict; "
            f"save model.state_dict() instead): {reason}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise CheckpointError(f"{path}: {name!r} is sparse, quantised or empty of numbers; save it dense")
    return {name: tensor.detach() for name, tensor in content.items()}
