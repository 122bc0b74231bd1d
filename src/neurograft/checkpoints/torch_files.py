"""Files that `torch.save` wrote: where each tensor's numbers lie in them, found without unpickling anything."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, TypeAlias, cast
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import torch

from neurograft.checkpoints.hashing import Stamp
from neurograft.checkpoints.header import MOST_ENTRIES
from neurograft.checkpoints.pickles import Constructed, GlobalName, Referred, read_pickle
from neurograft.checkpoints.stored_tensor import Entry
from neurograft.errors import CheckpointError
from neurograft.escaping import named

BETWEEN = "/"  # stands between the keys of nested dicts
LONGEST_PICKLE = 500_000_000  # bytes
DEEPEST = 64  # collections in collections
MOST_REPEATED = 1 << 24  # entries of a tensor that repeats fewer numbers
MAGIC = 0x1950A86A20F9469CFC6C  # the first object of files from before PyTorch 1.6
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
REBUILD = "torch._utils _rebuild_"


class Storage(NamedTuple):
    """The bytes of a storage in a file, and the dtype that the pickle gives it."""

    dtype: torch.dtype
    start: int
    nbytes: int


class Unreadable(str):
    """Why a tensor is none that can be read."""


Storages: TypeAlias = Callable[[Any], Storage]
"""The storage that a pickle's reference stands for."""
ReadTensor: TypeAlias = tuple[Storage, torch.dtype, int, tuple[int, ...], tuple[int, ...]] | Unreadable
"""A tensor: storage, dtype, offset, shape and stride in entries."""


def read_torch_file(path: Path) -> dict[str, Entry]:
    """The tensors of a file by name; those of nested dicts are named `key/name`, in the order they are pickled.

    Tensors are found in dicts, lists and the modules of pickled networks. Everything else (an optimiser's settings,
    configurations of any class) is passed over: no class is looked up and no code runs.

    Raises:
        CheckpointError: truncated, compressed or damaged files; tensors that are not plain numbers.
    """
    try:
        with path.open("rb") as file:
            stamp = Stamp.of_open(file.fileno())
            archive = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            found, swapped = (_archived if archive else _streamed)(file, stamp.size)
            entries: dict[str, Entry] = {}
            for name, tensor in found:
                if isinstance(tensor, Unreadable) or name in entries:
                    raise ValueError(
                        f"{named(name)!r} {tensor if isinstance(tensor, Unreadable) else 'is there twice'}"
                    )
                entries[name] = replace(_placed(tensor, path, stamp), name=name, swapped=swapped)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # `zipfile` raises errors of many kinds for damaged archives
        raise CheckpointError(
            f"{path} cannot be read as tensors (is it truncated, or no file of torch.save?): {named(str(error), 400)}"
        ) from error
    if not entries:
        raise CheckpointError(f"{path} holds no tensors; torch.save(model.state_dict(), …) writes such a file")
    return entries


def _archived(file: BinaryIO, size: int) -> tuple[Iterator[tuple[str, ReadTensor]], bool]:
    """The tensors of an archive, as PyTorch writes since 1.6: a pickle and a record per storage; and the byte order."""
    archive = ZipFile(file)
    records = {info.filename: info for info in archive.infolist()}
    if len(records) < len(archive.infolist()):
        raise ValueError("two records of the archive have one name")
    pickled = [name for name in records if name.count("/") <= 1 and name.rpartition("/")[2] == "data.pkl"]
    if len(pickled) != 1:
        raise ValueError("it is an archive of something else, without a data.pkl")
    folder = pickled[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in records:
        raise ValueError("it is a TorchScript program; save its state_dict() with torch.save")

    def record(name: str) -> tuple[int, int]:
        if f"{folder}{name}" not in records:
            raise ValueError(f"its record {name!r:.80} is missing")
        return _record(file, records[f"{folder}{name}"], size)

    def storage(key: Any) -> Storage:
        kind, dtype, name, _, count, *_ = key
        if kind != "storage":
            raise ValueError(f"it refers to a {kind!r:.40}")
        return _storage(_dtype(dtype), *record(f"data/{name}"), count)

    swapped = f"{folder}byteorder" in records and _bytes(file, *record("byteorder")) != b"little"
    content = read_pickle(io.BytesIO(_bytes(file, *record("data.pkl"))))
    return _tensors(content, storage), swapped


def _record(file: BinaryIO, info: ZipInfo, size: int) -> tuple[int, int]:
    """Where the bytes of a record lie: start and number.

    Raises:
        ValueError: it is compressed or encrypted, cut, or its two headers differ.
    """
    what = f"its record {info.filename!r:.80}"
    name = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
    file.seek(max(0, info.header_offset))
    local = file.read(30 + len(name))
    lengths = int.from_bytes(local[26:28], "little"), int.from_bytes(local[28:30], "little")
    if local[:4] != b"PK\x03\x04" or lengths[0] != len(name) or local[30:] != name:
        raise ValueError(f"{what} is not where the archive's directory has it")
    if info.compress_type != ZIP_STORED or int.from_bytes(local[8:10], "little") != ZIP_STORED or info.flag_bits & 1:
        raise ValueError(f"{what} is compressed or encrypted; load it with torch.load and save it again")
    start = info.header_offset + 30 + sum(lengths)
    if info.compress_size != info.file_size or start + info.file_size > size:
        raise ValueError(f"{what} is cut")
    return start, info.file_size


def _bytes(file: BinaryIO, start: int, count: int) -> bytes:
    if count > LONGEST_PICKLE:
        raise ValueError(f"its pickle has {count} bytes, which no such file needs")
    file.seek(start)
    return file.read(count)


class _Window:
    """A file that pickles are read from: no more than pickles may have, whatever lengths they claim."""

    def __init__(self, file: BinaryIO):
        self._file, self._left = file, LONGEST_PICKLE

    def read(self, count: int, /) -> bytes:
        """The next bytes, fewer at the end."""
        return self._counted(self._file.read(max(0, min(count, self._left))))

    def readline(self) -> bytes:
        """The next bytes up to a line's end."""
        return self._counted(self._file.readline(self._left))

    def _counted(self, found: bytes) -> bytes:
        self._left -= len(found)
        return found


def _streamed(file: BinaryIO, size: int) -> tuple[Iterator[tuple[str, ReadTensor]], bool]:
    """The tensors of a file from before PyTorch 1.6: pickles, then the storages one after the other."""
    window, referred = cast(IO[bytes], _Window(file)), list[Referred]()
    if read_pickle(window) != MAGIC:
        raise ValueError("it does not begin as files of torch.save do")
    version, system = read_pickle(window), read_pickle(window)
    if version != 1001 or not isinstance(system, dict):
        raise ValueError(f"it is of the unknown version {version!r:.40}")
    content, keys = read_pickle(window, referred), read_pickle(window)
    described = {key[2]: key for key in (reference.key for reference in referred) if key[0] == "storage"}
    swapped = system.get("little_endian") is False
    storages = {}
    for key in keys:
        dtype = _dtype(described[key][1])
        count = int.from_bytes(file.read(8), "big" if swapped else "little")
        storages[key] = _storage(dtype, file.tell(), count * dtype.itemsize, described[key][4])
        if file.seek(storages[key].nbytes, io.SEEK_CUR) > size:
            raise ValueError(f"its storage {key!r:.40} is cut")

    def storage(key: Any) -> Storage:
        if key[0] != "storage" or key[5] is not None:
            raise ValueError("its tensors share storages in a way that PyTorch gave up")
        return storages[key[2]]

    return _tensors(content, storage), swapped


def _dtype(kind: Any) -> torch.dtype:
    name = kind.name.rpartition(" ")[2] if isinstance(kind, GlobalName) else str(kind)
    if name not in STORAGES:
        raise ValueError(f"it holds a {name:.80}, which are no plain numbers")
    return STORAGES[name]


def _storage(dtype: torch.dtype, start: int, nbytes: int, count: Any) -> Storage:
    if type(count) is not int or nbytes != count * dtype.itemsize:
        raise ValueError(f"a storage has {nbytes} bytes, not the {count!r:.40} numbers of {dtype} that belong there")
    return Storage(dtype, start, nbytes)


def _tensors(content: Any, storages: Storages) -> Iterator[tuple[str, ReadTensor]]:
    """Every tensor in nested dicts, lists and modules; each of these is looked at once."""
    seen: set[int] = set()

    def walk(value: Any, name: str, depth: int) -> Iterator[tuple[str, ReadTensor]]:
        if isinstance(value, Constructed) and (tensor := _tensor(value, storages)) is not None:
            yield name, tensor
        elif isinstance(value, (dict, list, tuple, Constructed)) and id(value) not in seen:
            seen.add(id(value))
            if depth > DEEPEST:
                raise ValueError(f"its objects are nested more than {DEEPEST} deep")
            for key, inner in _parts(value, name):
                yield from walk(inner, key, depth + 1)

    return walk(content, "", 0)


def _parts(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The parts of a collection, a module or another object, with their names."""
    state = value.state if isinstance(value, Constructed) else None
    start = name if not name or name.endswith(".") else f"{name}{BETWEEN}"
    if isinstance(state, dict) and isinstance(state.get("_modules"), dict):
        unsaved = _items(state.get("_non_persistent_buffers_set"))
        for kind, end in (("_parameters", ""), ("_buffers", ""), ("_modules", ".")):
            for key, inner in (state[kind] if isinstance(state.get(kind), dict) else {}).items():
                if kind != "_buffers" or key not in unsaved:
                    yield f"{start}{key}{end}", inner
        return
    for part in (value.items, state) if isinstance(value, Constructed) else (value,):
        pairs = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, (list, tuple)) else ()
        for key, inner in pairs:
            yield f"{start}{key}", inner


def _items(pickled_set: Any) -> Sequence[Any]:
    given = pickled_set.arguments if isinstance(pickled_set, Constructed) else (pickled_set,)
    return given[0] if isinstance(given, tuple) and given and isinstance(given[0], list) else ()


def _tensor(made: Constructed, storages: Storages) -> ReadTensor | None:
    """The tensor that an object stands for, None if it is none."""
    kind, given = made.kind, made.arguments
    if not isinstance(kind, GlobalName) or not isinstance(given, tuple):
        return None
    if kind.name == "torch._tensor _rebuild_from_type_v2":  # of a subclass: function, class, arguments, state
        return _tensor(Constructed(given[0], given[2]), storages)
    if kind.name in (f"{REBUILD}parameter", f"{REBUILD}parameter_with_state"):
        return _tensor(given[0], storages) if isinstance(given[0], Constructed) else None
    if kind.name in (f"{REBUILD}tensor", f"{REBUILD}tensor_v2", f"{REBUILD}tensor_v3"):
        place, offset, shape, stride = given[:4]
        there = storages(place.key)
        new = kind.name.endswith("v3")  # with a dtype of its own, because its storage has none
        dtype = getattr(torch, given[6].name.removeprefix("torch "), None) if new else there.dtype
        if not isinstance(dtype, torch.dtype) or any(given[7 if new else 6 :]):
            return Unreadable("is a conjugated or negated view, or of an unknown dtype; save it resolved")
        return there, dtype, offset, shape, stride
    return Unreadable("is sparse, quantised or empty of numbers; save it dense") if REBUILD in kind.name else None


def _placed(found: ReadTensor, path: Path, stamp: Stamp) -> Entry:
    """Where a tensor's numbers lie.

    Raises:
        ValueError: it leads out of its storage.
    """
    assert not isinstance(found, Unreadable)
    there, dtype, offset, shape, stride = found
    for numbers in ((offset,), shape, stride):
        if not isinstance(numbers, tuple) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            raise ValueError(f"a tensor has the impossible offset, shape or stride {numbers!r:.80}")
    if len(shape) != len(stride) or len(shape) > 64 or prod(max(1, n) for n in shape) >= MOST_ENTRIES:
        raise ValueError(f"a tensor has the shape {shape!r:.80} and the stride {stride!r:.80}")
    count = prod(shape)
    reach = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if count else 0
    if (offset + reach) * dtype.itemsize > there.nbytes and count:
        raise ValueError(f"a tensor of shape {shape!r:.80} leads out of its storage")
    if count > max(reach, MOST_REPEATED):
        raise ValueError(f"a tensor of shape {shape!r:.80} repeats {reach} numbers; save it contiguous")
    inner = [prod(shape[d + 1 :]) for d in range(len(shape))]
    plain = not count or all(n == 1 or s == i for n, s, i in zip(shape, stride, inner, strict=True))
    start, nbytes = there.start + offset * dtype.itemsize, reach * dtype.itemsize
    return Entry("", path, stamp, dtype, shape, start, nbytes, None if plain else stride)
