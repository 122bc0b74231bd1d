"""The walk over a network's groups that matches one member's neurons to another's, group by group."""

from collections.abc import Callable, Container, Sequence

import torch
from torch import Tensor

from neurograft.alignment.assignment import assign
from neurograft.alignment.products import Products
from neurograft.alignment.weight_similarity import Maps, Similarity, is_one_to_one
from neurograft.axes.maps import NeuronMap, Pairs, PerUnit
from neurograft.axes.symmetry import nearest_orthogonal
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
    rotating: Container[str] = (),
) -> dict[str, NeuronMap]:
    """Match one group after the other, each on what the groups matched before it allow to compare.

    The groups inside a group follow it and are matched one to one: in every unit by itself where that is allowed and
    units have one partner each, else alike in all. A group of which nothing can be compared yet waits until the others
    are matched; later sweeps see all groups matched.

    Args:
        evidence: measures how alike the neurons are.
        graph: the target's graph.
        order: the outermost groups.
        solve: decides an outermost group's map.
        sweeps: how often to go through all groups.
        readers: compare the tensors that read a group too.
        rotating: groups inside others that are rotated instead.
    """
    maps: dict[str, NeuronMap] = {}
    known: set[str] = set()
    for _ in range(sweeps):
        waiting = list(order)
        while waiting:
            group, found = _first_comparable(evidence, waiting, maps, known, readers)
            waiting.remove(group)
            maps[group] = solve(group, found)
            maps |= matched_insides(graph, group, found, maps)
            known |= {group} | {name for name in maps if graph[name].inside == group}
            for inner in inner_groups(graph, group):
                products = evidence.products(inner, maps, known, readers)
                if products is not None:
                    maps[inner] = inner_map(graph, inner, best_inside(products, inner in rotating), maps)
                known.add(inner)
    return maps


def matched_insides(graph: NeuronGraph, group: str, products: Products, maps: Maps) -> dict[str, NeuronMap]:
    """The maps of what lies inside units that were just matched, as it fits best in every pair by itself."""
    if products.insides is None or not is_one_to_one(maps[group]):
        return {}
    merge = maps[group].merge
    assert isinstance(merge, Pairs)
    orders = products.insides.orders(merge.source, merge.target)
    return {
        name: _inside_map(group, _by_member(merge, found)) for name, found in orders.items() if graph[name].per_unit
    }


def best_inside(products: Products, rotate: bool) -> Tensor:
    """The orders, or rotations, of a group inside others that fit best: one for all units or one for each."""
    if rotate:
        return nearest_orthogonal(products.cross.mT)
    return assign_all(products.distances("squared"))


def inner_map(graph: NeuronGraph, inner: str, orders: Tensor, maps: Maps) -> NeuronMap:
    """The map of a group inside others from its order: one for all units, or a row for every unit of the target.

    Or from its rotation, of one dimension more.
    """
    outer = graph[inner].inside
    rotation = orders.is_floating_point()
    if orders.dim() == (2 if rotation else 1) or outer is None:
        return NeuronMap(orders, orders) if rotation else NeuronMap.permutation(orders)
    merge = maps[outer].merge if outer in maps else Pairs.permutation(torch.arange(len(orders)))
    assert isinstance(merge, Pairs)
    return _inside_map(outer, _by_member(merge, orders[merge.target]))


def _inside_map(outer: str, each: Tensor) -> NeuronMap:
    # by the orders or rotations of the member's units
    if not each.is_floating_point():
        return NeuronMap.permutations(outer, each)
    return NeuronMap(PerUnit(outer, each), PerUnit(outer, each))


def _by_member(units: Pairs, orders: Tensor) -> Tensor:
    # one order per pair of units -> one per unit of the member, who keeps those without a partner as they are
    still = (
        torch.eye(orders.shape[1], dtype=orders.dtype) if orders.is_floating_point() else torch.arange(orders.shape[1])
    )
    own = still.repeat(units.member, *[1] * still.dim())
    own[units.source] = orders
    return own


def assign_all(costs: Tensor) -> Tensor:
    """As `assign`, for one matrix of costs or for one after the other."""
    return assign(costs) if costs.dim() == 2 else torch.stack([assign(cost) for cost in costs])


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
    """The permutation a map was made from: fused neuron i is `order[i]`, or in the member's unit s `order[s, i]`."""
    merge = neuron_map.merge.inner if isinstance(neuron_map.merge, PerUnit) else neuron_map.merge
    assert isinstance(merge, Pairs)
    return torch.empty_like(merge.source).scatter_(-1, merge.target, merge.source)


def moves(neuron_map: NeuronMap) -> bool:
    """Whether a permutation moves any neuron."""
    return not bool((order_of(neuron_map) == torch.arange(neuron_map.fused)).all())


def identity(size: int) -> NeuronMap:
    """Every neuron keeps its place."""
    return NeuronMap.permutation(torch.arange(size))
