"""Tensors that lie in files: what is needed is read when it is needed, and never more."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from neurograft.checkpoints.hashing import Stamp, check_stamp
from neurograft.errors import CheckpointError
from neurograft.escaping import named

SPAN = 1 << 26  # bytes of neighbouring rows that are read at once where a part of them is asked for
APART = 1 << 14  # bytes that are read about as fast as a file is positioned anew


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor in a file: its numbers lie within `nbytes` bytes from position `start`.

    `stride` is in entries, None where the numbers follow each other; `swapped` numbers have their first byte last.
    """

    name: str
    file: Path
    stamp: Stamp
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int
    stride: tuple[int, ...] | None = None
    swapped: bool = False

    def read(self, at: int, count: int) -> Tensor:
        """`count` of the entry's bytes from `at`, as a tensor of uint8.

        Raises:
            CheckpointError: the file is gone or no longer what it was when it was opened.
        """
        found = torch.empty(count, dtype=torch.uint8)
        self.read_into([(at, found)])
        return found

    def read_into(self, pieces: list[tuple[int, Tensor]]) -> None:
        """Fill tensors of uint8 with the entry's bytes from the given positions.

        Raises:
            CheckpointError: as `read`.
        """
        try:
            with self.file.open("rb", buffering=0) as file:
                check_stamp(self.file, self.stamp, Stamp.of_open(file.fileno()))
                for at, piece in pieces:
                    file.seek(self.start + at)
                    left = memoryview(piece.numpy().data)
                    while left:
                        count = file.readinto(left[: 1 << 30])
                        if not count:
                            raise CheckpointError(
                                f"{self.file} shrank while it was read: {named(self.name)} is not whole"
                            )
                        left = left[count:]
        except OSError as error:
            raise CheckpointError(f"{self.file} cannot be read: {error.strerror or error}") from error

    def whole(self) -> Tensor:
        """The tensor, read into memory."""
        if not prod(self.shape):
            return torch.empty(self.shape, dtype=self.dtype)
        numbers = self._numbers(self.read(0, self.nbytes))
        return numbers.view(self.shape) if self.stride is None else numbers.as_strided(self.shape, self.stride).clone()

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of an entry without a stride."""
        each = self.nbytes // self.shape[0]
        numbers = self._numbers(self.read(start * each, (stop - start) * each))
        return numbers.view(stop - start, *self.shape[1:])

    def part(self, slices: tuple[slice, ...]) -> Tensor:
        """What slices with positive steps leave of an entry without a stride, made of blocks of rows."""
        rows = range(*slices[0].indices(self.shape[0]))
        if rows.step == 1 and len(slices) == 1:
            return self.rows(rows.start, max(rows.start, rows.stop))
        count = max(1, SPAN // max(1, self.nbytes // self.shape[0]))
        index = [rows[start : start + count] for start in range(0, len(rows), count)]
        blocks = [self.rows_at(torch.tensor(own))[(slice(None), *slices[1:])] for own in index]
        return torch.cat(blocks) if blocks else self.rows(0, 0)[(slice(None), *slices[1:])]

    def rows_at(self, index: Tensor) -> Tensor:
        """The rows of an entry without a stride at the places `index`, int64 and not negative."""
        each = self.nbytes // self.shape[0]
        low, high = int(index.min()), int(index.max()) + 1
        if (high - low) * each <= max(each, min(SPAN, len(index) * APART)):
            return self.rows(low, high).index_select(0, index - low)
        found = torch.empty(len(index) * each, dtype=torch.uint8)
        breaks = (index[1:] != index[:-1] + 1).nonzero().flatten() + 1
        places = [0, *breaks.tolist(), len(index)]
        starts = index[places[:-1]].tolist()
        self.read_into(
            [(row * each, found[a * each : b * each]) for row, a, b in zip(starts, places, places[1:], strict=False)]
        )
        return self._numbers(found).view(len(index), *self.shape[1:])

    def _numbers(self, data: Tensor) -> Tensor:
        if self.swapped:
            parts = 2 if self.dtype.is_complex else 1
            data = data.view(-1, self.dtype.itemsize // parts).flip(1).flatten()
        return data.view(self.dtype)


class StoredTensor(Tensor):
    """A tensor in a file. Its shape and dtype are there; everything that needs its numbers reads them.

    Rows (`t[2:5]`, `t[index]`, `index_select(0, ...)`) are read alone; any other operation reads the whole tensor and
    acts on a copy in memory, so that nothing ever writes to the file.
    """

    entry: Entry

    @staticmethod
    def __new__(cls, entry: Entry) -> "StoredTensor":
        """A tensor of the entry's shape and dtype on the CPU."""
        made: StoredTensor = Tensor._make_wrapper_subclass(cls, entry.shape, dtype=entry.dtype)
        made.entry = entry
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What every use of the tensor comes to."""
        kwargs = kwargs or {}
        if func in DESCRIBING:
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        if isinstance(args[0], StoredTensor) and not kwargs and (found := _partly(func, *args)) is not None:
            return found
        args, kwargs = pytree.tree_map_only(StoredTensor, _whole, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # PyTorch's own stub lacks the class and the function
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """As above, for what reaches the tensor past Python."""
        args, kwargs = pytree.tree_map_only(StoredTensor, _whole, (args, kwargs or {}))
        return func(*args, **kwargs)


DESCRIBING = frozenset(
    [
        *(
            getattr(Tensor, name).__get__
            for name in ("shape", "dtype", "device", "layout", "ndim", "nbytes", "itemsize")
        ),
        *(
            getattr(Tensor, name).__get__
            for name in ("is_meta", "is_quantized", "is_sparse", "is_cuda", "requires_grad")
        ),
        *(getattr(Tensor, name) for name in ("dim", "size", "numel", "element_size", "stride", "is_contiguous")),
        *(getattr(Tensor, name) for name in ("is_floating_point", "is_complex", "__len__", "__hash__")),
        *(torch.is_floating_point, torch.is_complex, torch.numel),
    ]
)


def _partly(func: Any, stored: StoredTensor, *how: Any) -> Tensor | None:
    """What can be given without reading the whole tensor; None where it must be read."""
    entry = stored.entry
    if func is Tensor.detach and not how:
        return StoredTensor(entry)
    if entry.stride is not None or not entry.nbytes or not entry.shape:
        return None
    if (func in (Tensor.reshape, Tensor.view) and how == (-1,)) or (func is Tensor.flatten and not how):
        return StoredTensor(replace(entry, shape=(prod(entry.shape),)))
    if func is Tensor.__getitem__ and len(how) == 1:
        (index,) = how
        slices = index if isinstance(index, tuple) else (index,)
        if len(slices) <= len(entry.shape) and all(isinstance(i, slice) and (i.step or 1) > 0 for i in slices):
            return entry.part(slices)
    elif func in (Tensor.index_select, torch.index_select) and len(how) == 2 and how[0] == 0:
        index = how[1]
    else:
        return None
    if type(index) is not Tensor or index.dtype != torch.int64 or index.dim() != 1 or not len(index):
        return None
    if not 0 <= int(index.min()) <= int(index.max()) < entry.shape[0]:
        return None  # PyTorch handles it, or raises what is wrong
    return entry.rows_at(index.cpu())


def _whole(stored: StoredTensor) -> Tensor:
    return stored.entry.whole()


class StoredTensors(Mapping[str, Tensor]):
    """Tensors that lie in files, by name."""

    def __init__(self, entries: Mapping[str, Entry]):
        self.entries = dict(entries)

    def __getitem__(self, name: str) -> Tensor:
        return StoredTensor(self.entries[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
