"""Checkpoints of any size: opened without reading them, their tensors read from the files when they are asked for."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath

from torch import Tensor

from neurograft.checkpoints.hashing import Stamp, check_unchanged
from neurograft.checkpoints.header import read_header
from neurograft.checkpoints.inside import check_inside
from neurograft.checkpoints.stored_tensor import Entry, StoredTensors
from neurograft.checkpoints.torch_files import read_torch_file
from neurograft.errors import CheckpointError, closest
from neurograft.escaping import named
from neurograft.paths import is_file

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
LONGEST_INDEX = 200_000_000  # bytes
MOST_COMPARED = 1000  # names, for one that comes close
IN_FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors.index.json",
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One member on disk: `tensors` maps names to tensors that lie in files and are read when they are used.

    `stamps` records what the files were when they were opened, `part` which of several networks in them is meant.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    stamps: Mapping[Path, Stamp]
    metadata: Mapping[str, str]
    part: str = ""

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

    Headers are read and checked, tensors are not. Of a `.pt` file only the tensors are read, so it cannot run code;
    those of nested dicts are named `key/name`.

    Args:
        path: a folder, or a file that ends in `.safetensors`, `.index.json`, `.pt`, `.pth`, `.bin` or `.ckpt`; with
            `#part` behind it, of several networks in it the one whose names begin with `part`.

    Raises:
        CheckpointError: missing, truncated, damaged or mislabelled files, with the tensor where there is one; an
            index that leads outside its folder or names tensors its files do not hold.

    Example:
        >>> open_checkpoint(Path("nowhere.safetensors"))
        Traceback (most recent call last):
        neurograft.errors.CheckpointError: nowhere.safetensors: no such file
    """
    try:
        if path.is_dir():
            return _open_folder(path)
        if not path.exists() and (split := _split(path)) is not None:
            return replace(open_checkpoint(split[0]), path=path, part=split[1])
    except (OSError, ValueError) as error:  # too long a name, a folder that may not be looked into
        raise CheckpointError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is no plain file' if path.exists() else 'no such file'}")
    if path.name.endswith(".index.json"):
        return _open_index(path)
    if path.suffix == ".safetensors":
        return _joined(path, {path: None})
    if path.suffix in PICKLED:
        return _joined(path, {path: None})
    raise CheckpointError(f"{path}: a checkpoint must end in .safetensors, {', '.join(PICKLED)}, or be a folder")


def _split(path: Path) -> tuple[Path, str] | None:
    """A file or folder that is there, and the part that is named behind a `#`."""
    text = str(path)
    for at in (at for at in range(len(text) - 1, 0, -1) if text[at] == "#"):
        if (there := Path(text[:at])).exists():
            return there, text[at + 1 :].strip("./")
    return None


def _open_folder(folder: Path) -> Checkpoint:
    for name in IN_FOLDER:
        if (folder / name).is_file():
            check_inside(folder, folder / name)
            found = open_checkpoint(folder / name)
            return Checkpoint(folder, found.tensors, found.stamps, found.metadata)
    alone = sorted(folder.glob("*.safetensors"))
    if len(alone) == 1:
        check_inside(folder, alone[0])
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
        raise CheckpointError(f"{index} leads outside its folder: {named(file)!r}")
    check_inside(index.parent, index.parent / pure)
    if not is_file(index.parent / pure):
        raise CheckpointError(f"{index} names {named(file)!r}, which is not there")
    return index.parent / pure


def _joined(path: Path, names: Mapping[Path, set[str] | None]) -> Checkpoint:
    """One checkpoint out of files; of each the tensors named, or all."""
    entries: dict[str, Entry] = {}
    stamps: dict[Path, Stamp] = {}
    metadata: dict[str, str] = {}
    for file, wanted in names.items():
        held: Mapping[str, Entry]
        stamps[file] = Stamp.of(file)
        if file.suffix == ".safetensors":
            header = read_header(file)
            held = header.entries
            metadata |= header.metadata
        else:
            held = read_torch_file(file)
        if wanted is not None and (missing := sorted(wanted - held.keys())):
            near = closest(named(missing[0]), map(named, islice(held, MOST_COMPARED)))
            raise CheckpointError(f"{path} places in {named(file.name)} the tensor {named(missing[0])!r}; {near}")
        entries |= held if wanted is None else {name: entry for name, entry in held.items() if name in wanted}
    check_unchanged(stamps)
    return Checkpoint(path, StoredTensors(entries), stamps, metadata)


class Renamed(Mapping[str, Tensor]):
    """Tensors under other names: `names` maps the new name to the old, `added` are further ones."""

    def __init__(
        self, tensors: Mapping[str, Tensor], names: Mapping[str, str], added: Mapping[str, Tensor] | None = None
    ) -> None:
        self._tensors, self._names, self._added = tensors, names, added or {}

    def __getitem__(self, name: str) -> Tensor:
        return self._added[name] if name in self._added else self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        yield from self._names
        yield from self._added

    def __len__(self) -> int:
        return len(self._names) + len(self._added)
