"""How neurons lie along one dimension of a tensor: a sum of segments of products of factors.

A dimension of size 12 may be `3 heads x 4 channels`, written `((heads, channels),)`, or a
concatenation of `4 + 8` neurons, written `((a,), (b,))`. A factor belongs to a group, or to nobody
(`group=None`, an axis that never moves), and a product may hold a sum (`h * (q + k + v)`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from types import MappingProxyType
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Role: TypeAlias = Literal["out", "in", "elementwise"]
"""What a tensor does to the units on an axis: it makes them, reads them, or acts on each alone."""
RECIPES = 4096  # layouts that are remembered multiplied out: a network has a few hundred different ones


@dataclass(frozen=True, slots=True)
class Factor:
    """One variable of a layout: `size` positions that belong to `group` (None: to no group)."""

    group: str | None
    size: int


Layout: TypeAlias = tuple["Segment", ...]
LayoutPart: TypeAlias = Factor | Layout
Segment: TypeAlias = tuple[LayoutPart, ...]


def layout_size(layout: Layout) -> int:
    """Positions along the dimension: the sum over segments of the product over factors.

    Example:
        >>> layout_size(((Factor("heads", 3), Factor(None, 4)), (Factor("b", 8),)))
        20
    """
    return sum(segment_size(segment) for segment in layout)


def part_size(part: LayoutPart) -> int:
    """Positions of one part of a product: a factor's size, or that of a nested layout."""
    return part.size if isinstance(part, Factor) else layout_size(part)


def segment_size(segment: Segment) -> int:
    """Positions of one segment: the product of its factors."""
    return prod(part_size(part) for part in segment)


@lru_cache(maxsize=RECIPES)
def sizes_along(layout: Layout) -> Mapping[str, int]:
    """The groups that lie along the dimension, left to right, and their sizes."""
    found = {f.group: f.size for term in terms(layout) for f in term.factors if f.group is not None}
    return MappingProxyType(found)


def resize_layout(layout: Layout, sizes: Mapping[str, int]) -> Layout:
    """The same layout with the groups named in `sizes` given new sizes."""
    return tuple(
        tuple(
            Factor(part.group, sizes.get(part.group, part.size) if part.group else part.size)
            if isinstance(part, Factor)
            else resize_layout(part, sizes)
            for part in segment
        )
        for segment in layout
    )


@dataclass(frozen=True, slots=True)
class Term:
    """One product of factors, all sums multiplied out: number d_i of factor i sits at start + Σ d_i · strides[i]."""

    start: int
    factors: tuple[Factor, ...]
    strides: tuple[int, ...]

    def positions(self) -> Tensor:
        """Where everything sits, one dimension per factor, int64."""
        return grid(self.start, [factor.size for factor in self.factors], self.strides)


@lru_cache(maxsize=RECIPES)
def terms(layout: Layout) -> tuple[Term, ...]:
    """The layout as products of factors, left to right; together they cover every position once.

    Example:
        >>> nested = ((Factor("head", 2), ((Factor("q", 3),), (Factor("k", 3),))),)
        >>> [(term.start, term.strides) for term in terms(nested)]
        [(0, (6, 1)), (3, (6, 1))]
    """
    return tuple(_expanded(layout, (), Term(0, (), ())))


def _expanded(layout: Layout, rest: Segment, done: Term) -> Iterator[Term]:
    # every segment of the layout, times what is done already (left of it), times the rest (right of it)
    start, stride = done.start, segment_size(rest)
    for segment in layout:
        yield from _multiplied((*segment, *rest), Term(start, done.factors, done.strides))
        start += segment_size(segment) * stride


def _multiplied(segment: Segment, done: Term) -> Iterator[Term]:
    if not segment:
        yield done
        return
    part, rest = segment[0], segment[1:]
    if isinstance(part, Factor):
        strides = (*done.strides, segment_size(rest))
        yield from _multiplied(rest, Term(done.start, (*done.factors, part), strides))
    else:
        yield from _expanded(part, rest, done)


def grid(start: int, sizes: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Give start + Σ d_i · strides[i] for all numbers d_i below sizes[i], shape `sizes`, int64."""
    places = torch.tensor(start)
    for size, stride in zip(sizes, strides, strict=True):
        places = places[..., None] + torch.arange(size) * stride
    return places


@dataclass(frozen=True, slots=True)
class Span:
    """Where the units of one factor sit: unit i at `start + i*stride` plus every combination of `inner`."""

    group: str
    size: int
    start: int
    stride: int
    inner: tuple[tuple[int, int], ...]


def spans(layout: Layout) -> Iterator[Span]:
    """Every place in the layout that belongs to a group, left to right; sums beside it are not multiplied out.

    Example:
        >>> list(spans(((Factor(None, 2), Factor("c", 3), Factor(None, 4)),)))
        [Span(group='c', size=3, start=0, stride=4, inner=((2, 12), (4, 1)))]
    """
    yield from _spans(layout, 0, 1, ())


def _spans(layout: Layout, start: int, stride: int, outer: tuple[tuple[int, int], ...]) -> Iterator[Span]:
    # `stride` is the distance of two neighbours of this layout, `outer` the repeats left and right of it
    for segment in layout:
        step = segment_size(segment) * stride
        before: tuple[tuple[int, int], ...] = ()
        left = step
        for part in segment:
            size = part_size(part)
            left //= size
            after = ((left // stride, stride),) if left > stride else ()
            inner = (*outer, *before, *after)
            if isinstance(part, Factor):
                if part.group is not None:
                    yield Span(part.group, size, start, left, tuple(i for i in inner if i[0] > 1))
            else:
                yield from _spans(part, start, left, inner)
            before = (*before, (size, left))
        start += step
