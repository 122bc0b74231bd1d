"""Tensors made of blocks: side by side along one dim, every block with axes of its own along the others.

`torch.stack([a, b])` has a dim of two positions, and whose neurons its other dims index depends on the position. The
label of such a tensor is `Blocks(0, (label of a, label of b))`. A tensor that is filled part by part starts as
`Blank`: it gets variables where something is written to it or read from it, one part at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

from neurograft.tracing.algebra import ONE, Axis, axis_size, canon, divide, fixed, free, reason, unify
from neurograft.tracing.reasons import Because

Axes: TypeAlias = tuple[Axis, ...]


@dataclass(slots=True, eq=False)
class Blank:
    """A tensor of one value, to be written to: nothing is known of its `shape` dims but their sizes.

    What becomes known is its `label`. A blank of which one position was selected is `behind`, a blank with one dim
    less, with the dim put back.
    """

    shape: tuple[int, ...]
    label: "Label | None" = None
    behind: "tuple[Blank, int] | None" = None


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Labels of blocks that lie side by side along `dim`, which they have too; `why` positions there mean something."""

    dim: int
    parts: "tuple[Label, ...]"
    why: Because


Label: TypeAlias = Axes | Blocks | Blank


def sizes_of(label: Label) -> tuple[int, ...]:
    """The shape of the tensor."""
    if isinstance(label, Blank):
        return label.shape
    if isinstance(label, Blocks):
        first = sizes_of(label.parts[0])
        return with_size(first, label.dim, sum(sizes_of(part)[label.dim] for part in label.parts))
    return tuple(axis_size(axis) for axis in label)


def with_size(sizes: Sequence[int], dim: int, size: int) -> tuple[int, ...]:
    """The sizes with one of them exchanged."""
    return (*sizes[:dim], size, *sizes[dim + 1 :])


def looked(label: Label) -> Label:
    """The label as it is known by now, where it is blank left blank."""
    if isinstance(label, Blank):
        if label.label is not None:
            return looked(label.label)
        if label.behind is None:
            return label
        behind = looked(label.behind[0])
        return label if isinstance(behind, Blank) else inserted(behind, label.behind[1])
    if isinstance(label, Blocks):
        return join(label.dim, [looked(part) for part in label.parts], label.why)
    return tuple(canon(axis) for axis in label)


def filled(label: Label) -> Label:
    """The label with new variables for what is blank."""
    label = looked(label)
    if isinstance(label, Blank):
        if label.behind is not None:
            filled(label.behind[0])
        else:
            label.label = tuple(free(n) for n in label.shape)
        return looked(label)
    if isinstance(label, Blocks):
        return join(label.dim, [filled(part) for part in label.parts], label.why)
    return label


def blocks_of(label: Label) -> Iterator[Axes]:
    """The axes of every block."""
    if isinstance(label, Blocks):
        for part in label.parts:
            yield from blocks_of(part)
    elif not isinstance(label, Blank):
        yield label


def axes_at(label: Label, dim: int) -> Iterator[Axis]:
    """What dim `dim` is in every block."""
    if isinstance(label, Blocks):
        for part in label.parts:
            yield from axes_at(part, dim)
    elif not isinstance(label, Blank):
        yield label[dim]


def join(dim: int, labels: Sequence[Label], why: Because) -> Label:
    """Blocks side by side along `dim`; neighbours that agree in all other dims are one."""
    runs: list[list[Label]] = []
    for label in labels:
        for part in label.parts if isinstance(label, Blocks) and label.dim == dim else (label,):
            if runs and _agree(runs[-1][0], part, dim):
                runs[-1].append(part)
            else:
                runs.append([part])
    joined = tuple(_joined(run, dim) for run in runs)
    if len(joined) > 1:
        return Blocks(dim, joined, why)
    (only,) = joined
    if not isinstance(only, (Blank, Blocks)) and axis_size(only[dim]) > 1 and not any(only[dim]):
        # single positions have no variable that could have a reason
        return (*only[:dim], fixed(axis_size(only[dim]), why), *only[dim + 1 :])
    return only


def _agree(one: Label, other: Label, dim: int) -> bool:
    if isinstance(one, (Blank, Blocks)) or isinstance(other, (Blank, Blocks)):
        return False
    return all(
        d == dim or a == b or (reason(a) is not None and reason(b) is not None)
        for d, (a, b) in enumerate(zip(one, other, strict=True))
    )


def _joined(run: Sequence[Label], dim: int) -> Label:
    first = run[0]
    if len(run) == 1 or isinstance(first, (Blank, Blocks)):
        return first
    whole = tuple(segment for part in run for axis in axes_at(part, dim) for segment in axis)
    return (*first[:dim], whole, *first[dim + 1 :])


def settled(label: Label, why: Because) -> Axes:
    """One axis per dim, whatever the block: in every dim but theirs, the axes of all blocks are the same neurons."""
    label = filled(label)
    if not isinstance(label, Blocks):
        assert not isinstance(label, Blank)
        return label
    every = [settled(part, why) for part in label.parts]
    for axes in every[1:]:
        for d, (a, b) in enumerate(zip(every[0], axes, strict=True)):
            if d != label.dim:
                unify(a, b, why)
    found = join(label.dim, [tuple(canon(axis) for axis in axes) for axes in every], label.why)
    if isinstance(found, (Blank, Blocks)):
        raise ValueError("the axes of blocks do not meet")
    return found


def meet(one: Label, other: Label, why: Because) -> None:
    """Equal positions of two tensors of one shape index the same neurons."""
    if isinstance(one, Blank) or isinstance(other, Blank):
        return
    if isinstance(one, Blocks) or isinstance(other, Blocks):
        blocks = one if isinstance(one, Blocks) else other
        assert isinstance(blocks, Blocks)
        lengths = lengths_of(blocks)
        for a, b in zip(cut(one, blocks.dim, lengths, why), cut(other, blocks.dim, lengths, why), strict=True):
            meet(a, b, why)
        return
    for left, right in zip(one, other, strict=True):
        unify(left, right, why)


def lengths_of(blocks: Blocks) -> list[int]:
    """How many positions each block has along their dim."""
    return [sizes_of(part)[blocks.dim] for part in blocks.parts]


def common(labels: Sequence[tuple[Label, int]]) -> list[int]:
    """Lengths along a dim of each label (all of one size) that cut none of their blocks there."""
    ends: set[int] = set()
    for label, dim in labels:
        whole = [sizes_of(label)[dim]]
        ends |= set(accumulate(lengths_of(label) if isinstance(label, Blocks) and label.dim == dim else whole))
    ordered = sorted(ends)
    return [end - start for start, end in zip([0, *ordered], ordered, strict=False)]


def cut(label: Label, dim: int, lengths: Sequence[int], why: Because) -> list[Label]:
    """The label as blocks of these lengths along `dim`."""
    if isinstance(label, Blank):
        return [Blank(with_size(label.shape, dim, n)) for n in lengths]
    if not isinstance(label, Blocks):
        return [(*label[:dim], axis, *label[dim + 1 :]) for axis in divide(label[dim], lengths, why)]
    if label.dim != dim:
        rows = [cut(part, dim, lengths, why) for part in label.parts]
        return [join(label.dim, column, label.why) for column in zip(*rows, strict=True)]
    found = []
    for piece in _split_at(label, lengths, why):
        nothing = [] if piece else cut(label.parts[0], dim, [0, sizes_of(label.parts[0])[dim]], why)[:1]
        found.append(join(dim, piece or nothing, label.why))
    return found


def _split_at(blocks: Blocks, lengths: Sequence[int], why: Because) -> list[list[Label]]:
    ends = list(accumulate(lengths))
    pieces: list[list[Label]] = [[] for _ in lengths]
    start = 0
    for part, size in zip(blocks.parts, lengths_of(blocks), strict=True):
        # the wanted lengths as far as they lie in this block
        shares = [min(end, start + size) - max(end - n, start) for end, n in zip(ends, lengths, strict=True)]
        given = [i for i, share in enumerate(shares) if share > 0]
        found = [part] if len(given) == 1 else cut(part, blocks.dim, [shares[i] for i in given], why)
        for i, piece in zip(given, found, strict=True):
            pieces[i].append(piece)
        start += size
    return pieces


def taken(label: Label, dim: int, places: Sequence[int], why: Because) -> Label:
    """The label of these positions along `dim`, in this order."""
    size = sizes_of(label)[dim]
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    found = []
    for run in runs:
        lengths = [run[0], len(run), size - run[-1] - 1]
        pieces = cut(label, dim, [n for n in lengths if n], why)
        found.append(pieces[1 if run[0] else 0])
    return join(dim, found, label.why if isinstance(label, Blocks) else why)


def inserted(label: Label, dim: int) -> Label:
    """The label with a new dim of size 1."""
    if isinstance(label, Blank):
        return Blank((*label.shape[:dim], 1, *label.shape[dim:]), behind=(label, dim))
    if isinstance(label, Blocks):
        return Blocks(label.dim + (label.dim >= dim), tuple(inserted(part, dim) for part in label.parts), label.why)
    return (*label[:dim], ONE, *label[dim:])


def dropped(label: Label, dim: int) -> Label:
    """The label without a dim of size 1, which a blank remembers."""
    if isinstance(label, Blocks):
        return Blocks(label.dim - (label.dim > dim), tuple(dropped(part, dim) for part in label.parts), label.why)
    if isinstance(label, Blank):
        if label.behind is None:
            label.behind = (Blank((*label.shape[:dim], *label.shape[dim + 1 :])), dim)
        if label.behind[1] == dim:
            return label.behind[0]
        return dropped(filled(label), dim)
    return (*label[:dim], *label[dim + 1 :])


def region(label: Label, dim: int, start: int, length: int, why: Because) -> Label:
    """The label of some positions along `dim`; what is blank is cut there, and stays blank."""
    label = looked(label)
    if isinstance(label, Blank):
        return _region_of_blank(label, dim, start, length, why)
    if not isinstance(label, Blocks):
        return taken(label, dim, range(start, start + length), why)
    if label.dim != dim:
        return join(label.dim, [region(part, dim, start, length, why) for part in label.parts], label.why)
    found, at = [], 0
    for part, size in zip(label.parts, lengths_of(label), strict=True):
        first, last = max(start, at), min(start + length, at + size)
        if first < last:
            found.append(region(part, dim, first - at, last - first, why))
        at += size
    return join(dim, found, label.why)


def _region_of_blank(blank: Blank, dim: int, start: int, length: int, why: Because) -> Label:
    if length == blank.shape[dim]:
        return blank
    if blank.behind is not None:
        inner, gone = blank.behind
        return inserted(region(inner, dim - (dim > gone), start, length, why), gone)
    lengths = (start, length, blank.shape[dim] - start - length)
    pieces = [Blank(with_size(blank.shape, dim, n)) for n in lengths]
    blank.label = Blocks(dim, tuple(piece for piece, n in zip(pieces, lengths, strict=True) if n), why)
    return pieces[1]


def written(before: Label, after: Label, why: Because) -> None:
    """A tensor was written to: it is what it was, and what was written to it."""
    before = looked(before)
    if isinstance(before, Blank):
        if before is not after:
            become(before, after)
    elif sizes_of(before) == sizes_of(after):
        meet(before, after, why)


def become(blank: Blank, label: Label) -> None:
    """All of a blank is written to."""
    if blank.behind is None:
        blank.label = label
    else:
        inner, gone = blank.behind
        become(inner, dropped(label, gone))


__all__ = [
    "Axes",
    "Blank",
    "Blocks",
    "Label",
    "axes_at",
    "become",
    "common",
    "cut",
    "dropped",
    "filled",
    "inserted",
    "join",
    "lengths_of",
    "looked",
    "meet",
    "region",
    "settled",
    "sizes_of",
    "taken",
    "with_size",
    "written",
]
