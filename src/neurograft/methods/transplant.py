"""Neuron transplantation: put all members' neurons side by side and keep the most important ones."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from neurograft.errors import OptionError, closest
from neurograft.members.checks import check_member_weights
from neurograft.members.members import Members
from neurograft.plans.plan import Filling
from neurograft.selection.duplicates import matched_insides, twin_classes
from neurograft.selection.scoring import Kind, scorers
from neurograft.selection.selection import Normalize, Selection, selection_maps, tree_of, tree_weights
from neurograft.selection.widths import fused_sizes

CHOICES = {
    "order": ("backward", "joint"),
    "strategy": ("flat", "iterative", "hierarchical"),
    "schedule": ("merge-prune", "prune-merge"),
    "normalize": ("none", "layer", "member"),
}


def transplant(
    members: Members,
    *,
    importance: Kind = "magnitude",
    normalize: Normalize = "none",
    balance: bool = False,
    order: Literal["backward", "joint"] = "backward",
    strategy: Literal["flat", "iterative", "hierarchical"] = "flat",
    schedule: Literal["merge-prune", "prune-merge"] = "merge-prune",
    fraction: float | None = None,
    quota: Sequence[float] | None = None,
    ratio: float | None = None,
    width: int | Mapping[str, int] | None = None,
    diversity: bool = False,
    tolerance: float = 1e-6,
) -> Filling:
    """Keep, in every group, the n most important of all members' neurons, in their original order.

    Who gets the neurons: raw magnitudes compare members by scale, and the function of a ReLU network does not
    change if a layer is scaled up and its reader down. So members trained to other scales can end as a cut network,
    layer 1 from one member and layer 2 from the other; the plan warns of it. `normalize="layer"` gives every
    member the same mean score in every group: members then share each group about equally and only the rank inside
    a member counts. `normalize="member"` takes out one factor per member, so that a member with larger weights
    everywhere has no advantage but keeps its say in the layers that are strong for it. `balance=True` does it per
    tensor, before the slots of a group are added up: what producers and readers contribute then weighs the same,
    and no rescaling of layers that keeps the function changes which neurons are kept.

    Args:
        members: the networks.
        importance: "magnitude", "l1", "activation", "variance", "taylor" or "random"; see `scoring.scorers`.
        normalize: "none", "layer" or "member", as above.
        balance: equalise the scale of members and layers first, as above.
        order: "backward" decides groups from the output to the input, each on what is still kept; "joint"
            scores all groups on the full networks.
        strategy: "flat" all members at once; "iterative" ((0,1),2),3 …; "hierarchical" merge-sort halves.
        schedule: "merge-prune" chooses among all members' neurons together, "prune-merge" the same number from
            each alone; with training in between see `neurograft.training.schedules`.
        fraction: two members only: the share of neurons from the second, and its weight; each is scored alone.
        quota: the share of every member, and its weight; each is scored alone.
        ratio: the share of the combined network's neurons to remove, in [0, 1); default: member 0's width.
        width: neurons per group, one number for all or a mapping of group or parameter patterns to numbers.
        diversity: pass over neurons that duplicate a kept one for the next best; readers of the duplicate read
            the kept twin. A network fused with its own (permuted) copy then is that network. The insides of units
            (the channels of heads, of convolution groups) are first brought into member 0's order, which is one order
            for all units of a member: twins inside one member whose insides lie in different orders stay two units.
        tolerance: with `diversity`, how far apart the incoming weights of duplicates may lie, relative to the
            longer of the two; 0.1 also finds similar neurons.

    Raises:
        OptionError: an option outside its range, or options that exclude each other.

    Source: Öz et al. 2024, arXiv:2502.06849, sections 3 and 4; DESIGN, section 6.
    """
    _check_choices(order=order, strategy=strategy, schedule=schedule, normalize=normalize)
    if not 0 <= tolerance < 1:
        raise OptionError(f"tolerance is a relative distance, from 0 to below 1, got {tolerance}")
    k = len(members.states)
    alone = _alone(fraction, quota, schedule, strategy, k)
    share = (1 - fraction, fraction) if fraction is not None else check_member_weights(quota, k, "quota")
    sizes = fused_sizes(members, ratio, width)
    moved = frozenset(sizes)
    weights = members.weights_or(share or _default_weights(members, moved, strategy))
    insides = matched_insides(members) if diversity else {}
    twins = twin_classes(members, list(sizes), tolerance, insides) if diversity else {}
    select = Selection(members, sizes, weights, scorers(importance, members, moved), order, normalize, balance, twins)
    kept = select.alone(share) if alone else select.tree(tree_of(strategy, k))[0]
    return Filling(maps=selection_maps(members, kept, sizes, twins) | insides, weights=weights, owned=True)


def _alone(fraction: float | None, quota: Sequence[float] | None, schedule: str, strategy: str, k: int) -> bool:
    """Whether each member is scored by itself; refuses options that exclude each other."""
    given = {
        "fraction": fraction,
        "quota": quota,
        "schedule='prune-merge'": True if schedule == "prune-merge" else None,
    }
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise OptionError(f"{' and '.join(names)} both say how many neurons each member gives; give one of them")
    if names and strategy != "flat":
        raise OptionError(f"{names[0]} chooses from each member alone; it excludes strategy={strategy!r}")
    if fraction is not None and k != 2:
        raise OptionError(f"fraction is for two members, got {k}; use quota=[...]")
    if fraction is not None and not 0 <= fraction <= 1:
        raise OptionError(f"fraction is the second member's share, between 0 and 1, got {fraction}")
    return bool(names)


def _default_weights(members: Members, moved: frozenset[str], strategy: str) -> tuple[float, ...]:
    """The published ones: shares of the last hidden width, or halves per pair."""
    k = len(members.states)
    if strategy != "flat":
        return tree_weights(tree_of(strategy, k), k)
    last = next((g for g in members.graph.backward_order if g in moved), None)
    if last is None:
        return (1 / k,) * k
    sizes = members.sizes(last)
    return tuple(n / sum(sizes) for n in sizes)


def _check_choices(**given: Any) -> None:
    for option, value in given.items():
        if value not in CHOICES[option]:
            raise OptionError(f"{option}={value!r} is not known; {closest(str(value), CHOICES[option])}")
