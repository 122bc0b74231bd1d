"""Row-major regrouping of blocks: a dim of blocks merged with what follows it is a sum, and a sum split is blocks."""

from collections.abc import Sequence
from math import prod

from neurograft.tracing.algebra import reason, reshape
from neurograft.tracing.blocks import (
    Axes,
    Blank,
    Blocks,
    Label,
    cut,
    filled,
    join,
    lengths_of,
    settled,
    sizes_of,
    with_size,
)
from neurograft.tracing.reasons import Because


def viewed(label: Label, shape: Sequence[int], why: Because) -> Label:
    """The label after a row-major reshape.

    Example:
        >>> from neurograft.tracing.algebra import ONE, free
        >>> a, b = free(3), free(3)
        >>> stacked = join(0, [(ONE, a), (ONE, b)], "an example")
        >>> flat = viewed(stacked, [6], "an example")
        >>> flat == (a + b,)
        True
        >>> isinstance(viewed(flat, [2, 3], "an example"), Blocks)
        True
    """
    label = filled(label)
    if 0 in shape:
        return reshape(settled(label, why), shape, why)
    blocks = label if isinstance(label, Blocks) else _sum_to_split(label, shape, why)
    found = None if blocks is None else _by_block(blocks, shape, why)
    return reshape(settled(label, why), shape, why) if found is None else found


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    # dims of equal product, those of size 1 left out
    mine = [d for d, n in enumerate(old) if n > 1]
    theirs = [d for d, n in enumerate(new) if n > 1]
    groups = []
    while mine:
        left, right = [mine.pop(0)], [theirs.pop(0)]
        while prod(old[d] for d in left) != prod(new[d] for d in right):
            if prod(old[d] for d in left) < prod(new[d] for d in right):
                left.append(mine.pop(0))
            else:
                right.append(theirs.pop(0))
        groups.append((left, right))
    return groups


def _sum_to_split(axes: Label, shape: Sequence[int], why: Because) -> Blocks | None:
    # a sum whose parts become positions of a dim of their own: every part is a block
    if isinstance(axes, (Blank, Blocks)):
        return None
    sizes = sizes_of(axes)
    for old, new in _groups(sizes, shape):
        axis = axes[old[0]]
        if len(new) < 2 or len(axis) < 2 or reason(axis) is not None:
            continue
        parts: list[Axes] = [(*axes[: old[0]], (segment,), *axes[old[0] + 1 :]) for segment in axis]
        rest = prod(shape[d] for d in new[1:])
        if all(sizes_of(part)[old[0]] * prod(sizes[d] for d in old[1:]) % rest == 0 for part in parts):
            return Blocks(old[0], tuple(parts), why)
    return None


def _by_block(blocks: Blocks, shape: Sequence[int], why: Because) -> Label | None:
    # None if a block would be torn apart or mixed with others
    sizes = sizes_of(blocks)
    group = next((g for g in _groups(sizes, shape) if blocks.dim in g[0]), None)
    if group is None or group[0][0] != blocks.dim:
        return None
    old, new = group
    inner, rest = prod(sizes[d] for d in old[1:]), prod(shape[d] for d in new[1:])
    lengths = lengths_of(blocks)
    if any(n * inner % rest for n in lengths):
        if rest % inner or len(new) < 2:
            return None
        lengths = [rest // inner] * shape[new[0]]
    found = []
    for part, n in zip(cut(blocks, blocks.dim, lengths, why), lengths, strict=True):
        found.append(viewed(part, with_size(shape, new[0], n * inner // rest), why))
    return join(new[0], found, blocks.why)


__all__ = ["viewed"]
