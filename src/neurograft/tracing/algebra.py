"""The algebra of axes: a union-find over variables that may later turn out to be sums or products.

An axis is a sum of segments (from `cat`, `split`) of products of factors (from `view`, `flatten`). A factor
is a variable. Learning more about an axis only ever refines it: two variables become one (`unify`), a variable
becomes a product (`reshape`) or a sum (`cut`), or its positions get a meaning and it is fixed (`fix`). So what
is free in the end is exactly what no operation objected to. No tensors are involved here.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TypeAlias

from neurograft.axes.layout import Factor, Layout
from neurograft.tracing.reasons import SINGLE, Because, FixedReason, Why
from neurograft.tracing.reasons import why as reason_of


class Var:
    """One factor: `size` positions; perhaps the same as `parent`, perhaps bound to `expr`, perhaps fixed (`why`)."""

    __slots__ = ("expr", "parent", "size", "why")

    def __init__(self, size: int, why: Why | None = None):
        self.size = size
        self.parent: Var | None = None
        self.expr: Axis | None = None
        self.why = why

    @property
    def fixed(self) -> bool:
        """Whether its positions have a meaning."""
        return self.why is not None


AxisSegment: TypeAlias = tuple[Var, ...]
Axis: TypeAlias = tuple[AxisSegment, ...]

ONE: Axis = ((),)


def free(size: int) -> Axis:
    """A new axis that nothing is known of; size 1 is the empty product, size 0 the empty sum."""
    return ((Var(size),),) if size > 1 else ONE[:size]


def fixed(size: int, why: Because) -> Axis:
    """A new axis whose positions have a meaning."""
    return ((Var(size, reason_of(why)),),) if size > 1 else ONE[:size]


def segment_size(segment: AxisSegment) -> int:
    """Positions of one segment."""
    return prod(var.size for var in segment)


def axis_size(axis: Axis) -> int:
    """Positions of the axis."""
    if len(axis) == 1 and len(axis[0]) == 1:
        return axis[0][0].size
    return sum(prod(var.size for var in segment) for segment in axis)


def find(var: Var) -> Var:
    """The variable that stands for `var` now."""
    root = var
    while root.parent is not None:
        root = root.parent
    while var is not root:
        assert var.parent is not None
        var.parent, var = root, var.parent
    return root


def canon(axis: Axis) -> Axis:
    """The axis as it is known by now: products inlined, a leading sum distributed, a sum further right left nested.

    `sum(a, b) * c` is `a*c + b*c`, but `h * sum(q, k)` has no flat form.
    """
    for segment in axis:
        for var in segment:
            if var.parent is not None or var.expr is not None:
                return tuple(part for segment in axis for part in _canon_segment(segment))
    return axis


def _canon_segment(segment: AxisSegment) -> list[AxisSegment]:
    done: AxisSegment = ()
    rest = segment
    while rest:
        var, rest = find(rest[0]), rest[1:]
        if var.expr is None:
            done = (*done, var)
        elif len(var.expr) == 1:
            # inlined before it is looked into: a product that starts with a sum is that sum in its new place
            rest = var.expr[0] + rest
        elif done:
            var.expr = canon(var.expr)
            done = (*done, var)
        else:
            return [part for left in canon(var.expr) for part in _canon_segment(left + rest)]
    return [done]


def leaves(axis: Axis) -> Iterator[Var]:
    """Every unbound variable of the axis, left to right, repeated ones repeatedly."""
    for segment in canon(axis):
        for var in segment:
            if var.expr is None:
                yield var
            else:
                yield from leaves(var.expr)


def reason(axis: Axis) -> Why | None:
    """Why the axis is wholly fixed; None if a part of it is free. Size 0 and 1 count as fixed."""
    if len(axis) == 1 and len(axis[0]) == 1 and axis[0][0].parent is None and axis[0][0].expr is None:
        return axis[0][0].why
    why = SINGLE
    for var in leaves(axis):
        if var.why is None:
            return None
        why = var.why
    return why


def fix(axis: Axis, why: Because) -> None:
    """Fix all variables of the axis; those that are fixed keep their first reason."""
    for var in leaves(axis):
        if var.why is None:
            var.why = reason_of(why)


def _conflict(text: str) -> Why:
    return Why(FixedReason.CONFLICT, text)


def _bind(var: Var, expr: Axis) -> None:
    var.expr = expr
    if var.why is not None:
        fix(expr, var.why)


def _join(a: Var, b: Var, why: Because) -> None:
    # equal sizes, at least one of them not yet the other; a bound variable stays the root
    if a.expr is not None and b.expr is not None:
        unify(a.expr, b.expr, why)
    elif a.expr is not None:
        a, b = b, a
    a.parent = b
    if b.expr is not None and a.why is not None:
        fix(b.expr, a.why)
    elif b.why is None:
        b.why = a.why


def _factor(big: Var, small: Var, why: Because) -> bool:
    # refine `big` to `something * small`; False if a segment of it cannot be
    share = big.size // small.size
    if big.expr is None:
        _bind(big, ((*(v for s in free(share) for v in s), small),))
        return True
    expr = canon(big.expr)
    if any(segment_size(segment) % small.size for segment in expr):
        return False
    left: Axis = ()
    for segment in expr:
        part = free(segment_size(segment) // small.size)
        unify((segment,), ((*part[0], small),), why)
        left = left + part
    outer = Var(share)
    outer.expr = left
    big.expr = ((outer, small),)
    return True


def _cut(segment: AxisSegment, size: int) -> None:
    # make a boundary after (or, inside a unit, on the way to) `size` positions of the segment
    lead, unit = segment[0], segment_size(segment[1:])
    at = max(size // unit, 1)
    _bind(lead, free(at) + free(lead.size - at))


def _match(x: AxisSegment, y: AxisSegment, why: Because) -> bool:
    # one step towards equality of two segments of one size; False if they cannot be made equal
    i = -1
    while x[i] is y[i]:
        i -= 1
    p, q = x[i], y[i]
    if p.size == q.size:
        _join(p, q, why)
        return True
    big, small = (p, q) if p.size > q.size else (q, p)
    return big.size % small.size == 0 and _factor(big, small, why)


def unify(a: Axis, b: Axis, why: Because) -> None:
    """Learn that two axes of equal size index the same neurons; what cannot be reconciled is fixed.

    Example:
        >>> heads, width, flat = free(3), free(4), free(12)
        >>> unify(flat, merge([heads, width]), "an example")
        >>> [var.size for var in leaves(flat)]
        [3, 4]
    """
    a, b = canon(a), canon(b)
    if a == b:
        return
    why_a, why_b = reason(a), reason(b)
    if why_a is not None or why_b is not None:
        fix(a, why_b or SINGLE)
        fix(b, why_a or SINGLE)
        return
    while a and b:
        x, y = a[0], b[0]
        if x == y:
            a, b = a[1:], b[1:]
            continue
        size_x, size_y = segment_size(x), segment_size(y)
        if size_x > size_y:
            _cut(x, size_y)
        elif size_x < size_y:
            _cut(y, size_x)
        elif not x or not _match(x, y, why):
            fix((x, y), _conflict(f"{why} (its axes {show((x,))} and {show((y,))} do not nest)"))
            a, b = a[1:], b[1:]
        a, b = canon(a), canon(b)


def merge(axes: Sequence[Axis]) -> Axis:
    """The axis of a row-major flatten over `axes`."""
    whole: Axis = ONE
    for axis in axes:
        axis = canon(axis)
        if len(axis) == 1:
            right = axis[0]
        elif whole == ONE:
            whole = axis
            continue
        else:
            node = Var(axis_size(axis))
            node.expr = axis
            right = (node,)
        whole = tuple(segment + right for segment in whole)
    return canon(whole)


def _split_segment(segment: AxisSegment, size: int, why: Because) -> tuple[AxisSegment, AxisSegment] | None:
    # the segment as left * right with a right side of `size` positions
    right, cut = 1, len(segment)
    while right < size:
        var = segment[cut - 1]
        if size % (right * var.size) == 0:
            right *= var.size
            cut -= 1
            continue
        need = size // right
        if var.size % need or not _factor(var, Var(need), why):
            return None
        parts = canon((segment,))
        if len(parts) > 1:
            return None
        segment, right, cut = parts[0], 1, len(parts[0])
    return segment[:cut], segment[cut:]


def _split_right(axis: Axis, size: int, why: Because) -> tuple[Axis, Axis] | None:
    # the axis as left * right with a right side of `size` positions; all segments share the right side
    axis = canon(axis)
    if any(segment_size(segment) % size for segment in axis):
        return None
    left: list[AxisSegment] = []
    right: Axis | None = None
    for segment in axis:
        # an earlier segment's split may have refined this one into several
        queue = list(canon((segment,)))
        while queue:
            part = queue.pop(0)
            if segment_size(part) % size:
                return None
            halves = _split_segment(part, size, why)
            if halves is None:
                refined = list(canon((part,)))
                if len(refined) < 2:
                    return None
                queue = refined + queue
                continue
            left.append(halves[0])
            if right is None:
                right = (halves[1],)
            else:
                unify(right, (halves[1],), why)
    assert right is not None
    return canon(tuple(left)), canon(right)


def split(axis: Axis, sizes: Sequence[int], why: Because) -> tuple[Axis, ...]:
    """The axes of a row-major view of `axis` as `sizes` (all above 1); fixed if its factors do not nest."""
    done: list[Axis] = []
    rest = axis
    for size in reversed(sizes[1:]):
        halves = _split_right(rest, size, why)
        if halves is None:
            clash = _conflict(f"{why} (its axis {show(axis)} does not nest in {tuple(sizes)})")
            fix(axis, clash)
            return tuple(fixed(n, clash) for n in sizes)
        rest, right = halves
        done.append(right)
    return (canon(rest), *reversed([canon(axis) for axis in done]))


def reshape(axes: Sequence[Axis], shape: Sequence[int], why: Because) -> tuple[Axis, ...]:
    """The axes after a row-major reshape: dims of equal product are merged and split again.

    Example:
        >>> batch, channels = fixed(2, "the batch"), free(6)
        >>> flat, = reshape([batch, channels], [12], "an example")
        >>> back = reshape([flat], [2, 6], "an example")
        >>> canon(back[1]) == canon(channels)
        True
    """
    if 0 in shape:
        for axis in axes:
            fix(axis, why)
        return tuple(fixed(n, why) for n in shape)
    old = [axis for axis in axes if axis_size(axis) > 1]
    new = [n for n in shape if n > 1]
    result: list[Axis] = []
    i = j = 0
    while i < len(old):
        first, start = i, j
        left, right = axis_size(old[i]), new[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left, i = left * axis_size(old[i]), i + 1
            else:
                right, j = right * new[j], j + 1
        result += _regroup(old[first:i], new[start:j], why)
    parts = iter(result)
    return tuple(next(parts) if n > 1 else ONE for n in shape)


def _regroup(axes: Sequence[Axis], sizes: Sequence[int], why: Because) -> tuple[Axis, ...]:
    if len(axes) == 1 and len(sizes) == 1:
        return (axes[0],)
    reasons = [found for found in map(reason, axes) if found is not None]
    if len(reasons) == len(axes):
        return tuple(fixed(n, reasons[0]) for n in sizes)
    whole = merge(axes)
    return (whole,) if len(sizes) == 1 else split(whole, sizes, why)


def divide(axis: Axis, sizes: Sequence[int], why: Because) -> list[Axis]:
    """The axis as a sum of parts of these sizes; parts of a fixed axis are fixed."""
    known = reason(axis)
    if known is not None:
        return [fixed(n, known) for n in sizes]
    if len(sizes) == 1:
        return [axis]
    found = [free(n) for n in sizes]
    unify(axis, tuple(segment for part in found for segment in part), why)
    return found


def layout_of(axis: Axis, names: Mapping[Var, str]) -> Layout:
    """The axis as a layout, its variables replaced by the names of groups."""
    return tuple(
        tuple(Factor(names.get(var), var.size) if var.expr is None else layout_of(var.expr, names) for var in segment)
        for segment in canon(axis)
    )


def show(axis: Axis) -> str:
    """The axis in sizes, fixed ones marked: `3*4! + 8`."""

    def factor(var: Var) -> str:
        return f"({show(var.expr)})" if var.expr is not None else f"{var.size}{'!' if var.fixed else ''}"

    return " + ".join("*".join(factor(var) for var in segment) or "1" for segment in canon(axis)) or "0"


__all__ = [
    "ONE",
    "Axis",
    "AxisSegment",
    "Var",
    "axis_size",
    "canon",
    "divide",
    "find",
    "fix",
    "fixed",
    "free",
    "layout_of",
    "leaves",
    "merge",
    "reason",
    "reshape",
    "segment_size",
    "show",
    "split",
    "unify",
]
