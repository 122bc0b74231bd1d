"""The deep proof: every intermediate tensor of the permuted network is the permuted intermediate of the original."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from neurograft.axes.maps import Pairs
from neurograft.axes.mixing import axis_order
from neurograft.tracing.algebra import Axis, Var, axis_size, layout_of, leaves
from neurograft.tracing.bench import Bench, change
from neurograft.tracing.blocks import Blank, Blocks, Label, lengths_of, looked
from neurograft.tracing.graph_builder import build_graph
from neurograft.tracing.index_semantics import Numbers, Order
from neurograft.tracing.labelling import Labelling
from neurograft.tracing.permutation import permuted_tensor
from neurograft.tracing.recording import record
from neurograft.tracing.tape import Op, Tape, live
from neurograft.tracing.unit_loops import LoopPasses


def deep_check(bench: Bench, moved: Mapping[str, Tensor], tolerance: float) -> tuple[float, str | None]:
    """The largest error of any intermediate tensor, and the first op whose result is off (None if none is)."""
    worst, where = 0.0, None
    bench.put({})
    labelling = Labelling(bench.model)
    tapes = []
    labels: list[tuple[dict[int, Label], Numbers, LoopPasses]] = []
    for example in bench.examples:
        tape = _record(bench, example)
        labelling.read(tape, bench.outputs or None)
        tapes.append(tape)
        labels.append((dict(labelling.main.axes), labelling.main.numbers.kept(), labelling.main.passes.kept()))
    graph, variables = build_graph(labelling, bench.model)
    known = {name: var for name, var in variables.items() if not var.fixed}
    chosen = {name: index for name, index in moved.items() if name in known and known[name].size == len(index)}
    mixings = {name: Pairs.permutation(order) for name, order in chosen.items()}
    changed = {name: permuted_tensor(x, graph.tensors[name], mixings) for name, x in bench.original.items()}
    by_variable = {variables[name]: order for name, order in chosen.items()}
    for example, tape, (axes, numbers, passes) in zip(bench.examples, tapes, labels, strict=True):
        bench.put(changed)
        other = _record(bench, example)
        bench.put({})
        error, first = _compare(tape, other, axes, numbers, passes, by_variable, tolerance)
        worst, where = max(worst, error), where or first
    return worst, where


def _record(bench: Bench, example: object) -> Tape:
    with torch.random.fork_rng():
        torch.manual_seed(bench.seed)
        return record(bench.model, example)  # type: ignore[arg-type]


def _compare(
    before: Tape,
    after: Tape,
    axes: Mapping[int, Label],
    numbers: Numbers,
    passes: LoopPasses,
    by_variable: Mapping[Var, Tensor],
    tolerance: float,
) -> tuple[float, str | None]:
    ours, theirs = live(before), live(after)
    if [op.name for op in ours] != [op.name for op in theirs]:
        return float("inf"), "the permuted network ran other ops"
    moved = dict(by_variable)
    worst, where = 0.0, None
    units = _units(ours, passes)
    for one, other in zip(ours, theirs, strict=True):
        if one.name.startswith(("empty", "new_empty")) or one.name == "mkldnn_rnn_layer":
            continue
        for x, y in zip(one.results, other.results, strict=True):
            if isinstance(x, Tensor) and id(x) in numbers.sorting and one is numbers.sorting[id(x)].op:
                moved |= _rows_moved(numbers.sorting[id(x)], y)
        for x, y in zip(one.results, other.results, strict=True):
            meaning = numbers.of(x) if isinstance(x, Tensor) else None
            if not isinstance(x, Tensor) or id(x) not in axes or (meaning and meaning.kind in ("bounds", "range")):
                continue
            if id(x) in passes.partial:
                continue
            turn = passes.of.get(id(x))
            if turn is not None:
                # this pass is now the one of the unit that has come here
                x = units[turn.form].get(int(positions(turn.axis, moved)[turn.number]), x)
            expected = _moved(x, looked(axes[id(x)]), moved)
            if meaning is not None and meaning.kind == "units":
                expected = _renumbered(expected, meaning.axis, moved)
            error = change(expected, y)
            worst = max(worst, error)
            if error > tolerance and where is None:
                where = str(one)
    return worst, where


def _units(ops: Sequence[Op], passes: LoopPasses) -> dict[int, dict[int, Tensor]]:
    # per form of a loop's tensors, that of every unit
    found: dict[int, dict[int, Tensor]] = {}
    for op in ops:
        for r in op.results:
            if isinstance(r, Tensor) and id(r) in passes.of:
                turn = passes.of[id(r)]
                found.setdefault(turn.form, {})[turn.number] = r
    return found


def _rows_moved(order: Order, after: Tensor) -> dict[Var, Tensor]:
    # where each row of the new order was in the old one
    (rows,) = list(leaves(order.rows)) or (None,)
    if rows is None:
        return {}
    old = order.indices.flatten().argsort()
    return {rows: old[after.flatten()].cpu()}


def _renumbered(x: Tensor, axis: Axis, moved: Mapping[Var, Tensor]) -> Tensor:
    # numbers of units after the units have moved; numbers beyond them stay
    now = positions(axis, moved).argsort().to(x.device)
    inside = (x >= 0) & (x < len(now))
    return torch.where(inside, now[x.long().clamp(0, max(len(now) - 1, 0))].to(x.dtype), x)


def _moved(x: Tensor, axes: Label, moved: Mapping[Var, Tensor]) -> Tensor:
    if isinstance(axes, Blank):
        return x
    if isinstance(axes, Blocks):
        parts = zip(torch.split(x, lengths_of(axes), axes.dim), axes.parts, strict=True)
        return torch.cat([_moved(part, label, moved) for part, label in parts], axes.dim)
    for dim, axis in enumerate(axes):
        if axis_size(axis) > 1 and any(var in moved for var in leaves(axis)):
            x = x.index_select(dim, positions(axis, moved).to(x.device))
    return x


def positions(axis: Axis, moved: Mapping[Var, Tensor]) -> Tensor:
    """Where each position of the axis comes from when variables are permuted (new i is old moved[i]), int64."""
    names = {var: str(i) for i, var in enumerate(leaves(axis)) if var in moved}
    return axis_order(layout_of(axis, names), {name: Pairs.permutation(moved[var]) for var, name in names.items()})


__all__ = ["deep_check"]
