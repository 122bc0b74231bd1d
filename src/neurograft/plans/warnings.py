"""Warnings of a plan of owned neurons: members that are nearly cut, weights that nothing can carry."""

from collections.abc import Mapping

from neurograft.axes.maps import Pairs, kept_share
from neurograft.plans.plan import Filling, PlanMaps, chosen_groups
from neurograft.tracing.graph import NeuronGraph


def read_shares(maps: PlanMaps) -> dict[str, tuple[float, ...]]:
    """For every group, which share of the fused neurons each member's readers can read.

    It is the kept share for a selection, and more where another member's neuron stands for a dropped one.
    """
    found = {}
    for group, own in maps.items():
        read = [len(set(m.unmerge.target.tolist())) if isinstance(m.unmerge, Pairs) else m.fused for m in own]
        found[group] = tuple(count / own[0].fused for count in read)
    return found


def cut_warnings(graph: NeuronGraph, shares: Mapping[str, tuple[float, ...]]) -> tuple[str, ...]:
    """Warn of members whose path is cut: neurons kept in one group, hardly any in the group that reads it.

    A member counts as kept from a share of 0.2/k upwards (10 % for two members) and as cut below it.
    """
    found: dict[tuple[str, str, int], str] = {}
    for info in graph.tensors.values():
        read = {g for dim in info.roles for g, roles in dim.items() if "in" in roles and g in shares}
        made = {g for dim in info.roles for g, roles in dim.items() if "out" in roles and g in shares}
        for source in read:
            for reader in made - {source}:
                for m, (before, after) in enumerate(zip(shares[source], shares[reader], strict=True)):
                    least = 0.2 / len(shares[source])
                    if before >= least > after:
                        found[source, reader, m] = (
                            f"member {m} supplies {before:.0%} of {source} but only {after:.0%} of {reader}, which "
                            "reads it: the network is nearly cut there; try balance=True or another order"
                        )
    return tuple(found.values())


def weight_warnings(graph: NeuronGraph, filling: Filling) -> tuple[str, ...]:
    """Where owned neurons cannot carry the members' weights: tied tensors, products, rankings, members of weight 0."""
    moved = sorted(chosen_groups(graph, filling.maps), key=list(filling.maps).index)
    found = [
        f"{group} holds units of several members, and {graph[group].ranked_by[0]} chooses among all of them: every "
        "unit is whole, but what it competes with is not what it was trained against"
        for group in moved
        if graph[group].ranked_by and sum(share > 0 for share in kept_share(filling.maps[group])) > 1
    ]
    if max(filling.weights) < 1:
        found += [
            f"{tied.tensor} makes the neurons of {tied.group} and reads them, and no norm in front can carry the "
            "members' weights: what it reads is the sum over the members' kept neurons, not their weighted mean"
            for tied in graph.tied
            if tied.group in moved and not tied.norm
        ]
        found += [
            f"{group} is contracted on both sides as it is made ({', '.join(graph[group].bilinear)}), where no tensor "
            "carries the members' weights: the result is the sum over the members' kept neurons, not their weighted "
            "mean; keep it whole with fixed=[...]"
            for group in moved
            if graph[group].bilinear
        ]
    for m, weight in enumerate(filling.weights):
        shares = {group: kept_share(filling.maps[group])[m] for group in moved}
        if weight == 0 and any(shares.values()):
            most = max(shares, key=lambda group: shares[group])
            found.append(
                f"member {m} has weight 0 but supplies {shares[most]:.0%} of {most}, which the outputs do not read; "
                "weights do not decide who supplies neurons, quota=[...] does"
            )
    return tuple(found)
