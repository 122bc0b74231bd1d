"""How much of a fused network is each member's."""

from neurograft.axes.maps import kept_share
from neurograft.plans.plan import FusionPlan
from neurograft.tracing.graph import Group

HARDLY_CHANGED = 0.9
"""A result of which one member supplies more than this is that member, hardly changed."""


def member_shares(plan: FusionPlan) -> tuple[float, ...]:
    """The share of the fused neurons that each member supplies, the mean over all groups that may move; sums to 1.

    A neuron that one member owns is its own; of a mean of all members each has its weight times the sum of its row of
    A. Without such groups the shares are the members' weights.

    Example:
        >>> from neurograft.tracing.graph import NeuronGraph
        >>> member_shares(FusionPlan("average", (NeuronGraph((), {}),) * 2, {}, (0.25, 0.75)))
        (0.25, 0.75)
    """
    totals, neurons = [0.0] * plan.members, 0
    for group in plan.graph.outermost:
        if group.name in plan.details.get("heads", ()):  # of outputs that are kept side by side each is its member's
            continue
        shares = weights = _weights(plan, group)
        if group.name in plan.maps:
            kept = kept_share(plan.maps[group.name])
            parts = kept if plan.owned else tuple(w * share for w, share in zip(weights, kept, strict=True))
            shares = tuple(part / sum(parts) for part in parts)
        totals = [total + group.size * share for total, share in zip(totals, shares, strict=True)]
        neurons += group.size
    return tuple(total / neurons for total in totals) if neurons else plan.weights


def _weights(plan: FusionPlan, group: Group) -> tuple[float, ...]:
    """The members' weights where a group's neurons are made, the mean over the tensors that make them."""
    made = {slot.tensor for slot in group.slots if slot.role == "out"}
    if plan.tensor_weights.keys().isdisjoint(made):
        return plan.weights
    return tuple(sum(plan.weight(name, m) for name in made) / len(made) for m in range(plan.members))


def shares_text(shares: tuple[float, ...]) -> str:
    """Shares in words, led by a member that is nearly all of the result.

    Example:
        >>> shares_text((0.25, 0.75))
        'member 0 25%, member 1 75%'
        >>> shares_text((0.98, 0.02))
        'this is member 0, hardly changed: member 0 98%, member 1 2%'
    """
    each = ", ".join(f"member {m} {share:.0%}" for m, share in enumerate(shares))
    most = dominant_member(shares)
    return each if most is None else f"this is member {most}, hardly changed: {each}"


def dominant_member(shares: tuple[float, ...]) -> int | None:
    """The member that supplies more than nine tenths, None if there is none."""
    most = max(range(len(shares)), key=shares.__getitem__)
    return most if len(shares) > 1 and shares[most] > HARDLY_CHANGED else None
