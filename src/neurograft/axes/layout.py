"""How neurons lie along one dimension of a tensor: a sum of segments of products of factors.

A dimension of size 12 may be `3 heads x 4 channels`, written `((heads, channels),)`, or a
concatenation of `4 + 8` neurons, written `((a,), (b,))`. A factor belongs to a group, or to nobody
(`group=None`, an axis that never moves), and a product may hold a sum (`h * (q + k + v)`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias

Role: TypeAlias = Literal["out", "in", "elementwise"]
"""What a tensor does to the units on an axis: it makes them, reads them, or acts on each alone."""


@dataclass(frozen=True, slots=True)
class Factor:
    """One variable of a layout: `size` positions that belong to `group` (None: to no group)."""

    group: str | None
    size: int


Layout: TypeAlias = tuple["Segment", ...]
Part: TypeAlias = Factor | Layout
Segment: TypeAlias = tuple[Part, ...]


def layout_size(layout: Layout) -> int:
    """Positions along the dimension: the sum over segments of the product over factors.

    Example:
        >>> layout_size(((Factor("heads", 3), Factor(None, 4)), (Factor("b", 8),)))
        20
    """
    return sum(segment_size(segment) for segment in layout)


def part_size(part: Part) -> int:
    """Positions of one part of a product: a factor's size, or that of a nested layout."""
    return part.size if isinstance(part, Factor) else layout_size(part)


def segment_size(segment: Segment) -> int:
    """Positions of one segment: the product of its factors."""
    return prod(part_size(part) for part in segment)


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
class Span:
    """Where the units of one factor sit: unit i at `start + i*stride` plus every combination of `inner`."""

    group: str
    size: int
    start: int
    stride: int
    inner: tuple[tuple[int, int], ...]


def spans(layout: Layout) -> Iterator[Span]:
    """Every place in the layout that belongs to a group, left to right.

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
