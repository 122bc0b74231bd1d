"""Ranking and counting: positions become numbers that name units, and numbers become positions again."""

from torch import Tensor

from neurograft.tracing.algebra import ONE, Axis, axis_size, free, reason
from neurograft.tracing.index_semantics import Meaning, Order
from neurograft.tracing.labels import Axes, Labels
from neurograft.tracing.rules.table import Result, Results, arg, dim_of, dims_of, replaced, result_shape, rule, tensor
from neurograft.tracing.tape import Op


def named(labels: Labels, op: Op, position: int, axis: Axis) -> None:
    """The numbers in a result name units of `axis`."""
    if position < len(op.results):
        labels.numbers.give(op.results[position], Meaning("units", axis, object()), op)


@rule("topk", "sort")
def ranked(labels: Labels, op: Op) -> Result:
    """The largest values whatever their order was, and the numbers of the positions they were at."""
    # equal values are distinguished by their positions: where that matters, the proof finds it
    x = tensor(op, 0)
    axes = labels.of(x)
    dim = dim_of(arg(op, 1 if op.name == "sort" and op.overload != "stable" else 2, -1), axes)
    if not axes or labels.numbers.of(x) is not None:
        return _sorted_numbers(labels, op, x, axes, dim)
    named(labels, op, 1, axes[dim])
    labels.ranked(axes[dim], result_shape(op)[dim])
    rank = replaced(axes, dim, _rank(labels, axes[dim], result_shape(op)[dim]))
    return [rank for _ in op.results]


def _rank(labels: Labels, axis: Axis, size: int) -> Axis:
    # ranks stay where they are when positions move: fixed, although the axis may be free
    why = reason(axis)
    if why is not None and axis_size(axis) == size:
        return axis
    return labels.fixed(size, f"the ranks of {labels.why}")


def _sorted_numbers(labels: Labels, op: Op, x: Tensor, axes: Axes, dim: int) -> Result:
    # rows in the order of the units they are dealt to, or a permutation turned round
    if not axes:
        return [axes for _ in op.results]
    over = axes[dim]
    beside = [d for d in range(len(axes)) if d != dim and axis_size(axes[d]) > 1]
    order = labels.numbers.sorting.get(id(x))
    if order is not None and not beside:
        labels.numbers.meaning_of(x)
        named(labels, op, 1, order.rows)
        return [replaced(axes, dim, order.over) for _ in op.results]
    meaning = None if beside or op.name != "sort" or _descending(op) else labels.numbers.meaning_of(x)
    if meaning is None:
        labels.fix(over)
        named(labels, op, 1, over)
        return _resized(labels, op, axes)
    rows = free(axis_size(over))
    order = Order(rows, over, meaning.axis, meaning.source, op.results[1], op)
    labels.numbers.orders.append(order)
    labels.numbers.sorting[id(op.results[1])] = order
    labels.numbers.give(op.results[0], meaning, op)
    named(labels, op, 1, over)
    return [replaced(axes, dim, rows) for _ in op.results]


def _descending(op: Op) -> bool:
    return bool(arg(op, 3 if op.overload == "stable" else 2, False))


def _resized(labels: Labels, op: Op, axes: Axes) -> Result:
    results: Results = [
        None if s is None else tuple(a if axis_size(a) == n else labels.fixed(n) for a, n in zip(axes, s, strict=True))
        for s in op.shapes
    ]
    return results if len(results) > 1 else results[0] or ()


def _drop(axes: Axes, dims: tuple[int, ...], rank: int) -> Axes:
    if rank == len(axes):
        return tuple(ONE if d in dims else axis for d, axis in enumerate(axes))
    return tuple(axis for d, axis in enumerate(axes) if d not in dims)


@rule("argmax", "argmin", "max.dim", "min.dim")
def extreme_position(labels: Labels, op: Op) -> Result:
    """The number of the position with the largest value; over several dims at once it counts through them all."""
    axes = labels.of(tensor(op, 0))
    dims = dims_of(arg(op, 1), axes)
    if len(dims) == 1 and axes:
        named(labels, op, len(op.results) - 1, axes[dims[0]])
        labels.ranked(axes[dims[0]], 1)
    else:
        for dim in dims:
            labels.fix(axes[dim])
    results: Results = [_drop(axes, dims, len(s or ())) for s in op.shapes]
    return results if len(results) > 1 else results[0] or ()


@rule("aminmax")
def extremes(labels: Labels, op: Op) -> Result:
    """The smallest and the largest value; of numbers, torch computes them itself to see that all are in range."""
    x = tensor(op, 0)
    axes = labels.of(x)
    meaning = labels.numbers.meaning_of(x)
    dims = dims_of(arg(op, 1), axes)
    if meaning is not None:
        for r in op.results:
            labels.numbers.give(r, Meaning("range", meaning.axis, object()), op)
    for dim in dims:
        labels.reduced(axes[dim])
    return [_drop(axes, dims, len(s or ())) for s in op.shapes]


@rule("histc", "bincount")
def counted_numbers(labels: Labels, op: Op) -> Result:
    """How often every unit is named; of other numbers, every position has a meaning."""
    x, shape = tensor(op, 0), result_shape(op)
    found = labels.numbers.of(x)
    size = 0 if found is None else axis_size(found.axis)
    bins, low, high = (arg(op, 1, 100), arg(op, 2, 0), arg(op, 3, 0))
    fits = arg(op, 2, 0) == size and arg(op, 1) is None
    if op.name == "histc":
        fits = bins == size and low == 0 and high in (size - 1, size)
    meaning = labels.numbers.meaning_of(x) if fits and shape == (size,) else None
    if meaning is None:
        for axis in labels.of(x):
            labels.fix(axis)
        return tuple(labels.fixed(n) for n in shape)
    labels.numbers.give(op.results[0], Meaning("counts", meaning.axis, meaning.source), op)
    return (meaning.axis,)


@rule("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "cumsum_", "roll", "flip")
def ordered(labels: Labels, op: Op) -> Result:
    """The order along the dim has a meaning; running counts of units are where each one's rows end."""
    x = tensor(op, 0)
    axes = labels.of(x)
    counts = labels.numbers.meaning_of(x, "counts") if op.name == "cumsum" else None
    if counts is not None and len(axes) == 1:
        labels.numbers.give(op.results[0], Meaning("bounds", counts.axis, counts.source), op)
        return (labels.fixed(result_shape(op)[0], "running counts"),)
    position = 2 if op.name == "roll" else 1
    for dim in dims_of(arg(op, position), axes):
        labels.fix(axes[dim])
    return _resized(labels, op, axes)


def compared(labels: Labels, op: Op) -> Axes | None:
    """Numbers compared with 0 … n-1 along a dim of their own: that dim is the units'. None for anything else."""
    number = arg(op, 1)
    if op.name in ("eq", "ne") and isinstance(number, int) and not isinstance(number, bool):
        return _asked(labels, op, number)
    operands = [x for x in op.args if isinstance(x, Tensor)]
    if op.name not in ("eq", "ne") or len(operands) != 2:
        return None
    for numbers, places in (operands, operands[::-1]):
        found = labels.numbers.moving(numbers)
        if found is None or found.kind != "units" or id(places) not in labels.numbers.counting:
            continue
        a, b = labels.of(numbers), labels.of(places)
        dim = next((d for d, axis in enumerate(reversed(b)) if axis_size(axis) > 1), None)
        beside = dim is None or (dim < len(a) and axis_size(a[len(a) - 1 - dim]) > 1)
        if beside or dim is None or axis_size(b[len(b) - 1 - dim]) != axis_size(found.axis):
            continue
        labels.numbers.meaning_of(numbers)
        rank = max(len(a), len(b))
        padded = (*[ONE] * (rank - len(a)), *a)
        return replaced(padded, rank - 1 - dim, found.axis)
    return None


def _asked(labels: Labels, op: Op, number: int) -> Axes | None:
    # which rows are dealt to one unit
    x = tensor(op, 0)
    found = labels.numbers.moving(x)
    if found is None or found.kind != "units" or not labels.take(found.axis, number, x):
        return None
    labels.numbers.meaning_of(x)
    return labels.of(x)


def inverted(labels: Labels, op: Op) -> Axes | None:
    """0 … n-1 written at the places that sorting gave: a permutation turned round. None for anything else."""
    x, places, values = tensor(op, 0), arg(op, 1), tensor(op, 2)
    if len(places) != 1 or not isinstance(places[0], Tensor) or id(values) not in labels.numbers.counting:
        return None
    order = labels.numbers.sorting.get(id(places[0]))
    if order is None or len(labels.of(x)) != 1 or axis_size(labels.of(x)[0]) != axis_size(order.over):
        return None
    labels.numbers.meaning_of(places[0])
    named(labels, op, 0, order.rows)
    return (order.over,)


__all__ = ["compared", "inverted"]
