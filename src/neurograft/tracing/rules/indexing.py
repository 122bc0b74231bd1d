"""Indexing by tensors: the dim that is looked up has a meaning, or is the one whose units the index names."""

from typing import Any

from torch import Tensor

from neurograft.tracing.algebra import ONE, Axis, axis_size, reason
from neurograft.tracing.blocks import inserted, sizes_of
from neurograft.tracing.labels import Axes, Labels
from neurograft.tracing.rules.blockwise import whole
from neurograft.tracing.rules.index_semantics import inverted
from neurograft.tracing.rules.joining import cut
from neurograft.tracing.rules.pieces import replaced_part
from neurograft.tracing.rules.pointwise import broadcast, mark
from neurograft.tracing.rules.table import Result, Rule, arg, dim_of, replaced, result_shape, rule, tensor
from neurograft.tracing.tape import Op


@rule("embedding")
def embedding(labels: Labels, op: Op) -> Result:
    """out[..., j] = table[index[...], j]."""
    table, index = tensor(op, 0), tensor(op, 1)
    rows, columns = labels.of(table)
    labels.look_up(rows, index, f"looked up by index: {labels.why}")
    result = (*labels.of(index), columns)
    labels.role(table, 0, "out", "weight")
    labels.role(table, 1, "out", "weight")
    labels.use(table, None, result, {}, {1: len(result) - 1})
    return result


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(labels: Labels, op: Op) -> Result:
    """Sums of looked up rows."""
    table = tensor(op, 0)
    rows, columns = labels.of(table)
    labels.fix(rows, f"looked up by index: {labels.why}")
    result = (labels.fixed(result_shape(op)[0]), columns)
    labels.role(table, 0, "out", "weight")
    labels.role(table, 1, "out", "weight")
    labels.use(table, None, result, {}, {1: 1})
    return [result, *(None if s is None else tuple(labels.fixed(n) for n in s) for s in op.shapes[1:])]


def _indexed(labels: Labels, axes: Axes, indices: list[Any]) -> Axes:
    # the axes of axes[indices], adjacent index dims in place, separated ones in front
    given = [d for d, index in enumerate(indices) if index is not None]
    expanded: list[tuple[int, Axis]] = []
    at, tensors = 0, []
    for d, index in enumerate(indices):
        if index is None:
            expanded.append((d, axes[at]))
            at += 1
            continue
        if str(index.dtype) in ("torch.bool", "torch.uint8"):
            for axis in axes[at : at + index.dim()]:
                labels.fix(axis)
            at += index.dim()
        else:
            labels.look_up(axes[at], index)
            at += 1
        tensors.append(index)
    looked = broadcast(labels, [_index_axes(labels, index) for index in tensors])
    rest = axes[at:]
    adjacent = given == list(range(given[0], given[-1] + 1))
    before = tuple(axis for d, axis in expanded if adjacent and d < given[0])
    after = tuple(axis for d, axis in expanded if not (adjacent and d < given[0]))
    return (*before, *looked, *after, *rest)


def _index_axes(labels: Labels, index: Tensor) -> Axes:
    if str(index.dtype) in ("torch.bool", "torch.uint8"):
        for axis in labels.of(index):
            labels.fix(axis)
        return ((),)
    return labels.of(index)


def _with_counts(axes: Axes, shape: tuple[int, ...], labels: Labels) -> Axes:
    # a mask's count is only known from the result; () stands for it
    return tuple(labels.fixed(n) if axis == () and n else axis for axis, n in zip(axes, shape, strict=True))


@rule("index", "_unsafe_index")
def index(labels: Labels, op: Op) -> Result:
    """Out = x[i, j, ...]: the looked up dims give way to those of the indices."""
    part = _run(labels, op)
    if part is not None:
        return part
    return _with_counts(_indexed(labels, labels.of(tensor(op, 0)), arg(op, 1)), result_shape(op), labels)


def _run(labels: Labels, op: Op) -> Axes | None:
    # x[..., [3, 4, 5], ...] with constant neighbours is x[..., 3:6, ...]
    given = [(d, index) for d, index in enumerate(arg(op, 1)) if index is not None]
    if len(given) != 1:
        return None
    ((dim, index),) = given
    axes = labels.of(tensor(op, 0))
    places = labels.constant(index) if reason(axes[dim]) is None else None
    if not places:
        return None
    size = axis_size(axes[dim])
    first = places[0] % size
    if [place % size for place in places] != list(range(first, first + len(places))):
        return None
    return replaced(axes, dim, cut(labels, axes[dim], (first, len(places), size - first - len(places)))[1])


@rule("index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")
def index_put(labels: Labels, op: Op) -> Result:
    """x[i, j, ...] = values: the values meet what they replace."""
    turned = inverted(labels, op)
    if turned is not None:
        return turned
    x, values = tensor(op, 0), tensor(op, 2)
    axes = labels.of(x)
    place = _indexed(labels, axes, arg(op, 1))
    given = labels.of(values)
    for a, b in zip(reversed(place), reversed(given), strict=False):
        if a != () and axis_size(b) > 1 and axis_size(a) == axis_size(b):
            labels.unify(a, b)
        elif axis_size(b) > 1:
            labels.fix(b)
    mark(labels, values, "out")
    return axes


@rule("index_select")
def index_select(labels: Labels, op: Op) -> Result:
    """Out = x with positions of one dim looked up."""
    axes = labels.of(tensor(op, 0))
    dim = dim_of(arg(op, 1), axes)
    if axes:
        labels.look_up(axes[dim], tensor(op, 2))
    looked = labels.of(tensor(op, 2))
    return replaced(axes, dim, looked[0] if looked else ONE) if axes else axes


@rule("index_add", "index_add_", "index_copy", "index_copy_")
def index_add(labels: Labels, op: Op) -> Result:
    """x[index] += source along one dim."""
    axes, source = labels.of(tensor(op, 0)), labels.of(tensor(op, 3))
    dim, index = dim_of(arg(op, 1), axes), tensor(op, 2)
    labels.look_up(axes[dim], index)
    places = labels.of(index)
    for d, (a, b) in enumerate(zip(axes, source, strict=True)):
        labels.unify(a if d != dim else places[0] if places else b, b)
    mark(labels, tensor(op, 3), "out")
    return axes


@rule("gather")
def gather(labels: Labels, op: Op) -> Result:
    """out[i, j] = x[i, index[i, j]]: the looked up dim is fixed, the others meet where sizes agree."""
    x, chosen = labels.of(tensor(op, 0)), labels.of(tensor(op, 2))
    dim = dim_of(arg(op, 1), x)
    _meet_beside(labels, x, chosen, dim, tensor(op, 2))
    return chosen


def _meet_beside(labels: Labels, x: Axes, other: Axes, dim: int, index: Tensor) -> None:
    for d, (a, b) in enumerate(zip(x, other, strict=True)):
        if d == dim:
            labels.look_up(a, index)
        elif axis_size(a) == axis_size(b):
            labels.unify(a, b)
        else:
            labels.fix(a)
            labels.fix(b)


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(labels: Labels, op: Op) -> Result:
    """x[i, index[i, j]] = source[i, j]: the written dim is fixed, the others meet."""
    x, chosen = labels.of(tensor(op, 0)), labels.of(tensor(op, 2))
    dim = dim_of(arg(op, 1), x)
    _meet_beside(labels, x, chosen, dim, tensor(op, 2))
    source = arg(op, 3)
    if isinstance(source, Tensor):
        for a, b in zip(chosen, labels.of(source), strict=True):
            if axis_size(a) == axis_size(b):
                labels.unify(a, b)
            else:
                labels.fix(a)
                labels.fix(b)
        mark(labels, source, "out")
    return x


@rule("select_scatter", "slice_scatter")
def scatter_part(labels: Labels, op: Op) -> Result:
    """Positions next to each other along one dim are replaced: blocks with other axes than their neighbours."""
    label, source = labels.label(tensor(op, 0)), labels.label(tensor(op, 1))
    size = sizes_of(label)
    dim = int(arg(op, 2, 0)) % len(size)
    mark(labels, tensor(op, 1), "out")
    if op.name == "select_scatter":
        place = int(arg(op, 3)) % size[dim]
        return replaced_part(labels, label, inserted(source, dim), dim, range(place, place + 1))
    places = range(*slice(arg(op, 3), arg(op, 4), arg(op, 5, 1)).indices(size[dim]))
    return replaced_part(labels, label, source, dim, places)


@whole("select_scatter", "slice_scatter")
def scatter_blocks(labels: Labels, op: Op, found: Rule) -> Result | None:
    """The rule takes blocks."""
    return found(labels, op)


@rule("masked_select", "masked_scatter", "masked_scatter_", "take", "put_")
def masked(labels: Labels, op: Op) -> Result:
    """Positions are counted across dims: all are fixed."""
    for x in op.args:
        if isinstance(x, Tensor):
            for axis in labels.of(x):
                labels.fix(axis)
    return tuple(labels.fixed(n) for n in result_shape(op))
