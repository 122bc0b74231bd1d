"""Heads: the layers that make the outputs, averaged between members or kept side by side on the fused trunk."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import torch

from neurograft.axes.maps import NeuronMap
from neurograft.errors import PlanError
from neurograft.plans.plan import Filling
from neurograft.tracing.graph import FixedReason, Group, NeuronGraph

Heads: TypeAlias = Literal["average", "keep"]


def head_groups(graph: NeuronGraph) -> tuple[Group, ...]:
    """The output groups that a head makes: never read inside the network, made by a tensor that reads free neurons."""
    free = {group.name for group in graph.free}
    found = []
    for group in graph.groups:
        made = [slot.tensor for slot in group.slots if slot.role == "out"]
        reads = any(
            "in" in roles and g in free for t in made for dim in graph.tensors[t].roles for g, roles in dim.items()
        )
        if group.reason is FixedReason.OUTPUT and reads and all(slot.role != "in" for slot in group.slots):
            found.append(group)
    return tuple(found)


def freed_heads(graphs: Sequence[NeuronGraph]) -> tuple[NeuronGraph, ...]:
    """The same graphs with the head groups free, so that members may have different labels.

    Raises:
        PlanError: there is no head, or an op works over all its outputs at once.
    """
    heads = head_groups(graphs[0])
    if not heads:
        raise PlanError(
            'heads="keep" needs outputs that a layer makes from the fused neurons and that are read nowhere inside; '
            'this network has none, use heads="average"'
        )
    for group in heads:
        if group.reduced_by:
            raise PlanError(
                f"heads='keep' puts all members' outputs {group.name} side by side, but {group.reduced_by[0]} "
                "works over all of them at once; take it out of the network and apply it to every member's outputs"
            )
    names = {group.name for group in heads}
    return tuple(
        replace(
            graph,
            groups=tuple(replace(g, reason=None, why="") if g.name in names else g for g in graph.groups),
        )
        for graph in graphs
    )


def graphs_for_methods(graphs: Sequence[NeuronGraph]) -> tuple[NeuronGraph, ...]:
    """What methods compare neurons by: heads over different labels do not count, their rows have nothing in common."""
    heads = {g.name for g in head_groups(graphs[0]) if len({graph[g.name].size for graph in graphs}) > 1}
    if not heads:
        return tuple(graphs)
    tensors = {slot.tensor for name in heads for slot in graphs[0][name].slots}
    return tuple(
        replace(
            graph,
            groups=tuple(replace(g, slots=tuple(s for s in g.slots if s.tensor not in tensors)) for g in graph.groups),
        )
        for graph in graphs
    )


def with_kept_heads(filling: Filling, graphs: Sequence[NeuronGraph]) -> Filling:
    """The same filling with every member's outputs side by side, member 0's first, each made by its own head.

    The fused network then returns `torch.cat` of the outputs of the members' heads on the fused trunk;
    `details["heads"]` records where each member's outputs lie.
    """
    maps, places = dict(filling.maps), {}
    for group in head_groups(graphs[0]):
        sizes = [graph[group.name].size for graph in graphs]
        starts = [sum(sizes[:m]) for m in range(len(sizes))]
        maps[group.name] = tuple(
            NeuronMap.selection(torch.arange(start, start + n), torch.arange(n), sum(sizes), n)
            for start, n in zip(starts, sizes, strict=True)
        )
        places[group.name] = tuple((start, start + n) for start, n in zip(starts, sizes, strict=True))
    return replace(filling, maps=maps, details={**filling.details, "heads": places})
