"""Fixed random features of inputs: the same on every client, so that moments of them can be compared."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

SEED = 20_240_131
"""Of all random filters. Statistics of other filters cannot be compared, so it is part of the file format."""
FILTERS = 64
KERNEL = 5
CELLS = {1: 16, 2: 4, 3: 2}
"""Cells per axis that a filter's outputs are averaged in, by the number of axes."""
SIDE = 32
"""Positions per axis that are looked at; larger inputs are averaged to so many."""
PROJECTIONS = 512
LINEAR = 256
"""Vectors of at most so many entries are features themselves, beside their projections."""
BUCKETS = 4096
DIRECTIONS = 256


def random_features(tensors: Sequence[Tensor]) -> Tensor:
    """Features of every sample of a batch, float32 of shape `(samples, features)`.

    - Images, signals and volumes `(samples, channels, *sides)` with one to three sides: the mean, over 16, 4 x 4 or
      2 x 2 x 2 cells, of the positive part of 64 random filters that reach over five positions per axis.
    - Vectors: the positive parts of 512 random projections, and the entries themselves where they are few.
    - Whole numbers: the mean, over all positions, of a random vector per value.

    Features of several tensors stand side by side.

    Args:
        tensors: the inputs, each of shape `(samples, ...)`.

    Example:
        >>> random_features([torch.zeros(7, 3, 32, 32)]).shape
        torch.Size([7, 1024])
    """
    return torch.cat([_features(tensor.detach().cpu()) for tensor in tensors], 1)


def _features(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return _value_features(tensor)
    sides = tensor.dim() - 2
    if sides not in CELLS:
        return _vector_features(tensor.float().flatten(1))
    pool: Callable[[Tensor, tuple[int, ...]], Tensor] = getattr(F, f"adaptive_avg_pool{sides}d")
    convolve: Callable[[Tensor, Tensor], Tensor] = getattr(F, f"conv{sides}d")
    x = tensor.float()
    if any(side > SIDE for side in x.shape[2:]):
        x = pool(x, tuple(min(side, SIDE) for side in x.shape[2:]))
    filters = _filters(x.shape[1], tuple(x.shape[2:]))
    seen = convolve(x, filters).relu_()
    return pool(seen, tuple(min(side, CELLS[sides]) for side in seen.shape[2:])).flatten(1)


@lru_cache(maxsize=8)
def _filters(channels: int, sides: tuple[int, ...]) -> Tensor:
    """Filters of unit norm; where they reach over enough positions they do not see the mean."""
    kernel = tuple(min(side, KERNEL) for side in sides)
    drawn = torch.randn(FILTERS, channels, *kernel, generator=torch.Generator().manual_seed(SEED))
    if prod(kernel) >= KERNEL:
        drawn = drawn - drawn.flatten(1).mean(1).reshape(-1, *[1] * (len(sides) + 1))
    size = torch.linalg.vector_norm(drawn.flatten(1), dim=1)
    filters: Tensor = drawn / size.reshape(-1, *[1] * (len(sides) + 1))
    return filters


def _vector_features(rows: Tensor) -> Tensor:
    weights, shifts = _projections(rows.shape[1])
    projected = (rows @ weights + shifts).relu_()
    return torch.cat([rows, projected], 1) if rows.shape[1] <= LINEAR else projected


@lru_cache(maxsize=8)
def _projections(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    shifts = torch.randn(PROJECTIONS, generator=generator)
    return torch.randn(size, PROJECTIONS, generator=generator) / max(1, size) ** 0.5, shifts


def _value_features(values: Tensor) -> Tensor:
    table = _value_vectors()
    rows = values.reshape(len(values), -1).long() % BUCKETS
    return torch.stack([table[row].mean(0) for row in rows])


@lru_cache(maxsize=1)
def _value_vectors() -> Tensor:
    return torch.randn(BUCKETS, DIRECTIONS, generator=torch.Generator().manual_seed(SEED))
