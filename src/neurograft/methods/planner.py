"""`plan`: check the members, trace them, and let a method fill in the matrices."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from types import NoneType
from typing import Any, get_args

import torch
from torch import nn

from neurograft.alignment.ancestry import aligned_members
from neurograft.errors import MembersDiffer, OptionError, TraceError, Unreached, closest
from neurograft.inputs import Batches, Inputs, check_batches
from neurograft.members.members import (
    Members,
    State,
    check_finite,
    check_member_weights,
    check_models,
    check_names,
    check_shapes,
    differing_constants,
    state_of,
)
from neurograft.members.settings import differing_settings
from neurograft.methods import METHODS
from neurograft.options import check_choice
from neurograft.plans.output_heads import Heads, freed_heads, graphs_for_methods, with_kept_heads
from neurograft.plans.plan import FusionPlan, cut_warnings, read_shares, weight_warnings
from neurograft.tracing.graph import NeuronGraph
from neurograft.tracing.tracer import trace


def plan(
    models: Sequence[nn.Module],
    example_inputs: Inputs,
    method: str = "transplant",
    weights: Sequence[float] | None = None,
    graph: NeuronGraph | None = None,
    *,
    calibration: Batches | None = None,
    fixed: Sequence[str] = (),
    heads: Heads = "average",
    seed: int = 0,
    **options: Any,
) -> FusionPlan:
    """Decide how the members' neurons become the fused ones, without touching any weight.

    Args:
        models: at least two networks of one class; widths of free groups may differ.
        example_inputs: what the networks take: a tensor, a tuple of arguments, or a dict of keyword arguments.
        method: a name in `neurograft.methods.METHODS`.
        weights: one number per member, normalised to sum to 1; None lets the method choose (usually equal).
        graph: the graph of `models[0]` if it was traced before.
        calibration: a re-iterable of batches, for methods that look at activations.
        fixed: fnmatch patterns of parameters whose neurons stay where they are.
        heads: "average" fuses the layers that make the outputs too; "keep" leaves every member its own on the fused
            trunk: the network returns their outputs one after the other, member 0's first, and members may have
            different label sets (`plan.details["heads"]` says which outputs are whose).
        seed: the only source of randomness.
        options: the method's own options.

    Returns:
        The plan; `print(plan)` shows every group's kept shares and warnings.

    Raises:
        OptionError: an unknown method or option (the message has the closest names).
        MembersDiffer: members of different classes, tensors or shapes.
        BadWeights: NaN or infinite weights, or member weights that make no sense.
        Unreached: parameters beside moved neurons that the example inputs did not reach.

    Example:
        >>> import torch, neurograft as ng
        >>> nets = [torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)) for _ in "ab"]
        >>> ng.plan(nets, torch.randn(1, 4), method="transplant").sizes
        {'0.weight:0': 8}
    """
    check_method(method, options)
    check_models(models)
    if calibration is not None:
        check_batches(calibration, name="calibration")
    states = [state_of(model) for model in models]
    check_names(states)
    graphs = graphs_of(models, states, example_inputs, graph, fixed)
    return plan_states(
        states,
        graphs,
        method,
        check_member_weights(weights, len(models)),
        models=tuple(models),
        calibration=calibration,
        fixed=fixed,
        heads=heads,
        seed=seed,
        options=options,
    )


def plan_states(
    states: Sequence[State],
    graphs: Sequence[NeuronGraph],
    method: str,
    weights: tuple[float, ...] | None,
    *,
    models: tuple[nn.Module, ...] | None = None,
    calibration: Batches | None = None,
    fixed: Sequence[str] = (),
    heads: Heads = "average",
    seed: int = 0,
    options: Mapping[str, Any],
    scan: bool = True,
) -> FusionPlan:
    """Plan from tensors and graphs alone; the half of `plan` that streaming shares.

    Without `scan` the tensors are not searched for NaN and infinity beforehand, which reads everything once.
    """
    check_choice("heads", heads, ("average", "keep"))
    keep = heads == "keep"
    laid_out = freed_heads(graphs) if keep else tuple(graphs)
    check_shapes(states, laid_out)
    for m, state in enumerate(states if scan else ()):
        for name, tensor in state.items():
            check_finite(name, tensor, f"models[{m}]" if len(states) > 1 else "the model")
    compared = graphs_for_methods(graphs) if keep else laid_out
    members = Members(tuple(states), compared, weights, torch.Generator().manual_seed(seed), models, calibration)
    filling = METHODS[method](members, **options)
    check_unreached(graphs[0], filling.maps, fixed)
    notes = differing_constants(states) + differing_settings(models or ())
    if filling.owned:
        chosen = {group: filling.maps[group] for group in filling.maps if graphs[0][group].inside is None}
        notes += cut_warnings(graphs[0], read_shares(chosen)) + weight_warnings(graphs[0], filling)
    if keep:
        filling = with_kept_heads(filling, graphs)
    return FusionPlan(
        method=method,
        graphs=laid_out,
        maps=filling.maps,
        weights=filling.weights,
        owned=filling.owned,
        options=dict(options),
        seed=seed,
        tensor_weights=filling.tensor_weights,
        warnings=(*filling.warnings, *notes),
        details={**filling.details, "aligned": aligned_members(members)},
    )


def check_method(method: str, options: Mapping[str, Any]) -> None:
    """Refuse unknown methods and options, and switches that are neither on nor off, before any work is done.

    Raises:
        OptionError: with the closest known names.
    """
    if not isinstance(method, str) or method not in METHODS:
        raise OptionError(f"unknown method {method!r}; {closest(str(method), METHODS)}")
    taken = inspect.signature(METHODS[method]).parameters
    known = [name for name, p in taken.items() if p.kind is p.KEYWORD_ONLY]
    for name, value in options.items():
        if name not in known:
            hint = closest(name, known) if known else "it has none"
            raise OptionError(f"method {method!r} has no option {name!r}; {hint}")
        _check_kind(name, taken[name], value)


def _check_kind(name: str, parameter: inspect.Parameter, value: object) -> None:
    """Refuse what is no switch or number where an option is declared as one."""
    if isinstance(parameter.default, bool) and not isinstance(value, bool):
        raise OptionError(f"{name} is True or False, got {value!r}")
    declared = set(get_args(parameter.annotation) or (parameter.annotation,))
    if value is None or declared not in ({float}, {float, NoneType}, {int, NoneType}):
        return
    whole = float not in declared
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise OptionError(f"{name} is a {'whole ' if whole else ''}number, got {value!r}")


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
