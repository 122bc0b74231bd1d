"""How far members agree neuron by neuron, and a plan in which those that do not agree count less."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor, nn

from neurograft.alignment.activation_similarity import moved_cells
from neurograft.alignment.activations import Cells, member_cells
from neurograft.axes.maps import NeuronMap, Pairs
from neurograft.members.members import Members
from neurograft.operators.mean import Mean
from neurograft.plans.plan import FusionPlan
from neurograft.recovery.holdout import HoldOut
from neurograft.recovery.samples import Samples

ROWS = 1024
"""Rows (samples x positions) that correlations are measured on, fewer where memory is short."""
FEWEST = 16
"""Correlations of fewer rows are noise: the plan stays as it is."""


@dataclass(frozen=True, eq=False, slots=True)
class Agreement:
    """A plan whose merged neurons are weighted by how well the members' neurons agree.

    Attributes:
        plan: with the merges A_m scaled row by row.
        reference: the member the others are compared with.
        shares: what each member is left with, the mean over all merged neurons; they sum to 1.
    """

    plan: FusionPlan
    reference: int
    shares: tuple[float, ...]


def agreement(
    plan: FusionPlan, members: Members, samples: Samples, *, judges: Samples | None = None, memory: int
) -> Agreement | None:
    """Weight every merged neuron's members by ω_m ∝ w_m · max(r_m, 0)², where a mean would destroy what they compute.

    r_m is the correlation, over the samples, of what the member brings to the fused neuron with what the reference
    brings, so r_m² is the share of the reference's variance that it explains. Members that agree keep their weights
    w_m; the mean of neurons that have nothing to do with each other is no member's neuron, and there the reference's
    own is kept. The reference is the member whose outputs are nearest to the members' mean.

    Args:
        plan: of merged neurons.
        members: the members.
        samples: to measure correlations on.
        judges: to choose the reference on, default the samples.
        memory: bytes for activations.

    Returns:
        None for a plan of owned neurons (a selection merges nothing), one with weights of its own per tensor, and one
        of too few samples.

    Example:
        >>> import neurograft as ng
        >>> nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in "ab"]
        >>> x = torch.randn(100, 4)
        >>> members = ng.Members(nets, x)
        >>> found = agreement(ng.plan(members, method="average"), members, Samples((x,), (100,)), memory=1 << 20)
        >>> found.reference, found.shares[0] > 0.6
        (0, True)
    """
    if not merges(plan):
        return None
    groups = [group.name for group in plan.graph.outermost]
    own = [_maps(plan, m) for m in range(len(members))]
    widths = sum(plan.graphs[m][name].size for m in range(len(members)) for name in groups)
    rows = min(ROWS, max(FEWEST, memory // (4 * widths)))
    batches = [(batch, None) for batch in samples.batches]
    given = members.changed(graphs=plan.graphs, calibration=batches)
    found = [moved_cells(cells, maps) for cells, maps in zip(member_cells(given, samples=rows), own, strict=True)]
    reference = nearest_member(plan, members.networks, samples if judges is None else judges)
    moved, shares = dict(plan.maps), []
    weights = torch.tensor(plan.weights, dtype=torch.float64)
    for name in groups:
        correlations = _correlations(name, found, reference)
        if correlations is None:
            continue
        kept = weights[:, None] * correlations.clamp_min(0).square()
        kept = kept / kept.sum(0)
        factors = kept / weights[:, None].clamp_min(torch.finfo(torch.float64).tiny)
        moved[name] = tuple(_scaled(maps[name], factors[m]) for m, maps in enumerate(own))
        shares.append(kept)
    if not shares:
        return None
    mean = torch.cat(shares, 1).mean(1).tolist()
    return Agreement(replace(plan, maps=moved), reference, tuple(mean))


def nearest_member(plan: FusionPlan, models: Sequence[nn.Module], samples: Samples) -> int:
    """The member, of those that count at all, whose outputs are nearest to the members' mean; of equals the first."""
    judge = HoldOut.of(samples, plan, models)
    pairs = zip(models, plan.weights, strict=True)
    errors = [judge.error(model) if weight > 0 else inf for model, weight in pairs]
    return min(range(len(models)), key=lambda m: (round(errors[m], 6), m))


def merges(plan: FusionPlan) -> bool:
    """Whether the plan merges neurons whose members could be weighted one by one."""
    whole = isinstance(plan.operator, Mean) and not plan.joint and not plan.tensor_weights
    return whole and bool(plan.graph.outermost)


def _maps(plan: FusionPlan, member: int) -> dict[str, NeuronMap]:
    """The member's maps; groups the plan leaves where they are have the identity."""
    kept = [group for group in plan.graph.outermost if group.name not in plan.maps]
    still = {group.name: NeuronMap.permutation(torch.arange(group.size)) for group in kept}
    return still | {name: maps[member] for name, maps in plan.maps.items()}


def _correlations(group: str, found: Sequence[Cells], reference: int) -> Tensor | None:
    """Of every member with the reference, shape `(members, fused neurons)`, float64; None where nothing was seen."""
    keys = [key for key in found[reference] if key[0] == group]
    if not keys or any(len(found[reference][key]) < FEWEST for key in keys):
        return None
    rows = []
    for m, cells in enumerate(found):
        if m == reference:
            first = found[reference][keys[0]]
            rows.append(torch.ones(first.shape[1], dtype=torch.float64))
            continue
        rows.append(torch.stack([_correlation(cells[key], found[reference][key]) for key in keys]).mean(0))
    return torch.stack(rows)


def _correlation(own: Tensor, other: Tensor) -> Tensor:
    """Per unit, over the rows; the mean over the neurons inside a unit. A silent neuron agrees with nothing."""
    a, b = own.double().cpu(), other.double().cpu()
    a, b = a - a.mean(0), b - b.mean(0)
    size = (a.square().sum(0) * b.square().sum(0)).sqrt()
    r = (a * b).sum(0) / size.clamp_min(torch.finfo(torch.float64).tiny)
    return r if r.dim() == 1 else r.flatten(1).mean(1)


def _scaled(own: NeuronMap, factors: Tensor) -> NeuronMap:
    """The map with every row of A scaled."""
    merge = own.merge
    if isinstance(merge, Pairs):
        weight = torch.ones(len(merge.target)) if merge.weight is None else merge.weight
        return NeuronMap(replace(merge, weight=weight * factors.to(weight)[merge.target]), own.unmerge)
    assert isinstance(merge, Tensor)
    return NeuronMap(merge * factors.to(merge)[:, None], own.unmerge)
