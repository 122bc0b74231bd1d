"""Joining and cutting: a joined dim is the sum of its parts, a part of a dim is a segment of it."""

from collections.abc import Sequence

from torch import Tensor

from neurograft.tracing.algebra import Axis, axis_size, divide, free, merge, reason
from neurograft.tracing.blocks import filled, inserted, sizes_of
from neurograft.tracing.labels import Axes, Labels
from neurograft.tracing.rules.pieces import side_by_side
from neurograft.tracing.rules.pointwise import mark
from neurograft.tracing.rules.table import Result, arg, dim_of, replaced, result_shape, rule, tensor
from neurograft.tracing.tape import Op
from neurograft.tracing.unit_loops import stacks_all


def cut(labels: Labels, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """The axis as a sum of parts of these sizes."""
    return divide(axis, sizes, labels.why)


@rule("cat", "concat", "_cat")
def cat(labels: Labels, op: Op) -> Result:
    """The joined dim is the sum of the parts; where its positions have a meaning, the other dims differ by part."""
    parts = [x for x in arg(op, 0) if sizes_of(labels.label(x)) != (0,)]
    every = [labels.label(x) for x in parts]
    for x in parts:
        mark(labels, x, "out")
    return side_by_side(labels, every, arg(op, 1, 0) % len(sizes_of(every[0])), labels.why)


@rule("stack")
def stack(labels: Labels, op: Op) -> Result:
    """A new dim counts the operands, each with its own other dims; those of all units of a loop are the same."""
    every = [filled(labels.label(x)) for x in arg(op, 0)]
    for x in arg(op, 0):
        mark(labels, x, "out")
    dim = arg(op, 1, 0) % (len(sizes_of(every[0])) + 1)
    passes = [labels.passes.of[id(x)] for x in arg(op, 0) if id(x) in labels.passes.of]
    if len(passes) == len(every) and stacks_all(passes):
        first = labels.of(arg(op, 0)[0])
        for x in arg(op, 0)[1:]:
            for a, b in zip(first, labels.of(x), strict=True):
                labels.unify(a, b)
        return (*first[:dim], passes[0].axis, *first[dim:])
    return side_by_side(labels, [inserted(label, dim) for label in every], dim, "the order of a stack")


@rule("slice", "slice_copy")
def slice_(labels: Labels, op: Op) -> Result:
    """A segment of the dim; with a step, one residue of its positions."""
    axes = labels.of(tensor(op, 0))
    dim = dim_of(arg(op, 1, 0), axes)
    size = axis_size(axes[dim])
    start, _stop, step = slice(arg(op, 2), arg(op, 3), arg(op, 4, 1)).indices(size)
    length = result_shape(op)[dim]
    if length == size:
        return axes
    why = reason(axes[dim])
    if why is not None:
        return replaced(axes, dim, labels.fixed(length, why))
    if step == 1:
        return replaced(axes, dim, cut(labels, axes[dim], (start, length, size - start - length))[1])
    if size % step == 0 and length == size // step:
        outer = free(length)
        labels.unify(axes[dim], merge([outer, labels.fixed(step)]))
        return replaced(axes, dim, outer)
    labels.fix(axes[dim])
    return replaced(axes, dim, labels.fixed(length))


@rule("select", "select_copy")
def select(labels: Labels, op: Op) -> Result:
    """One position by its number: the dim gets a meaning and leaves."""
    x = tensor(op, 0)
    axes = labels.of(x)
    dim = dim_of(arg(op, 1), axes)
    if not labels.take(axes[dim], int(arg(op, 2)), x, dim):
        labels.fix(axes[dim])
    return (*axes[:dim], *axes[dim + 1 :])


@rule("unbind", "unbind_copy")
def unbind(labels: Labels, op: Op) -> Result:
    """Every position by its number: the dim gets a meaning and leaves."""
    axes = labels.of(tensor(op, 0))
    dim = dim_of(arg(op, 1, 0), axes)
    labels.fix(axes[dim])
    return [(*axes[:dim], *axes[dim + 1 :]) for _ in op.results]


@rule(
    "split",
    "split_with_sizes",
    "chunk",
    "unsafe_split",
    "unsafe_chunk",
    "unsafe_split_with_sizes",
    "tensor_split",
    "split_copy",
    "split_with_sizes_copy",
)
def split(labels: Labels, op: Op) -> Result:
    """The dim is the sum of the parts."""
    axes = labels.of(tensor(op, 0))
    dim = dim_of(arg(op, 2, 0), axes)
    parts = cut(labels, axes[dim], [result_shape(op, i)[dim] for i in range(len(op.results))])
    return [replaced(axes, dim, part) for part in parts]


@rule("glu")
def glu(labels: Labels, op: Op) -> Result:
    """First half times the sigmoid of the second: the halves meet."""
    axes = labels.of(tensor(op, 0))
    dim = dim_of(arg(op, 1, -1), axes)
    half = axis_size(axes[dim]) // 2
    first, second = cut(labels, axes[dim], (half, half))
    labels.unify(first, second)
    return replaced(axes, dim, first)


@rule("constant_pad_nd", "pad")
def pad(labels: Labels, op: Op) -> Result:
    """New positions of one value at both ends, whose order does not matter; negative padding cuts."""
    axes = list(labels.of(tensor(op, 0)))
    amounts = list(arg(op, 1))
    for k in range(0, len(amounts), 2):
        dim = len(axes) - 1 - k // 2
        axes[dim] = _padded(labels, axes[dim], amounts[k], amounts[k + 1])
    return tuple(axes)


def _padded(labels: Labels, axis: Axis, left: int, right: int) -> Axis:
    why = reason(axis)
    if why is not None:
        return labels.fixed(axis_size(axis) + left + right, why) if left or right else axis
    cuts = (max(-left, 0), axis_size(axis) - max(-left, 0) - max(-right, 0), max(-right, 0))
    if cuts[0] or cuts[2]:
        axis = cut(labels, axis, cuts)[1]
    return free(max(left, 0)) + axis + free(max(right, 0))


@rule("repeat_interleave")
def repeat_interleave(labels: Labels, op: Op) -> Result:
    """Every position several times: (dim, copies), the copies free; counts per position fix the dim."""
    if op.overload == "Tensor" or isinstance(arg(op, 1), Tensor) or arg(op, 2) is None:
        for axis in labels.of(tensor(op, 0)):
            labels.fix(axis)
        return tuple(labels.fixed(n) for n in result_shape(op))
    axes: Axes = labels.of(tensor(op, 0))
    dim = dim_of(arg(op, 2), axes)
    return replaced(axes, dim, merge([axes[dim], free(int(arg(op, 1)))]))


__all__ = ["cut"]
