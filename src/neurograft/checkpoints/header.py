"""The header of a safetensors file: read without trusting it, and written."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from neurograft.checkpoints.hashing import Stamp
from neurograft.checkpoints.stored_tensor import Entry
from neurograft.errors import CheckpointError
from neurograft.escaping import named

MOST_ENTRIES = 1 << 59  # of a tensor, counting sizes of 0 as 1; PyTorch counts bytes in 63 bits
LONGEST_HEADER = 100_000_000  # bytes; the same limit as the format's own library
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
MISTAKEN = {
    b"PK\x03\x04": "a PyTorch file (zip); rename it to .pt",
    b"\x80\x02": "a pickle; rename it to .pt",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run `git lfs pull`",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "a NumPy file",
    b"\x89HDF": "an HDF5 file",
    b"<": "a web page or XML",
}


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file: its tensors in the order of their bytes, and its metadata."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; the tensors' bytes are not looked at.

    Nothing of the size a file claims is allocated before it is compared with the size the file has, and every
    tensor's dtype, shape and bytes must agree.

    Raises:
        CheckpointError: the file is missing, truncated, of another kind, or its header is wrong (names the tensor).
    """
    try:
        with path.open("rb") as file:
            stamp = Stamp.of_open(file.fileno())
            text, data = _header_text(file, path, stamp.size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    content = _parsed(text, path)
    metadata = _metadata(content.pop("__metadata__", {}), path)
    entries = [_entry(path, name, described, data, stamp) for name, described in content.items()]
    entries.sort(key=lambda entry: (entry.start, entry.nbytes))
    at = data
    for entry in entries:
        if entry.start != at:
            what = "shares bytes with another tensor" if entry.start < at else f"leaves {entry.start - at} bytes unused"
            raise CheckpointError(f"{path}: {named(entry.name)} {what}; the header is damaged")
        at += entry.nbytes
    if at != stamp.size:
        raise CheckpointError(f"{path} has {stamp.size - at} bytes after its last tensor; it is damaged")
    return Header({entry.name: entry for entry in entries}, metadata)


def header_bytes(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The header of a file that holds these tensors one after the other, padded to a multiple of 8 bytes.

    Example:
        >>> header_bytes({"a": (torch.float32, (2,))}, {})[8:]
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  '
    """
    described: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        if dtype not in CODES:
            raise CheckpointError(f"{name} is {dtype}, which safetensors cannot hold")
        end = at + prod(shape) * dtype.itemsize
        described[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _header_text(file: BinaryIO, path: Path, size: int) -> tuple[bytes, int]:
    start = file.read(24)
    for magic, what in MISTAKEN.items():
        if start.startswith(magic) and start[8:9] != b"{":  # the length may begin with the same bytes by chance
            raise CheckpointError(f"{path} is no safetensors file but {what}")
    if len(start) < 8:
        raise CheckpointError(f"{path} is no safetensors file or truncated: it has only {size} bytes")
    length = int.from_bytes(start[:8], "little")
    if length > min(size - 8, LONGEST_HEADER):
        raise CheckpointError(
            f"{path} is no safetensors file or truncated: its header claims {length} bytes, but the file has {size}"
        )
    file.seek(8)
    text = file.read(length)
    if not text.startswith(b"{"):
        raise CheckpointError(f"{path} is no safetensors file: its header does not start with a brace")
    return text, 8 + length


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise CheckpointError(f"{path}: its header names {named(max(names, key=names.count))!r} twice")
        return found

    try:
        content = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is no JSON: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: its header is a JSON {type(content).__name__}, not an object")
    _check_text(path, content)
    return content


def _check_text(path: Path, names: Iterable[str]) -> None:
    try:
        "".join(names).encode()
    except UnicodeEncodeError as error:  # half of a pair of surrogates, written as an escape
        raise CheckpointError(f"{path}: its header has names or metadata that are no text") from error


def _metadata(found: Any, path: Path) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise CheckpointError(f"{path}: its __metadata__ must map text to text")
    _check_text(path, (*found, *found.values()))
    return found


def _entry(path: Path, name: str, described: Any, data: int, stamp: Stamp) -> Entry:
    shown = named(name)
    if not isinstance(described, dict) or described.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path}: {shown} must be described by dtype, shape and data_offsets")
    code, shape, offsets = described["dtype"], described["shape"], described["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise CheckpointError(f"{path}: {shown} has dtype {code!r:.40}; known: {', '.join(DTYPES)}")
    if not _naturals(shape) or len(shape) > 64 or prod(max(1, n) for n in shape) >= MOST_ENTRIES:
        raise CheckpointError(f"{path}: {shown} has the impossible shape {shape!r:.80}")
    if not _naturals(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{path}: {shown} has the impossible data_offsets {offsets!r:.80}")
    needed, (begin, end) = prod(shape) * DTYPES[code].itemsize, offsets
    if end - begin != needed:
        raise CheckpointError(
            f"{path}: {shown} of dtype {code} and shape {shape!r:.80} needs {needed:.12g} bytes, "
            f"but its data_offsets {begin}:{end} give it {end - begin}"
        )
    if data + end > stamp.size:
        raise CheckpointError(
            f"{path} is truncated: {shown} ends at byte {data + end}, but the file has {stamp.size} "
            f"({data + end - stamp.size} missing)"
        )
    return Entry(name, path, stamp, DTYPES[code], tuple(shape), data + begin, needed)


def _naturals(found: Any) -> bool:
    return isinstance(found, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in found)
