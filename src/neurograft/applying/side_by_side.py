"""Whether members that run side by side in one wide network can give their average, seen from the ops alone.

Each tensor of a run of member 0 is one of these: shared by all members, made of weights alone, apart (along moved
groups, where every member has its own units), or a mean Σ_m w_m v_m. A layer that reads moved groups and makes none
gives a mean, as its weight is scaled by w_m. A mean stays one through affine ops, f(Σ_m w_m v_m) = Σ_m w_m f(v_m)
with Σ_m w_m = 1; behind anything else it is no mean of what the members compute, whatever numbers the inputs hold.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from neurograft.members.states import State
from neurograft.plans.joint import made_by
from neurograft.tracing.algebra import Var, leaves
from neurograft.tracing.blocks import blocks_of, looked
from neurograft.tracing.graph import FixedReason, NeuronGraph
from neurograft.tracing.graph_builder import build_graph
from neurograft.tracing.labelling import Labelling, pinned_outputs
from neurograft.tracing.laws import ATTENTION, CONTRACTIONS, LINEAR, SUMS
from neurograft.tracing.proof import examples_of
from neurograft.tracing.tape import Op, op_tensors, storage_of, tensors_of
from neurograft.tracing.tracer import learnt

# affine in all their operands together
JOINTLY = (
    LINEAR
    | SUMS
    | frozenset(
        {
            *(
                "add",
                "sub",
                "rsub",
                "copy",
                "cumsum",
                "trace",
                "diagonal",
                "tril",
                "triu",
                "where",
                "masked_fill",
                "zero",
            ),
            *("real", "imag", "view_as_real", "view_as_complex", "complex", "_fft_r2c", "_fft_c2r", "_fft_c2c"),
            *("pixel_shuffle", "pixel_unshuffle", "reflection_pad1d", "reflection_pad2d", "replication_pad2d"),
            *("slice_scatter", "select_scatter", "index_put", "scatter", "upsample_linear1d", "upsample_trilinear3d"),
        }
    )
)
# linear in each operand by itself
EACH = CONTRACTIONS | {"mul", "div", "addcmul", "_sparse_addmm", "embedding_bag", "_embedding_bag", "outer"}


class Standing(Enum):
    """What a tensor is to the members."""

    SHARED = 0
    WEIGHT = 1
    MEAN = 2
    APART = 3


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor's standing; the weights that made it; why a mean is none, "" if it is one; whether inputs are in it."""

    standing: Standing
    makers: tuple[str, ...] = ()
    broken: str = ""
    active: bool = False


SHARED = Value(Standing.SHARED)


def broken_average(
    model: nn.Module, inputs: Any, graph: NeuronGraph, states: Sequence[State], segmented: Container[str] = ()
) -> str:
    """Why the outputs of a wide network cannot be the members' average, "" if nothing speaks against it.

    Args:
        model: member 0; it is run once per example.
        inputs: the examples.
        graph: its graph.
        states: the members' tensors; those that are the same in all members and lie along no moved group are shared.
        segmented: paths of norms that work on every member's segment by itself.
    """
    examples = examples_of(inputs)
    labelling, _ = learnt(model, examples, graph.outputs or None)
    _, variables = build_graph(labelling, model)
    walk = _Walk(labelling, variables, graph, states, segmented)
    for op in labelling.steps:
        walk.step(op)
    for tape, path, x in labelling.pinned:
        if any(x is own for _, own in pinned_outputs(tape.outputs, graph.outputs or None)) and x.is_floating_point():
            found = walk.value(x)
            if found.broken:
                return found.broken
            if found.standing is Standing.APART:
                return f"the output {path}".strip() + " has the units of all members side by side"
    return ""


class _Walk:
    """The standing of every tensor, op by op."""

    def __init__(
        self,
        labelling: Labelling,
        variables: Mapping[str, Var],
        graph: NeuronGraph,
        states: Sequence[State],
        segmented: Container[str],
    ) -> None:
        self.labelling, self.graph, self.segmented = labelling, graph, segmented
        self.moved = {variables[group.name] for group in graph.outermost if group.name in variables}
        self.names = {id(x): name for name, x in labelling.tensors.by_name.items()}
        self.storages = {storage_of(x): name for name, x in labelling.tensors.by_name.items()}
        self.written: dict[int, Value] = {}
        self.values: dict[int, Value] = {}
        for tape in {id(tape): tape for tape, _, _ in labelling.pinned}.values():
            self.values.update((id(x), Value(Standing.SHARED, active=True)) for _, x in tensors_of(tape.inputs))
        groups = {group.name for group in graph.outermost}
        for name, info in graph.tensors.items():
            along = any(group in groups for roles in info.roles for group in roles)
            first = states[0][name]
            if not along and all(torch.equal(state[name].to(first.device), first) for state in states):
                self.values[id(labelling.tensors.by_name[name])] = SHARED

    def value(self, x: Tensor) -> Value:
        """What a tensor is to the members."""
        known = self.values.get(id(x))
        written = self.written.get(storage_of(x)) if self.written else None
        if known is None:
            name = self.names.get(id(x)) or self.storages.get(storage_of(x))
            known = SHARED if name is None else Value(Standing.WEIGHT, (name,))
        return known if written is None else _joined([known, written])

    def step(self, op: Op) -> None:
        """Follow one op."""
        taken = [self.value(x) for x in op_tensors(op)]
        results = [r for r in op.results if isinstance(r, Tensor)]
        found = self._found(op, taken, any(map(self._apart, results)))
        found = replace(found, active=any(value.active for value in taken))
        for r in results:
            self.values[id(r)] = found
        for x in op.mutates:
            self.values[id(x)] = self.written[storage_of(x)] = found

    def _apart(self, x: Tensor) -> bool:
        label = self.labelling.seen.get(id(x))
        if label is None:
            return False
        return any(var in self.moved for axes in blocks_of(looked(label)) for axis in axes for var in leaves(axis))

    def _found(self, op: Op, taken: Sequence[Value], apart: bool) -> Value:
        broken = next((value for value in taken if value.broken), None)
        if broken is not None:
            return broken
        standings = {value.standing for value in taken}
        makers = tuple(dict.fromkeys(name for value in taken for name in value.makers))
        if standings <= {Standing.SHARED}:
            return SHARED
        if standings <= {Standing.SHARED, Standing.WEIGHT} and not any(value.active for value in taken):
            return Value(Standing.WEIGHT, makers)
        if apart:
            meeting = next((value for value in taken if self._meets(value)), None)
            return Value(Standing.APART) if meeting is None else Value(Standing.MEAN, broken=self._inside(meeting, op))
        if Standing.APART in standings and op.module in self.segmented:
            return Value(Standing.APART)
        made = self._made(op, taken)
        return Value(Standing.MEAN, makers, made)

    def _meets(self, value: Value) -> bool:
        # whether an operand beside members' own units is one for all of them
        if value.standing is Standing.MEAN:
            return True
        moved = {group.name for group in self.graph.outermost}
        infos = [self.graph.tensors[name] for name in value.makers if name in self.graph.tensors]
        return value.standing is Standing.WEIGHT and not any(made_by(info, moved) for info in infos)

    def _made(self, op: Op, taken: Sequence[Value]) -> str:
        """Why an op makes no mean, "" if it does."""
        name = op.name.rstrip("_")
        others = [value for value in taken if value.standing is not Standing.SHARED]
        mean = next((value for value in taken if value.standing is Standing.MEAN), None)
        if mean is None and Standing.APART in {value.standing for value in others}:
            return "" if name in JOINTLY | EACH else f"{op} works on all members' units at once"
        if name in JOINTLY:
            return ""
        if name in EACH:
            sides = _factors(op, taken)
            divided = name == "div" and len(taken) > 1 and taken[1].standing is not Standing.SHARED
            if divided or sum(value.standing is not Standing.SHARED for value in sides) > 1:
                return self._inside(mean, op) if mean is not None else f"{op} is not linear in the members' weights"
            return ""
        return self._inside(mean, op) if mean is not None else f"{op} is not linear in the members' weights"

    def _inside(self, value: Value, op: Op) -> str:
        """What is in the way where a mean, or a weight that all units share, enters an op."""
        made_by_them = f"what {value.makers[-1]} makes" if value.makers else "what is made of all members' units"
        if value.standing is Standing.MEAN and op.name.rstrip("_") not in EACH | ATTENTION | JOINTLY:
            return f"{made_by_them} goes through {op}, which is not linear"
        moved = {group.name for group in self.graph.outermost}
        for maker in value.makers:
            info = self.graph.tensors.get(maker)
            made = () if info is None else (g for dim in info.roles for g, roles in dim.items() if "out" in roles)
            for group in (self.graph[name] for name in made if name not in moved):
                if group.reason not in (FixedReason.OUTPUT, FixedReason.INPUT):
                    why = group.why if group.fixed else f"inside {group.inside}, which {maker} does not have"
                    state = "fixed" if group.fixed else "shared"
                    return f"group {group.name} is {state} ({why}) but made by {maker} inside the network, in {op}"
        if value.standing is Standing.WEIGHT:
            return f"{value.makers[0]} is one for all units in {op}, and the members have others"
        return f"{made_by_them} meets other values of the members in {op}"


def _factors(op: Op, taken: Sequence[Value]) -> Sequence[Value]:
    """The operands that are multiplied: without what is added to the product, or a bias."""
    name = op.name.rstrip("_")
    if name in ("addmm", "baddbmm", "addmv", "_sparse_addmm", "addcmul"):
        return taken[1:]
    return taken[:2]


def _joined(values: Iterable[Value]) -> Value:
    return max(values, key=lambda value: (bool(value.broken), value.standing.value))


__all__ = ["broken_average"]
