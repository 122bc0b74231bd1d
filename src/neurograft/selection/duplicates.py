"""Neurons that respond alike: one member's copy of another's neuron, or two of the same member."""

from collections.abc import Mapping, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from neurograft.alignment.matching import execution_order, identity, match_forward, moves
from neurograft.alignment.products import Products
from neurograft.alignment.weight_similarity import Network, WeightSimilarity, aligned
from neurograft.axes.layout import Layout, layout_size, resize_layout
from neurograft.axes.maps import NeuronMap, Pairs
from neurograft.axes.mixing import axis_pairs
from neurograft.axes.real_parts import real_parts
from neurograft.members.members import Members
from neurograft.members.states import State
from neurograft.tracing.graph import NeuronGraph, Slot, TensorInfo

PROJECTIONS = 32  # random directions that a neuron's incoming weights are compared along
BLOCK = 2048  # neurons compared with all others at a time

Classes = dict[str, tuple[Tensor, ...]]
Insides = Mapping[str, tuple[NeuronMap, ...]]


def matched_insides(members: Members) -> dict[str, tuple[NeuronMap, ...]]:
    """For groups inside others (the channels of heads), each member's neurons in the order that fits member 0's best.

    Reordering insides, in every unit by itself where that is allowed, changes nothing a member computes, so a match
    that is not the best does no harm; a permuted copy of member 0 is matched exactly. Groups that all members have in
    order are left out.
    """
    first, graph = Network(members.states[0], members.graph), members.graph
    inner = [group for group in graph.free if group.inside is not None]
    if not inner:
        return {}
    orders = {group.name: [identity(group.size)] for group in inner}
    for state, own in zip(members.states[1:], members.graphs[1:], strict=True):
        evidence = WeightSimilarity(first, Network(state, own))
        found = match_forward(evidence, graph, execution_order(graph), _alike, sweeps=2, readers=True)
        for group in inner:
            orders[group.name].append(found.get(group.name, identity(group.size)))
    return {name: tuple(found) for name, found in orders.items() if any(moves(own) for own in found)}


def _alike(_group: str, products: Products) -> NeuronMap:
    """Match as many units as both sides have, most alike; the others get no partner."""
    rows, columns = linear_sum_assignment(products.distances("squared").double().cpu().numpy())
    target, source = torch.from_numpy(columns), torch.from_numpy(rows)
    return NeuronMap.selection(target, source, products.cross.shape[1], products.cross.shape[0])


def duplicate_classes(members: Members, groups: Sequence[str], tolerance: float, insides: Insides) -> Classes:
    """Number the units of every group so that units with the same number respond alike, whatever the input.

    Two units are duplicates if everything that makes them (rows of producers, biases, norms with their statistics) is
    equal, where a row's entries for inputs that are duplicates of each other are summed first: what is found is the
    coarsest partition that is stable under that rule, so permuted copies are found and residual streams too.
    Rows are compared along 32 random directions, which keeps memory at 32 numbers per unit.

    Args:
        members: the networks.
        groups: the groups to look at.
        tolerance: how far the incoming weights of duplicates may lie apart, relative to the longer of the two.
        insides: the orders in which the neurons inside units are compared, as `matched_insides` gives them.

    Returns:
        group -> one tensor per member, shape `(units,)`, int64.
    """
    members = _reordered(members, insides)
    graph = members.graph
    order = [g for g in graph.execution_order if g in groups] + [g for g in groups if g not in graph.execution_order]
    classes: Classes = {}
    for group in [g for g in order if not _makers(graph, g)]:
        classes[group] = _all_different(members.sizes(group))
    first = True
    while True:
        before = {g: _count(found) for g, found in classes.items()}
        for group in [g for g in order if _makers(graph, g)]:
            waiting = [g for g in order if g not in classes and g != group]
            makers = [s for s in _makers(graph, group) if _known(graph.tensors[s.tensor], waiting)]
            classes[group] = _refined(members, group, makers, classes, tolerance, groups)
        if not first and before == {g: _count(found) for g, found in classes.items()}:
            return classes
        first = False


def _reordered(members: Members, insides: Insides) -> Members:
    """The members with the insides of their units in the given orders."""
    if not insides:
        return members
    states = []
    for m, (state, graph) in enumerate(zip(members.states, members.graphs, strict=True)):
        maps = {group: found[m] for group, found in insides.items()}
        moved = {name for name, info in graph.tensors.items() if any(g in maps for dim in info.roles for g in dim)}
        network = Network(state, graph)
        states.append({**state, **{name: aligned(network, name, maps)[0] for name in moved}})
    return members.changed(states=tuple(states))


def _makers(graph: NeuronGraph, group: str) -> list[Slot]:
    """The slots whose entries decide what a unit computes."""
    return [slot for slot in graph[group].slots if slot.role in ("out", "elementwise")]


def _known(info: TensorInfo, waiting: Sequence[str]) -> bool:
    """Whether no group that the tensor reads still waits for its classes (residual streams are made more than once)."""
    return not any("in" in roles and g in waiting for dim in info.roles for g, roles in dim.items())


def _all_different(sizes: Sequence[int]) -> tuple[Tensor, ...]:
    return tuple(torch.split(torch.arange(sum(sizes)), list(sizes)))


def _count(classes: Sequence[Tensor]) -> int:
    return len(set(torch.cat(list(classes)).tolist()))


def _refined(
    members: Members, group: str, makers: Sequence[Slot], classes: Classes, tolerance: float, groups: Sequence[str]
) -> tuple[Tensor, ...]:
    """Split the classes of one group where the units' incoming weights differ."""
    sizes = list(members.sizes(group))
    old = torch.cat(list(classes[group])) if group in classes else torch.zeros(sum(sizes), dtype=torch.long)
    rows = []
    for m, graph in enumerate(members.graphs):
        own = {g: found[m] for g, found in classes.items()}
        counts = {g: 1 + max(int(part.max()) for part in found) for g, found in classes.items()}
        # in the first round a group that is read before it is known counts as one class
        for g in groups:
            own.setdefault(g, torch.zeros(graph[g].size, dtype=torch.long))
            counts.setdefault(g, 1)
        found = [s for s in _makers(graph, group) if any((s.tensor, s.dim) == (t.tensor, t.dim) for t in makers)]
        parts = [_projected(members.states[m], graph, slot, group, own, counts) for slot in found]
        rows.append(torch.cat(parts, 1) if parts else torch.zeros(graph[group].size, 1, dtype=torch.float64))
    return tuple(torch.split(leaders(torch.cat(rows), old, tolerance), sizes))


def _projected(
    state: State, graph: NeuronGraph, slot: Slot, group: str, classes: Mapping[str, Tensor], counts: Mapping[str, int]
) -> Tensor:
    """A unit's entries in one slot along random directions, shape `(units, PROJECTIONS)`, float64."""
    info = graph.tensors[slot.tensor]
    tensor = state[slot.tensor].detach().movedim(slot.dim, 0).cpu()
    places = slot.positions(graph[group].size)
    merged = dict(classes) | {group: torch.zeros(graph[group].size, dtype=torch.long)}
    ids, count = layout_ids(info.layouts[slot.dim], merged, dict(counts) | {group: 1})
    ids = ids[places[0]]
    for dim, layout in enumerate(info.layouts):
        if dim != slot.dim:
            more, factor = layout_ids(layout, classes, counts)
            ids, count = (ids[:, None] * factor + more).flatten(), count * factor
    generator = torch.Generator().manual_seed(sum(slot.tensor.encode()) + slot.dim)
    directions = torch.randn(count, PROJECTIONS, dtype=torch.float64, generator=generator)[ids]
    rows = tensor[places].flatten(1)
    wide = torch.promote_types(rows.dtype, torch.double)
    return torch.cat([real_parts(part.to(wide) @ directions.to(wide)).flatten(1) for part in torch.split(rows, BLOCK)])


def layout_ids(layout: Layout, classes: Mapping[str, Tensor], counts: Mapping[str, int]) -> tuple[Tensor, int]:
    """Number the positions of a dimension so that duplicates share a number; and how many numbers there are.

    A class is to its units what a merged neuron is to its parts, so the numbers are where the merged ones would sit.

    Example:
        >>> from neurograft.axes.layout import Factor
        >>> layout_ids(((Factor("g", 3), Factor(None, 2)),), {"g": torch.tensor([0, 1, 0])}, {"g": 2})
        (tensor([0, 1, 2, 3, 0, 1]), 4)
    """
    merged = resize_layout(layout, {group: counts[group] for group in classes})
    mixings = {g: Pairs(found, torch.arange(len(found)), counts[g], len(found)) for g, found in classes.items()}
    pairs = axis_pairs(layout, merged, mixings)
    return torch.empty_like(pairs.target).index_copy_(0, pairs.source, pairs.target), layout_size(merged)


def leaders(rows: Tensor, classes: Tensor, tolerance: float) -> Tensor:
    """Split classes so that every row lies within `tolerance` of the first row of its new class.

    Args:
        rows: shape `(units, directions)`, float64.
        classes: shape `(units,)`, int64: rows of different classes stay apart.
        tolerance: distance allowed, relative to the longer of two rows.

    Returns:
        New classes, numbered from 0, shape `(units,)`.

    Example:
        >>> leaders(torch.tensor([[1.0], [2.0], [1.0]]).double(), torch.zeros(3, dtype=torch.long), 0.01)
        tensor([0, 1, 0])
    """
    found = torch.arange(len(rows))
    squares = (rows * rows).sum(1)
    leading = torch.ones(len(rows), dtype=torch.bool)
    for start in range(0, len(rows), BLOCK):
        stop = min(start + BLOCK, len(rows))
        distances = squares[start:stop, None] + squares[None, :stop] - 2 * rows[start:stop] @ rows[:stop].T
        allowed = tolerance**2 * torch.maximum(squares[start:stop, None], squares[None, :stop])
        near = (distances <= allowed) & (classes[start:stop, None] == classes[None, :stop])
        near &= torch.arange(stop)[None, :] < torch.arange(start, stop)[:, None]
        for unit in near.any(1).nonzero().flatten().tolist():
            duplicates = (near[unit] & leading[:stop]).nonzero().flatten()
            if len(duplicates):
                found[start + unit] = duplicates[0]
                leading[start + unit] = False
    numbers: Tensor = torch.unique(found, return_inverse=True)[1]
    return numbers
