"""Ops on tensors made of blocks: an op that treats all positions along the blocks' dim alike is an op on each block.

Where the blocks' dim goes is one small function per op. Any other op sees one axis per dim, which ties the blocks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor

from neurograft.tracing.algebra import axis_size, fix, free, reason
from neurograft.tracing.blocks import Blank, Blocks, Label, axes_at, common, cut, join, sizes_of, with_size
from neurograft.tracing.labels import Labels
from neurograft.tracing.reasons import Because
from neurograft.tracing.rules.pointwise import pointwise
from neurograft.tracing.rules.table import Result, Rule
from neurograft.tracing.tape import Op, op_tensors


@dataclass(frozen=True, slots=True)
class Along:
    """The blocks' dim in every operand that has it, by the operands' identity, and in every result."""

    operands: Mapping[int, int]
    results: Sequence[int]
    why: Because


Whole: TypeAlias = Callable[[Labels, Op, Rule], Result | None]
Follow: TypeAlias = Callable[[Op, tuple[int, ...], int], int | None]

# ops that take blocks in a way of their own; it gives None where they are like any other op after all
WHOLE: dict[str, Whole] = {}
# ops of one operand: where dim `dim` of an operand of these sizes goes, None if its positions meet
FOLLOWING: dict[str, Follow] = {}


def whole(*names: str) -> Callable[[Whole], Whole]:
    """Enter a function that takes blocks into the table."""

    def enter(function: Whole) -> Whole:
        WHOLE.update(dict.fromkeys(names, function))
        return function

    return enter


def following(*names: str) -> Callable[[Follow], Follow]:
    """Enter a function that follows a dim into the table."""

    def enter(function: Follow) -> Follow:
        FOLLOWING.update(dict.fromkeys(names, function))
        return function

    return enter


def blockwise(labels: Labels, op: Op, found: Rule) -> Result:
    """The labels of an op's results; `found` is its rule for tensors with one axis per dim."""
    if not labels.in_blocks(op):
        return found(labels, op)
    own = WHOLE.get(op.name)
    result = None if own is None else own(labels, op, found)
    if result is not None:
        return result
    along = _along(labels, op, found)
    return found(labels, op) if along is None else _by_block(labels, op, found, along)


def _along(labels: Labels, op: Op, found: Rule) -> Along | None:
    given = {id(x): _label(labels, op, x) for x in op_tensors(op) if x is not op.kwargs.get("out")}
    found_blocks = next(((key, label) for key, label in given.items() if isinstance(label, Blocks)), None)
    if found_blocks is None:
        return None
    key, label = found_blocks
    if op.name in FOLLOWING:
        target = FOLLOWING[op.name](op, sizes_of(label), label.dim)
        return None if target is None else Along({key: label.dim}, [target] * len(op.results), label.why)
    if op.name in ("bmm", "baddbmm") and label.dim == 0:
        batched = {key: 0 for key, x in given.items() if len(sizes_of(x)) == 3 and sizes_of(x)[0] > 1}
        return Along(batched, [0], label.why)
    return _along_broadcast(op, given, label) if found is pointwise else None


def _label(labels: Labels, op: Op, x: Tensor) -> Label:
    # what is blank until the op writes to it takes the blocks of what is written
    return labels.raw(x) if any(x is written for written in op.mutates) else labels.label(x)


def _along_broadcast(op: Op, given: Mapping[int, Label], blocks: Blocks) -> Along:
    # dims are aligned from the right; what is one position wide there meets every block
    last = len(sizes_of(blocks)) - blocks.dim
    ranks = {key: len(sizes_of(label)) for key, label in given.items()}
    wide = {key: rank - last for key, rank in ranks.items() if rank >= last and sizes_of(given[key])[rank - last] > 1}
    return Along(wide, [len(shape or ()) - last for shape in op.shapes], blocks.why)


def _by_block(labels: Labels, op: Op, found: Rule, along: Along) -> Result:
    # the rule, once for every block
    tensors = {id(x): _label(labels, op, x) for x in op_tensors(op) if id(x) in along.operands}
    _fix_beside([(label, along.operands[key]) for key, label in tensors.items()], along.why)
    lengths = common([(label, along.operands[key]) for key, label in tensors.items()])
    pieces = {
        key: [_renewed(labels, key, part) for part in cut(label, along.operands[key], lengths, labels.why)]
        for key, label in tensors.items()
    }
    columns: list[list[Label | None]] = [[] for _ in op.results]
    for k, length in enumerate(lengths):
        shapes = tuple(
            None if shape is None else with_size(shape, along.results[r], length) for r, shape in enumerate(op.shapes)
        )
        with labels.giving({key: parts[k] for key, parts in pieces.items()}, again=k > 0):
            result = blockwise(labels, replace(op, shapes=shapes), found)
        for column, label in zip(columns, result if isinstance(result, list) else [result], strict=True):
            column.append(label)
    joined = [_joined(column, dim, along.why) for column, dim in zip(columns, along.results, strict=True)]
    return joined if len(joined) > 1 else joined[0] or ()


def _renewed(labels: Labels, key: int, part: Label) -> Label:
    # copies of one value do not care for their order, in any block
    dims = labels.repeated.get(key, frozenset())
    if isinstance(part, (Blank, Blocks)) or not dims:
        return part
    return tuple(free(axis_size(axis)) if d in dims else axis for d, axis in enumerate(part))


def _fix_beside(tensors: Sequence[tuple[Label, int]], why: Because) -> None:
    # positions that have a meaning in one operand have it in all: no need to cut the others there
    for label, dim in tensors:
        along = list(axes_at(label, dim)) if isinstance(label, Blocks) else []
        reasons = [found for axis in along if (found := reason(axis)) is not None]
        if along and len(reasons) == len(along):
            known = next((r for r, axis in zip(reasons, along, strict=True) if axis_size(axis) > 1), why)
            for other, d in tensors:
                for axis in axes_at(other, d):
                    fix(axis, known)


def _joined(column: Sequence[Label | None], dim: int, why: Because) -> Label | None:
    known = [label for label in column if label is not None]
    return join(dim, known, why) if len(known) == len(column) else None


__all__ = ["blockwise", "following", "whole"]
