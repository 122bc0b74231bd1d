"""`plan`: let a method fill in the matrices for members that were checked."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neurograft.alignment.activations import calibration_of
from neurograft.alignment.ancestry import (
    ALIGNED_BELOW,
    aligned_members,
    distance_ratio,
    relative_distance,
    unaligned_notes,
)
from neurograft.errors import MembersDiffer, OptionError, PlanError
from neurograft.inputs import Calibration, Inputs
from neurograft.member_statistics.statistics import Statistics
from neurograft.members.checks import Weights, check_fixed_widths
from neurograft.members.graphs import check_unreached
from neurograft.members.members import Members, members_of
from neurograft.methods import METHODS, choice_of
from neurograft.methods.method import Method
from neurograft.operators.operator import Operator
from neurograft.operators.owned import Owned
from neurograft.options import check_choice, check_seed
from neurograft.plans.joint import check_joint
from neurograft.plans.output_heads import Heads, freed_heads, graphs_for_methods, with_kept_heads
from neurograft.plans.plan import Filling, FusionPlan, graph_depths
from neurograft.plans.warnings import cut_warnings, read_shares, weight_warnings
from neurograft.preserve_state import keeps_random_state
from neurograft.tracing.graph import NeuronGraph


@keeps_random_state
def plan(
    models: Sequence[nn.Module] | Members,
    example_inputs: Inputs | None = None,
    method: str | Method | Operator = "transplant",
    weights: Weights | None = None,
    graph: NeuronGraph | None = None,
    *,
    align: str | Method | None = None,
    base: nn.Module | str | Path | None = None,
    calibration: Calibration | None = None,
    statistics: Sequence[Statistics] | None = None,
    fixed: str | Sequence[str] = (),
    heads: Heads = "average",
    seed: int = 0,
    **options: Any,
) -> FusionPlan:
    """Decide how the members' neurons become the fused ones, without touching any weight.

    Args:
        models: at least two networks of one class; widths of free groups may differ. Or `Members`, which carry example
            inputs, graph and fixed patterns, and may lie on disk.
        example_inputs: what the networks take: a tensor, a tuple of arguments, or a dict of keyword arguments.
        method: a method with its options, such as `ng.Transplant(balance=True)`, or its name. Or an operator, such as
            `ng.Ties(density=0.5)`, or its name; it combines members as they are, or in the basis that `align` brings
            them into.
        weights: one number per member, normalised to sum to 1; None lets the method choose (usually equal). Or patterns
            of tensor names -> one number per member, as `Members` takes them.
        graph: the graph of `models[0]` if it was traced before.
        align: for an operator: "permutation", "optimal_transport", or such a method with its options.
        base: for an operator: the network that all members were trained from, or its checkpoint or folder; it is
            aligned along with them.
        calibration: a re-iterable of batches, for methods that look at activations; or "noise".
        statistics: one `Statistics` per member; without calibration batches inputs are drawn from them.
        fixed: fnmatch patterns of parameters whose neurons stay where they are.
        heads: "average" fuses the layers that make the outputs too; "keep" leaves every member its own on the fused
            trunk: the network returns their outputs one after the other, member 0's first, and members may have
            different label sets (`plan.details["heads"]` records which outputs are whose).
        seed: the only source of randomness.
        options: the options of a method that is given by name.

    Returns:
        The plan; `print(plan)` shows every group's kept shares and warnings.

    Raises:
        OptionError: an unknown method or option (the message has the closest names), or a seed outside its range.
        MembersDiffer: members of different classes, tensors or shapes.
        BadWeights: NaN or infinite weights, or member weights that make no sense.
        Unreached: parameters beside moved neurons that the example inputs did not reach.

    Example:
        >>> import torch, neurograft as ng
        >>> nets = [torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)) for _ in "ab"]
        >>> ng.plan(nets, torch.randn(1, 4), method="transplant").sizes
        {'0.weight:0': 8}
    """
    chosen, operator = choice_of(method, options, align)
    check_seed(seed)  # before the networks are traced
    members = members_of(models, example_inputs, weights, graph, fixed, calibration, base, statistics)
    return plan_members(members, chosen, operator, heads=heads, seed=seed)


def plan_members(
    members: Members, method: Method, operator: Operator | None = None, *, heads: Heads = "average", seed: int = 0
) -> FusionPlan:
    """`plan` for members that are there; a pass over weights on disk that finds bad numbers is left to the method.

    With an operator the method only aligns.
    """
    check_choice("heads", heads, ("average", "keep"))
    check_seed(seed)
    keep = heads == "keep"
    if method.canonical:
        members.check_numbers()  # before any of them meets another
        members = members.canonical
    if operator is not None:
        operator = settled_operator(operator, members)
    with_base = operator is not None and members.base is not None and (operator.needs_base or operator.takes_base)
    graphs = members.graphs
    laid_out = freed_heads(graphs) if keep else graphs
    check_fixed_widths(laid_out)
    if not method.canonical and (operator is not None or not (members.stored and method.finds_bad_numbers)):
        members.check_numbers()
    compared = members.with_base() if with_base else members
    if keep:
        compared = compared.changed(graphs=graphs_for_methods(compared.graphs))
    if method.equal_widths:
        _check_widths(compared, method)
    for needing in (method, operator):
        if needing is not None and needing.needs_data:
            calibration_of(members, str(needing))
    try:
        filling = method.fill(compared, torch.Generator().manual_seed(seed))
    except PlanError:
        members.check_numbers()  # bad numbers may be the reason: then report where they are
        raise
    base = None
    if with_base:
        check_fixed_widths((laid_out[0], members.base_graph), ("models[0]", "the base"))
        if not method.moves:
            _check_ancestor(members)
        filling, base = _apart(filling, members.base_graph)
    if operator is not None:
        filling = replace(filling, operator=operator)
    check_unreached(graphs[0], filling.maps, members.fixed)
    aligned = aligned_members(compared)[: len(members)]
    notes = () if method.moves else unaligned_notes(aligned)
    notes += members.notes
    if isinstance(filling.operator, Owned):
        chosen = {group: filling.maps[group] for group in filling.maps if graphs[0][group].inside is None}
        notes += cut_warnings(graphs[0], read_shares(chosen)) + weight_warnings(graphs[0], filling)
    if keep:
        filling = with_kept_heads(filling, graphs)
    plan = FusionPlan(
        method=_label(method, operator),
        graphs=laid_out,
        maps=filling.maps,
        weights=filling.weights,
        operator=filling.operator,
        options=_options(members, method, operator),
        seed=seed,
        tensor_weights={**members.tensor_weights, **filling.tensor_weights},
        base=base,
        warnings=(*filling.warnings, *notes),
        details={**filling.details, "aligned": aligned},
        canonical=members.is_canonical,
    )
    check_joint(plan.maps, plan.joint)
    return plan


def _apart(filling: Filling, graph: NeuronGraph) -> tuple[Filling, FusionPlan]:
    """What was decided for the members, and for their ancestor, which was the last of them."""
    maps = {group: maps[:-1] for group, maps in filling.maps.items()}
    own = {group: maps[-1:] for group, maps in filling.maps.items()}
    return replace(filling, maps=maps, weights=filling.weights[:-1]), FusionPlan("base", (graph,), own, (1.0,))


def settled_operator(operator: Operator, members: Members) -> Operator:
    """An operator with the members' weights where it takes such as they are and has none of its own.

    Raises:
        OptionError: it cannot combine these members, needs an ancestor and has none, or weights are given twice.
        BadWeights: weights of another length, or weights that cannot be normalised.
    """
    settled = _with_weights(operator, members)
    settled.check(len(members), list(members.states[0]), graph_depths(members.graph))
    return settled


def _with_weights(operator: Operator, members: Members) -> Operator:
    if operator.needs_base and members.base is None:
        raise OptionError(
            f"{operator} combines what members have changed: give their ancestor, base= (on the command line --base)"
        )
    if members.given is not None and operator.unweighted:
        raise OptionError(f"{operator.name} takes no weights of members; its options are {_listed(operator)}")
    if "weights" not in operator.option_names() or members.given is None:
        return operator
    if getattr(operator, "weights") is not None:  # noqa: B009 - no attribute of all operators
        raise OptionError(f"weights are given twice: to {operator.name} and to the members")
    return replace(operator, weights=members.given)  # type: ignore[call-arg]


def _listed(operator: Operator) -> str:
    return ", ".join(operator.option_names()) or "none"


def _check_ancestor(members: Members) -> None:
    """Refuse a base that members as they are do not come from.

    Raises:
        PlanError: with how far it is away.
    """
    assert members.base is not None
    base = members.base.states[0]
    for m, state in enumerate(members.states):
        if members.graph.free:
            ratio = distance_ratio(state, base, members.graph)
            told = (
                f"neurons of the same place lie {ratio:.2f} times as far apart (squared) as neurons of different places"
            )
        else:
            ratio = relative_distance(state, base)
            told = f"they lie {ratio:.2f} times as far apart (squared) as networks that have nothing in common"
        if ratio >= ALIGNED_BELOW:
            raise PlanError(
                f"the base is no ancestor of {members.owner(m)}: {told}, of children less than {ALIGNED_BELOW} times; "
                "give another base, or align=, which moves it to the members"
            )


def _label(method: Method, operator: Operator | None) -> str:
    if operator is None:
        return method.name
    return f"{operator.name} after {method.name}" if method.moves else operator.name


def _options(members: Members, method: Method, operator: Operator | None) -> dict[str, Any]:
    """What was asked for beside the method's name, as it is recorded."""
    found = dict(method.options)
    if operator is not None:
        found = {**operator.options, **({"align": str(method)} if method.moves else {})}
    listed = members.given if isinstance(members.given, Mapping) or members.tensor_weights else None
    return {**found, **({} if listed is None or "weights" in found else {"weights": listed})}


def _check_widths(members: Members, method: Method) -> None:
    """Refuse members of other widths where a method needs equal ones, with the methods that do not.

    Raises:
        MembersDiffer: names the first group and its sizes.
    """
    for group in members.graph.free:
        sizes = members.sizes(group.name)
        if len(set(sizes)) > 1:
            others = [name for name, kind in METHODS.items() if not kind.equal_widths]
            raise MembersDiffer(
                f"group {group.name} has {' / '.join(map(str, sizes))} neurons in the members; {method.name} needs "
                f"equal widths, {', '.join(others[:-1])} and {others[-1]} do not"
            )
