"""How alike two networks' neurons are: products of their weights, and the distances that follow from them."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from neurograft.alignment.products import GroupNames, Products, ProductSum, squared_norms
from neurograft.axes.layout import Layout, resize_layout, terms
from neurograft.axes.maps import Mixing, NeuronMap, Pairs
from neurograft.axes.mixing import cell_positions, mix_along, roles_mixing, unit_positions
from neurograft.axes.real_parts import real_parts
from neurograft.axes.symmetry import Symmetry
from neurograft.members.states import State
from neurograft.tracing.graph import NeuronGraph, TensorInfo

Maps = Mapping[str, NeuronMap]

STATISTICS = ("mean", "variance", "statistic")  # measured on data, not learnt: they do not measure alikeness


@dataclass(frozen=True, eq=False)
class Network:
    """One network in a basis of its own: its tensors, and how its neurons lie in them."""

    state: State
    graph: NeuronGraph


class Similarity(Protocol):
    """A measure of how alike the neurons of two networks are."""

    def products(self, group: str, maps: Maps, known: Container[str], readers: bool) -> Products | None:
        """Products of a group's neurons, given the groups matched so far; None if there is nothing to compare yet.

        Args:
            group: the group to match.
            maps: the member's maps onto the target, of groups that have one; the others keep their places.
            known: groups that are matched; a tensor with an axis of any other free group is left out.
            readers: count the tensors that read the group too, not only those that make it.
        """
        ...

    def nothing(self, group: str) -> Products:
        """Products that make every matching as good as any other."""
        ...

    def objective(self, maps: Maps, group: str | None = None) -> float:
        """The sum of all products of matched neurons, of the whole network or of what one group touches."""
        ...

    def twice(self, group: str) -> bool:
        """Whether the products of a group depend on its own map."""
        ...


def rotating_groups(graph: NeuronGraph) -> frozenset[str]:
    """The free groups of networks in canonical form whose units may be rotated; inside others freely or not at all."""
    kinds = {group.name: (group.symmetry.aligned, group.inside) for group in graph.free}
    return frozenset(
        name for name, (kind, outer) in kinds.items() if kind is Symmetry.ORTHOGONAL or (kind.rotates and outer is None)
    )


class WeightSimilarity:
    """Neurons are alike if their weights are, each axis of the member's weights being aligned first.

    A neuron's features are its entries in every weight, bias, scale and shift that makes it (and reads it, if
    asked), all producers together; running statistics do not count. Units are alike as far as their insides can be
    brought to be, by orders, or by rotations where groups are `rotating`.

    Source: Singh & Jaggi 2020, arXiv:1910.05653, section 4; Ainsworth et al. 2023, arXiv:2209.04836, section 3.2.
    """

    def __init__(self, target: Network, member: Network, rotating: Container[str] = ()):
        self.target = target
        self.member = member
        self.rotating = rotating
        self._turned: Turned = {}
        self.free = frozenset(group.name for group in target.graph.free)

    def products(self, group: str, maps: Maps, known: Container[str], readers: bool) -> Products | None:
        """As `Similarity.products`."""
        return self.sums(group, maps, known, readers).products(self.rotating)

    def sums(self, group: str, maps: Maps, known: Container[str], readers: bool) -> ProductSum:
        """What the products are made of, so that other features may be added."""
        graph = self.target.graph
        outer = units_of(graph, group, maps)
        units = [] if outer is None else [graph[outer].size]
        total = ProductSum(*([*units, g[group].size] for g in (self.member.graph, graph)))
        for name, dim in weight_axes(graph, group, readers):
            info = graph.tensors[name]
            if not self._usable(info, dim, group, known):
                continue
            hidden = [g for g in info.roles[dim] if is_hidden(graph, g, group, known)]
            own, own_layout = aligned(self.member, name, maps, leave=({group, *hidden}, dim), turned=self._turned)
            own, other = real_parts(own), real_parts(self.target.state[name].to(own))
            left, right = (_cells(x, outer, group, hidden) for x in (own_layout, info.layouts[dim]))
            for key, positions in left.items():
                total.add(key, unit_features(own, dim, positions), unit_features(other, dim, right[key]))
        return total

    def nothing(self, group: str) -> Products:
        """As `Similarity.nothing`."""
        member, target = self.member.graph[group].size, self.target.graph[group].size
        return Products(torch.zeros(member, target), torch.ones(member), torch.ones(target))

    def objective(self, maps: Maps, group: str | None = None) -> float:
        """Σ over tensors of <target, aligned member>, every tensor counted once."""
        graph = self.target.graph
        groups = [g.name for g in graph.free] if group is None else [group]
        names = {name for g in groups for name, _ in weight_axes(graph, g, readers=True)}
        total = 0.0
        for name in sorted(names):
            own, _ = aligned(self.member, name, maps, turned=self._turned)
            total += float((real_parts(own) * real_parts(self.target.state[name].to(own))).sum(dtype=torch.double))
        return total

    def twice(self, group: str) -> bool:
        """Whether the group lies along two dimensions of one tensor."""
        names = [name for name, _ in weight_axes(self.target.graph, group, readers=True)]
        return len(set(names)) < len(names)

    def _usable(self, info: TensorInfo, dim: int, group: str, known: Container[str]) -> bool:
        for d, roles in enumerate(info.roles):
            for other in roles:
                if other not in self.free or other in known:
                    continue
                # beside the group along its own axis, another group's positions are not looked at
                beside = d == dim and not _share_segment(info.layouts[d], group, other)
                if not beside and not (d == dim and (other == group or lies_within(self.target.graph, other, group))):
                    return False
        return True


def lies_within(graph: NeuronGraph, inner: str, outer: str) -> bool:
    """Whether a group lies inside another, or inside one that does."""
    parent = graph[inner].inside
    return parent is not None and (parent == outer or lies_within(graph, parent, outer))


def is_hidden(graph: NeuronGraph, inner: str, group: str, known: Container[str]) -> bool:
    """Whether units are compared in the best order of what lies inside: not matched yet, or in every pair by itself."""
    return lies_within(graph, inner, group) and (inner not in known or graph[inner].per_unit)


def units_of(graph: NeuronGraph, group: str, maps: Maps) -> str | None:
    """The group in whose units this one is matched, in each by itself; None if it is matched in all of them at once.

    The units must be matched one to one before that.
    """
    outer = graph[group].inside
    if outer is None or not graph[group].per_unit:
        return None
    return outer if outer not in maps or is_one_to_one(maps[outer]) else None


def is_one_to_one(neuron_map: NeuronMap) -> bool:
    """Whether no neuron of either side has more than one partner."""
    merge = neuron_map.merge
    if not isinstance(merge, Pairs) or merge.weight is not None:
        return False
    return all(int(torch.bincount(index).max()) <= 1 for index in (merge.target, merge.source) if len(index))


def _cells(layout: Layout, outer: str | None, group: str, hidden: Sequence[str]) -> dict[GroupNames, Tensor]:
    # where the units of a group sit, distinguished by what is inside them; or its neurons in every unit of `outer`
    if outer is None:
        return cell_positions(layout, group, hidden)
    return {(): cell_positions(layout, outer, [group])[group,]}


def _share_segment(layout: Layout, group: str, other: str) -> bool:
    """Whether two groups are factors of one product somewhere along a dimension, not only summands."""
    return any({group, other} <= {factor.group for factor in term.factors} for term in terms(layout))


def weight_axes(graph: NeuronGraph, group: str, readers: bool) -> Iterator[tuple[str, int]]:
    """Every (tensor, dimension) where weights make the group's neurons, and, where wanted, read them."""
    seen: set[tuple[str, int]] = set()
    for slot in graph[group].slots:
        info = graph.tensors[slot.tensor]
        if (slot.tensor, slot.dim) in seen or _measured(graph, info):
            continue
        if readers or info.roles[slot.dim][group] != {"in"}:
            seen.add((slot.tensor, slot.dim))
            yield slot.tensor, slot.dim


def _measured(graph: NeuronGraph, info: TensorInfo) -> bool:
    # a buffer that is multiplied by or looked up in, such as a codebook, is no statistic
    known = info.kind == "statistic" and any(use.tensor == info.name for use in graph.uses)
    return info.kind in STATISTICS and not known


Turned: TypeAlias = dict[str, tuple[list[tuple[int, Tensor]], Tensor]]
"""Tensors as rotations along whole dimensions left them, and these: a stream's rotation changes once in a sweep."""


def aligned(
    network: Network,
    name: str,
    maps: Maps,
    leave: tuple[Container[str], int] | None = None,
    turned: Turned | None = None,
) -> tuple[Tensor, Layout]:
    """One tensor with every axis brought into the fused basis, but for some groups along one axis.

    Returns:
        The tensor in float32 or better, and the layout of the axis that was left alone (`()` if none was).
    """
    info = network.graph.tensors[name]
    tensor = network.state[name]
    tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    left: Layout = ()
    along: dict[int, dict[str, Mixing]] = {}
    for dim in range(len(info.layouts)):
        found = {
            g: roles_mixing(maps[g], roles)
            for g, roles in info.roles[dim].items()
            if g in maps and not (leave is not None and dim == leave[1] and g in leave[0])
        }
        if found:
            along[dim] = found
        if leave is not None and dim == leave[1]:
            left = resize_layout(info.layouts[dim], {g: maps[g].fused for g in found})
    rotations = [(dim, mixing) for dim, own in along.items() for mixing in own.values() if isinstance(mixing, Tensor)]
    rotated = {dim for dim, _ in rotations if len(along[dim]) == 1}
    if turned is not None and rotated:
        known, before = turned.get(name, ([], tensor))
        if [(d, id(m)) for d, m in known] != [(d, id(m)) for d, m in rotations if d in rotated]:
            before = _mixed(tensor, info, {dim: along[dim] for dim in rotated}, maps)
            turned[name] = [(d, m) for d, m in rotations if d in rotated], before
        tensor, along = before, {dim: own for dim, own in along.items() if dim not in rotated}
    return _mixed(tensor, info, along, maps), left


def _mixed(tensor: Tensor, info: TensorInfo, along: Mapping[int, Mapping[str, Mixing]], maps: Maps) -> Tensor:
    for dim, mixings in along.items():
        fused = resize_layout(info.layouts[dim], {g: maps[g].fused for g in mixings})
        tensor = mix_along(tensor, dim, info.layouts[dim], fused, mixings)
    return tensor


def unit_features(tensor: Tensor, dim: int, positions: Tensor) -> Tensor:
    """One row of features per unit: all entries of the tensor at its positions along `dim`.

    `positions` have shape `(…, positions per unit)`, the features `(…, features)`.

    Example:
        >>> unit_features(torch.tensor([[1, 2], [3, 4]]), 1, torch.tensor([[1], [0]]))
        tensor([[2, 4],
                [1, 3]])
    """
    flat = positions.flatten()
    whole = len(flat) == tensor.shape[dim] and bool((flat == torch.arange(len(flat))).all())
    rows = tensor if whole else tensor.index_select(dim, flat.to(tensor.device))
    rows = rows.reshape(*rows.shape[:dim], *positions.shape, *rows.shape[dim + 1 :])
    leading = positions.dim() - 1
    return rows.movedim(list(range(dim, dim + leading)), list(range(leading))).reshape(*positions.shape[:-1], -1)


def neuron_norms(network: Network, group: str) -> tuple[Tensor, Tensor]:
    """The norms of the weights that make and that read each neuron, each of shape `(units,)`, float64.

    Their product measures how much signal a neuron carries: rescaling a ReLU neuron leaves it as it is, and copies of
    a neuron that was split carry the neuron's own together. A group that nothing reads has reading norms of 1.
    """
    size = network.graph[group].size
    made, read = torch.zeros(size, dtype=torch.double), torch.zeros(size, dtype=torch.double)
    for name, dim in weight_axes(network.graph, group, readers=True):
        info = network.graph.tensors[name]
        features = unit_features(real_parts(network.state[name]), dim, unit_positions(info.layouts[dim], group))
        squares = squared_norms(features.to(torch.promote_types(features.dtype, torch.float32))).double().cpu()
        if info.roles[dim][group] == {"in"}:
            read += squares
        else:
            made += squares
    return made.sqrt(), read.sqrt() if bool(read.any()) else torch.ones_like(read)
