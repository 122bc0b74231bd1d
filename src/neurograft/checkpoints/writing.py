"""Writing safetensors: one file or shards with an index, block by block, so that no tensor need be in memory."""

import json
import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from neurograft.checkpoints.atomic import whole
from neurograft.checkpoints.header import header_bytes, read_header
from neurograft.errors import CheckpointError

Spec: TypeAlias = tuple[torch.dtype, tuple[int, ...]]
"""A tensor's dtype and shape."""

PROVENANCE = "neurograft"
INDEX = "model.safetensors.index.json"
WAITING = 2  # blocks that may wait for the disk


@dataclass(frozen=True)
class Shard:
    """One file of a checkpoint: its name and its tensors in the order of their bytes."""

    file: str
    tensors: Mapping[str, Spec]


def nbytes(spec: Spec) -> int:
    """The size of a tensor in bytes."""
    return prod(spec[1]) * spec[0].itemsize


def size_text(count: float) -> str:
    """A number of bytes for people, in steps of a thousand.

    Example:
        >>> size_text(512), size_text(9_500), size_text(2_340_000_000)
        ('512 B', '9.5 KB', '2.34 GB')
    """
    for unit in ("B", "KB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB" if count < 999.5 else f"{count:.0f} GB"


def shards(tensors: Mapping[str, Spec], shard_size: int) -> tuple[Shard, ...]:
    """Distribute tensors over files of at most `shard_size` bytes; a tensor above it has a file of its own.

    The order of the names is kept, so that members are read from front to back.

    Example:
        >>> wide = (torch.float32, (1000,))
        >>> [(shard.file, list(shard.tensors)) for shard in shards({"a": wide, "b": wide, "c": wide}, 8000)]
        [('model-00001-of-00002.safetensors', ['a', 'b']), ('model-00002-of-00002.safetensors', ['c'])]
    """
    parts: list[dict[str, Spec]] = [{}]
    filled = 0
    for name, spec in tensors.items():
        if parts[-1] and filled + nbytes(spec) > shard_size:
            parts.append({})
            filled = 0
        parts[-1][name] = spec
        filled += nbytes(spec)
    if len(parts) == 1:
        return (Shard("model.safetensors", _aligned(parts[0])),)
    return tuple(
        Shard(f"model-{i:05d}-of-{len(parts):05d}.safetensors", _aligned(part)) for i, part in enumerate(parts, 1)
    )


def _aligned(tensors: dict[str, Spec]) -> dict[str, Spec]:
    """Wide numbers first, so that every tensor starts at a multiple of its own."""
    return dict(sorted(tensors.items(), key=lambda item: -item[1][0].itemsize))


def write_index(folder: Path, parts: Sequence[Shard]) -> None:
    """Write the index of several shards; one file alone has none."""
    if len(parts) == 1:
        return
    placed = {name: shard.file for shard in parts for name in shard.tensors}
    total = sum(nbytes(spec) for shard in parts for spec in shard.tensors.values())
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
    (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class TensorWriter:
    """Write one safetensors file: all headers first, then each tensor's blocks in the announced order.

    The disk is written to by a thread of its own while the next block is computed.

    Example:
        >>> import tempfile
        >>> from neurograft.checkpoints.reading import open_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.safetensors"
        ...     with TensorWriter(path, {"x": (torch.float32, (2, 2))}, {}) as writer:
        ...         writer.write("x", torch.zeros(1, 2))
        ...         writer.write("x", torch.ones(1, 2))
        ...     open_checkpoint(path).tensors["x"]
        tensor([[0., 0.],
                [1., 1.]])
    """

    def __init__(self, path: Path, tensors: Mapping[str, Spec], metadata: Mapping[str, str]):
        self.path = path
        self._tensors = dict(tensors)
        self._left = {name: nbytes(spec) for name, spec in tensors.items()}
        self._order = [name for name, left in self._left.items() if left]
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
        self._pool = ThreadPoolExecutor(1, "writing")
        self._waiting: deque[Future[None]] = deque()
        self._submit(memoryview(header_bytes(tensors, {"format": "pt", **metadata})))

    def write(self, name: str, block: Tensor) -> None:
        """Append the next rows of a tensor; the block must not be changed afterwards.

        Raises:
            CheckpointError: the block is not what was announced.
            OSError: the disk is full or gone.
        """
        if not block.numel():
            return
        dtype = self._tensors[name][0]
        if not self._order or name != self._order[0] or block.dtype != dtype or block.nbytes > self._left[name]:
            raise CheckpointError(
                f"{self.path.name}: {block.nbytes} bytes of {name} ({block.dtype}) are not what comes next"
            )
        self._left[name] -= block.nbytes
        if not self._left[name]:
            self._order.pop(0)
        flat = block.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self._submit(memoryview(flat.numpy().data))

    def _submit(self, data: memoryview) -> None:
        while len(self._waiting) >= WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._write, data))

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._handle, data[: 1 << 30]) :]

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._pool.shutdown(wait=True, cancel_futures=error is not None)
            if error is None:
                for future in self._waiting:
                    future.result()
                if self._order:
                    raise CheckpointError(
                        f"{self.path.name}: {self._left[self._order[0]]} bytes of {self._order[0]} were not given"
                    )
        finally:
            os.close(self._handle)


def replace_metadata(path: Path, tensors: Mapping[str, Spec], metadata: Mapping[str, str]) -> None:
    """Put other metadata of the same length into a file that `TensorWriter` wrote.

    Hashes of the members are known only after the tensors were read, but the header comes first in the file.

    Raises:
        CheckpointError: the new header is longer or shorter than the old one.
    """
    header = header_bytes(tensors, {"format": "pt", **metadata})
    with path.open("r+b") as file:
        if file.read(8) != header[:8]:
            raise CheckpointError(f"{path.name}: the new metadata must be as long as the old ones")
        file.write(header[8:])


def write_checkpoint(model: nn.Module, path: Path, provenance: Mapping[str, Any]) -> None:
    """Write a network as one safetensors file, completely or not at all; a tied tensor is written once.

    `provenance` goes into the file's metadata as JSON, under the key `neurograft`.

    Raises:
        CheckpointError: if the folder cannot be written to or the disk is full; no file is left behind then.
    """
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    write_tensors(tensors, path, {PROVENANCE: json.dumps(provenance, sort_keys=True)})


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors that are in memory as one safetensors file, completely or not at all.

    Raises:
        CheckpointError: if the folder cannot be written to or the disk is full; no file is left behind then.
    """
    specs = _aligned({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()})
    with whole(path) as part, TensorWriter(part, specs, metadata) as writer:
        for name in specs:
            writer.write(name, tensors[name])


def provenance_of(path: Path) -> dict[str, Any] | None:
    """What neurograft recorded in a safetensors file, None if it is not from there.

    Raises:
        CheckpointError: if the file or its record cannot be read.
    """
    recorded = read_header(path).metadata.get(PROVENANCE)
    if recorded is None:
        return None
    try:
        found = json.loads(recorded)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its record of where it comes from is no JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: its record of where it comes from is a JSON {type(found).__name__}")
    return found
