"""`plan`: let a method fill in the matrices for members that were checked."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from neurograft.alignment.activations import calibration_of
from neurograft.alignment.ancestry import aligned_members, unaligned_notes
from neurograft.errors import MembersDiffer, PlanError
from neurograft.inputs import Batches, Inputs
from neurograft.members.checks import check_fixed_widths
from neurograft.members.graphs import check_unreached
from neurograft.members.members import Members, members_of
from neurograft.methods import METHODS, method_of
from neurograft.methods.method import Method
from neurograft.options import check_choice, check_seed
from neurograft.plans.output_heads import Heads, freed_heads, graphs_for_methods, with_kept_heads
from neurograft.plans.plan import FusionPlan, cut_warnings, read_shares, weight_warnings
from neurograft.tracing.graph import NeuronGraph


def plan(
    models: Sequence[nn.Module] | Members,
    example_inputs: Inputs | None = None,
    method: str | Method = "transplant",
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
        method: a method with its options, such as `ng.Transplant(balance=True)`, or its name.
        weights: one number per member, normalised to sum to 1; None lets the method choose (usually equal).
        graph: the graph of `models[0]` if it was traced before.
        calibration: a re-iterable of batches, for methods that look at activations.
        fixed: fnmatch patterns of parameters whose neurons stay where they are.
        heads: "average" fuses the layers that make the outputs too; "keep" leaves every member its own on the fused
            trunk: the network returns their outputs one after the other, member 0's first, and members may have
            different label sets (`plan.details["heads"]` says which outputs are whose).
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
    chosen = method_of(method, options)
    check_seed(seed)
    members = members_of(models, example_inputs, weights, graph, fixed, calibration)
    return plan_members(members, chosen, heads=heads, seed=seed)


def plan_members(members: Members, method: Method, *, heads: Heads = "average", seed: int = 0) -> FusionPlan:
    """`plan` for members that are there; a pass over weights on disk that finds bad numbers is left to the method."""
    check_choice("heads", heads, ("average", "keep"))
    check_seed(seed)
    keep = heads == "keep"
    graphs = members.graphs
    laid_out = freed_heads(graphs) if keep else graphs
    check_fixed_widths(laid_out)
    if not (members.stored and method.finds_bad_numbers):
        members.check_numbers()
    compared = members.changed(graphs=graphs_for_methods(graphs)) if keep else members
    if method.equal_widths:
        _check_widths(compared, method)
    if method.needs_data:
        calibration_of(members, str(method))
    try:
        filling = method.fill(compared, torch.Generator().manual_seed(seed))
    except PlanError:
        members.check_numbers()  # bad numbers may be the reason: then say where they are
        raise
    check_unreached(graphs[0], filling.maps, members.fixed)
    aligned = aligned_members(compared)
    notes = () if method.moves else unaligned_notes(aligned)
    notes += members.notes
    if filling.owned:
        chosen = {group: filling.maps[group] for group in filling.maps if graphs[0][group].inside is None}
        notes += cut_warnings(graphs[0], read_shares(chosen)) + weight_warnings(graphs[0], filling)
    if keep:
        filling = with_kept_heads(filling, graphs)
    return FusionPlan(
        method=method.name,
        graphs=laid_out,
        maps=filling.maps,
        weights=filling.weights,
        owned=filling.owned,
        options=method.options,
        seed=seed,
        tensor_weights=filling.tensor_weights,
        warnings=(*filling.warnings, *notes),
        details={**filling.details, "aligned": aligned},
    )


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
