"""`plan`: let a method fill in the matrices for members that were checked."""

import inspect
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, get_args

import torch
from torch import nn

from neurograft.alignment.ancestry import aligned_members
from neurograft.errors import OptionError, PlanError, closest
from neurograft.inputs import Batches, Inputs
from neurograft.members.checks import check_fixed_widths
from neurograft.members.graphs import check_unreached
from neurograft.members.members import Members, members_of
from neurograft.methods import METHODS
from neurograft.options import check_choice
from neurograft.plans.output_heads import Heads, freed_heads, graphs_for_methods, with_kept_heads
from neurograft.plans.plan import FusionPlan, cut_warnings, read_shares, weight_warnings
from neurograft.tracing.graph import NeuronGraph

SEES_BAD_NUMBERS = ("average", "transplant")
"""Methods that stop at NaN and infinity, or let them through to where streaming finds them: no pass of its own."""


def plan(
    models: Sequence[nn.Module] | Members,
    example_inputs: Inputs | None = None,
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
        models: at least two networks of one class; widths of free groups may differ. Or `Members`, which carry example
            inputs, graph and fixed patterns, and may lie on disk.
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
    members = members_of(models, example_inputs, weights, graph, fixed, calibration)
    return plan_members(members, method, heads=heads, seed=seed, options=options)


def plan_members(
    members: Members, method: str, *, heads: Heads = "average", seed: int = 0, options: Mapping[str, Any]
) -> FusionPlan:
    """`plan` for members that are there; a pass over weights on disk that finds bad numbers is left to the method."""
    check_choice("heads", heads, ("average", "keep"))
    keep = heads == "keep"
    graphs = members.graphs
    laid_out = freed_heads(graphs) if keep else graphs
    check_fixed_widths(laid_out)
    if not (members.stored and method in SEES_BAD_NUMBERS):
        members.check_numbers()
    compared = members.changed(
        graphs=graphs_for_methods(graphs) if keep else graphs, generator=torch.Generator().manual_seed(seed)
    )
    try:
        filling = METHODS[method](compared, **options)
    except PlanError:
        members.check_numbers()  # bad numbers may be the reason: then say where they are
        raise
    check_unreached(graphs[0], filling.maps, members.fixed)
    notes = members.notes
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
        details={**filling.details, "aligned": aligned_members(compared)},
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
