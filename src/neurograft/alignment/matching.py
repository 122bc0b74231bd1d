"""The walk over a network's groups that matches one member's neurons to another's, group by group."""

from collections.abc import Callable, Container, Sequence

import torch
from torch import Tensor

from neurograft.alignment.assignment import assign
from neurograft.alignment.weight_similarity import Products, Similarity
from neurograft.axes.maps import NeuronMap, Pairs
from neurograft.tracing.graph import NeuronGraph

Solve = Callable[[str, Products], NeuronMap]
"""Decides the map of one outermost group from the products of its neurons."""


def execution_order(graph: NeuronGraph) -> list[str]:
    """The outermost free groups as the run first makes them, groups that no run makes last."""
    outermost = [group.name for group in graph.outermost]
    made = [name for name in graph.execution_order if name in set(outermost)]
    return made + [name for name in outermost if name not in set(made)]


def inner_groups(graph: NeuronGraph, outer: str) -> list[str]:
    """The free groups inside another, outer ones first."""
    found = []
    for group in graph.free:
        if group.inside == outer:
            found += [group.name, *inner_groups(graph, group.name)]
    return found


def match_forward(
    evidence: Similarity,
    graph: NeuronGraph,
    order: Sequence[str],
    solve: Solve,
    *,
    sweeps: int = 1,
    readers: bool = False,
) -> dict[str, NeuronMap]:
    """Match one group after the other, each on what the groups matched before it allow to compare.

    The groups inside a group follow it and are matched one to one. A group of which nothing can be compared yet
    waits until the others are matched; later sweeps see all groups matched.

    Args:
        evidence: tells how alike the neurons are.
        graph: the target's graph.
        order: the outermost groups.
        solve: decides an outermost group's map.
        sweeps: how often to go through all groups.
        readers: compare the tensors that read a group too.
    """
    maps: dict[str, NeuronMap] = {}
    known: set[str] = set()
    for _ in range(sweeps):
        waiting = list(order)
        while waiting:
            group, found = _first_comparable(evidence, waiting, maps, known, readers)
            waiting.remove(group)
            maps[group] = solve(group, found)
            known.add(group)
            for inner in inner_groups(graph, group):
                products = evidence.products(inner, maps, known, readers)
                if products is not None:
                    maps[inner] = NeuronMap.permutation(assign(products.distances("squared")))
                known.add(inner)
    return maps


def _first_comparable(
    evidence: Similarity, waiting: Sequence[str], maps: dict[str, NeuronMap], known: set[str], readers: bool
) -> tuple[str, Products]:
    for also_readers in dict.fromkeys((readers, True)):
        for group in waiting:
            if (found := evidence.products(group, maps, known, also_readers)) is not None:
                return group, found
    return waiting[0], evidence.nothing(waiting[0])


class Everything(Container[str]):
    """Stands for the groups of any network once all are matched."""

    def __contains__(self, group: object) -> bool:
        return True


def order_of(neuron_map: NeuronMap) -> Tensor:
    """The permutation a map was made from: fused neuron i is the member's neuron `order[i]`."""
    assert isinstance(neuron_map.merge, Pairs)
    order = torch.empty(neuron_map.fused, dtype=torch.long)
    order[neuron_map.merge.target] = neuron_map.merge.source
    return order


def identity(size: int) -> NeuronMap:
    """Every neuron keeps its place."""
    return NeuronMap.permutation(torch.arange(size))
