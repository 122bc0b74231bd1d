"""Sparse matrices on the axes of one tensor, applied by gathering and scattering a block of rows at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

STEP = 1 << 18  # entries gathered at a time, so that what is gathered, widened and scaled stays in the cache


@dataclass(frozen=True, eq=False, slots=True)
class AxisPairs:
    """A sparse matrix over the positions of one axis, targets in order: `target`, `source`, `weight` (None: ones)."""

    target: Tensor | slice
    source: Tensor | slice
    weight: Tensor | None


def whole_axis(size: int) -> AxisPairs:
    """The identity."""
    return AxisPairs(slice(0, size), slice(0, size), None)


def as_slice(index: Tensor) -> Tensor | slice:
    """Indices that follow one another as a slice, which takes no memory and reads in one piece."""
    if len(index) and bool((index[1:] - index[:-1] == 1).all()):
        return slice(int(index[0]), int(index[-1]) + 1)
    return index


def at_targets(axis: AxisPairs, targets: Tensor) -> AxisPairs:
    """The pairs whose targets are among those marked."""
    target, source = (torch.arange(x.start, x.stop) if isinstance(x, slice) else x for x in (axis.target, axis.source))
    chosen = targets[target]
    weight = None if axis.weight is None else axis.weight[chosen]
    return AxisPairs(as_slice(target[chosen]), as_slice(source[chosen]), weight)


def between(axis: AxisPairs, start: int, stop: int) -> AxisPairs:
    """The pairs whose targets lie from `start` to before `stop`, with targets counted from `start`."""
    if isinstance(axis.target, slice):
        low, high = (min(max(x - axis.target.start, 0), length(axis.target)) for x in (start, stop))
        target: Tensor | slice = slice(axis.target.start + low - start, axis.target.start + high - start)
    else:
        low, high = (int(torch.searchsorted(axis.target, x)) for x in (start, stop))
        target = axis.target[low:high] - start
    source = (
        slice(axis.source.start + low, axis.source.start + high)
        if isinstance(axis.source, slice)
        else axis.source[low:high]
    )
    return AxisPairs(target, source, None if axis.weight is None else axis.weight[low:high])


def scatter(out: Tensor, tensor: Tensor, axes: Sequence[AxisPairs], c: float) -> None:
    """out[targets] += c · weights · tensor[sources], a block of rows at a time."""
    first, *rest = axes
    count = length(first.source)
    per_row = prod(length(axis.source) for axis in rest)
    if not count or not per_row:
        return
    step = max(1, STEP // per_row)
    for start in range(0, count, step):
        stop = min(start + step, count)
        block = tensor[part_of_index(first.source, start, stop, tensor.device)]
        for dim, axis in enumerate(rest, 1):
            block = _take(block, dim, axis.source)
        wide = block.to(out.dtype)
        scale: Tensor | float = c
        for dim, axis in enumerate(axes):
            if axis.weight is not None:
                weight = axis.weight[start:stop] if dim == 0 else axis.weight
                scale = scale * weight.to(out).reshape(-1, *[1] * (out.dim() - dim - 1))
        if isinstance(scale, Tensor) or scale != 1:
            wide = wide * scale if wide is block else wide.mul_(scale)
        _put(out, wide, [part_of_index(first.target, start, stop, out.device), *(axis.target for axis in rest)])


def length(index: Tensor | slice) -> int:
    """How many positions are indexed."""
    return index.stop - index.start if isinstance(index, slice) else len(index)


def part_of_index(index: Tensor | slice, start: int, stop: int, device: torch.device) -> Tensor | slice:
    """Indices from `start` to before `stop` among these."""
    if isinstance(index, slice):
        return slice(index.start + start, index.start + stop)
    return index[start:stop].to(device)


def _take(block: Tensor, dim: int, source: Tensor | slice) -> Tensor:
    if isinstance(source, slice):
        return block.narrow(dim, source.start, source.stop - source.start)
    return block.index_select(dim, source.to(block.device))


def _put(out: Tensor, block: Tensor, targets: list[Tensor | slice]) -> None:
    if all(isinstance(target, slice) for target in targets):
        out[tuple(targets)] += block
        return
    moved = [d for d, target in enumerate(targets) if not isinstance(target, slice)]
    view = out
    for d, target in enumerate(targets):
        if isinstance(target, slice):
            view = view.narrow(d, target.start, target.stop - target.start)
    if len(moved) == 1:
        index = targets[moved[0]]
        assert isinstance(index, Tensor)
        view.index_add_(moved[0], index.to(out.device), block)
        return
    grid = []
    for d in range(out.dim()):
        target = targets[d]
        index = torch.arange(block.shape[d]) if isinstance(target, slice) else target
        grid.append(index.to(out.device).reshape(-1, *[1] * (out.dim() - d - 1)))
    view.index_put_(tuple(grid), block, accumulate=True)
