"""One graph per member: members of the same shapes share one."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from typing import Any

from torch import nn

from neurograft.errors import MembersDiffer, TraceError, Unreached
from neurograft.inputs import Inputs
from neurograft.members.states import State
from neurograft.tracing.graph import NeuronGraph
from neurograft.tracing.tracer import trace


def graphs_of(
    models: Sequence[nn.Module],
    states: Sequence[State],
    example_inputs: Inputs,
    graph: NeuronGraph | None = None,
    fixed: Sequence[str] = (),
) -> list[NeuronGraph]:
    """One graph per member; members with the same shapes share one, the others are traced for themselves."""
    by_shapes: dict[tuple[Any, ...], NeuronGraph] = {}
    if graph is not None:
        by_shapes[_shapes(states[0])] = graph.fixing(fixed)
    graphs = []
    for m, (model, state) in enumerate(zip(models, states, strict=True)):
        key = _shapes(state)
        if key not in by_shapes:
            by_shapes[key] = _traced(model, m, example_inputs, fixed)
        graphs.append(by_shapes[key])
        first, own = graphs[0], graphs[m]
        if [(g.name, g.fixed) for g in first.groups] != [(g.name, g.fixed) for g in own.groups]:
            differing = {g.name for g in first.free} ^ {g.name for g in own.free}
            raise MembersDiffer(
                f"models[{m}] has other neuron groups than models[0] (for example {sorted(differing)[:3]}); "
                "the members' architectures differ in more than widths"
            )
    return graphs


def _traced(model: nn.Module, m: int, example_inputs: Inputs, fixed: Sequence[str]) -> NeuronGraph:
    try:
        return trace(model, example_inputs, fixed=fixed)
    except TraceError as error:
        if m == 0:
            raise
        raise MembersDiffer(f"models[{m}] cannot be traced where models[0] can: {error}") from error


def _shapes(state: State) -> tuple[Any, ...]:
    return tuple((name, tuple(tensor.shape)) for name, tensor in state.items())


def check_unreached(graph: NeuronGraph, groups: Iterable[str], fixed: Sequence[str]) -> None:
    """Refuse to move neurons beside parameters that no example input reached and no pattern in `fixed` names.

    Raises:
        Unreached: with the parameter, the neurons beside it, and what to do.
    """
    left = [name for name in graph.unreached if not any(fnmatch(name, pattern) for pattern in fixed)]
    moved = {slot.tensor for name in groups for slot in graph[name].slots}
    for name in left:
        owner = name.rpartition(".")[0]
        around = owner.rpartition(".")[0]
        beside = sorted(t for t in moved if t.startswith(f"{around}." if around else ""))
        if beside:
            raise Unreached(
                f"{name} was not reached by the example inputs, but neurons beside it move ({beside[0]}); give more "
                f'example inputs (a list), or name it in fixed=["{name}"] if it is not used ({len(left)} unreached)'
            )
