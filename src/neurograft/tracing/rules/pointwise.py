"""Pointwise ops: equal positions meet, so all operands share their axes; a dim of size 1 meets anything."""

from torch import Tensor

from neurograft.tracing.algebra import ONE, Axis, axis_size
from neurograft.tracing.blocks import sizes_of
from neurograft.tracing.labels import Axes, Labels
from neurograft.tracing.rules.index_semantics import compared
from neurograft.tracing.rules.table import Result, rule, same_results
from neurograft.tracing.tape import Op, op_tensors

# additive ops make a value of their own, the others scale or gate one
_MAKING = {"add", "add_", "sub", "sub_", "rsub", "where", "copy_", "masked_fill", "masked_fill_", "maximum", "minimum"}


def broadcast(labels: Labels, operands: list[Axes]) -> Axes:
    """The common axes of operands that are aligned from the right."""
    rank = max((len(axes) for axes in operands), default=0)
    result: list[Axis] = [ONE] * rank
    for axes in operands:
        for dim, axis in enumerate(axes, rank - len(axes)):
            if axis_size(axis) == 1:
                continue
            if result[dim] == ONE:
                result[dim] = axis
            else:
                labels.unify(result[dim], axis)
    return tuple(result)


@rule(
    "_to_copy",
    "alias",
    "clone",
    "complex",
    "copy",
    "copy_",
    "detach",
    "detach_",
    "dropout",
    "fill_",
    "floor_divide",
    "floor_divide_",
    "hardswish",
    "hardswish_",
    "lift",
    "lift_fresh",
    "lift_fresh_copy",
    "masked_fill",
    "masked_fill_",
    "native_dropout",
    "polar",
    "prelu",
    "relu6",
    "zero_",
    "contiguous",
    "_prelu_kernel",
    "rrelu_with_noise",
    "fake_quantize_per_tensor_affine",
    "view_of",
)
def pointwise(labels: Labels, op: Op) -> Result:
    """out[i] = f(a[i], b[i], ...): one axis for all."""
    units = compared(labels, op)
    if units is not None:
        return units
    operands = [x for x in op_tensors(op) if x is not op.kwargs.get("out")]
    result = broadcast(labels, [labels.of(x) for x in operands])
    role = "out" if op.name in _MAKING else "elementwise"
    for x in operands:
        mark(labels, x, role)
    return same_results(op, result)


def mark(labels: Labels, x: Tensor, role: str) -> None:
    """A parameter met an activation position by position: it makes a value (`out`) or scales one (`elementwise`)."""
    if not labels.is_weight(x):
        return
    sizes = sizes_of(labels.label(x))
    wide = sum(n > 1 for n in sizes) > 1
    for dim in range(len(sizes)):
        if role == "out":
            labels.role(x, dim, "out", "weight" if wide else "bias")
        else:
            labels.role(x, dim, "elementwise", "weight" if wide else "scale")


__all__ = ["broadcast", "mark", "pointwise"]
