"""The table of rules: what each ATen op does to the axes of its operands and results.

A rule reads the tape only: never a tensor's values, and never `x.shape`, which in-place ops may have changed since
(`shape(labels.of(x))` is right). It returns the label of the result (its axes, or blocks with axes of their own), or a
list of them for several results. A rule that reads the axes of blocks (`labels.of`) ties them. Soundness: a
result's dim may get a new *fixed* axis only if every dim it came from is fixed.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

from neurograft.tracing.algebra import Axis, axis_size
from neurograft.tracing.blocks import Axes, Label
from neurograft.tracing.labels import Labels
from neurograft.tracing.tape import Op

Results: TypeAlias = list[Label | None]
Result: TypeAlias = Label | Results
Rule: TypeAlias = Callable[[Labels, Op], Result]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a function into the table under op names (`mm`) or overloads (`slice.Tensor`)."""

    def enter(function: Rule) -> Rule:
        for name in names:
            assert name not in RULES, name
            RULES[name] = function
        return function

    return enter


def arg(op: Op, position: int, default: Any = None) -> Any:
    """The op's argument at that position of its schema, wherever it was passed."""
    if position < len(op.args):
        return op.args[position]
    if op.kwargs and position < len(op.func._schema.arguments):
        return op.kwargs.get(op.func._schema.arguments[position].name, default)
    return default


def tensor(op: Op, position: int) -> Tensor:
    """The op's tensor argument at that position."""
    value = arg(op, position)
    assert isinstance(value, Tensor)
    return value


def shape(axes: Axes) -> tuple[int, ...]:
    """The sizes of the axes."""
    return tuple(axis_size(axis) for axis in axes)


def dim_of(dim: int, axes: Axes) -> int:
    """A dim counted from the front."""
    return dim % len(axes) if axes else 0


def dims_of(dims: Any, axes: Axes) -> tuple[int, ...]:
    """Dims counted from the front; None or nothing means all of them."""
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return tuple(range(len(axes)))
    return tuple(dim_of(d, axes) for d in (dims if isinstance(dims, (list, tuple)) else (dims,)))


def replaced(axes: Axes, dim: int, axis: Axis) -> Axes:
    """The axes with one of them exchanged."""
    return (*axes[:dim], axis, *axes[dim + 1 :])


def same_results(op: Op, axes: Axes) -> Result:
    """The same axes for every result."""
    return axes if len(op.results) == 1 else [axes for _ in op.results]


def result_shape(op: Op, position: int = 0) -> tuple[int, ...]:
    """The shape of a result, as it was when the op ran."""
    found = op.shapes[position]
    assert found is not None
    return found


__all__ = [
    "RULES",
    "Result",
    "Results",
    "Rule",
    "arg",
    "dim_of",
    "dims_of",
    "replaced",
    "result_shape",
    "rule",
    "same_results",
    "shape",
    "tensor",
]
