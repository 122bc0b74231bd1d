"""How alike two networks' neurons are: products of their weights, and the distances that follow from them."""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from neurograft.axes.layout import Layout, resize_layout, terms
from neurograft.axes.maps import NeuronMap
from neurograft.axes.mixing import cell_positions, mix_along, roles_mixing, unit_positions
from neurograft.axes.real_parts import real_parts
from neurograft.members.states import State
from neurograft.tracing.graph import NeuronGraph, TensorInfo

Maps = Mapping[str, NeuronMap]
Distance = Literal["euclidean", "squared", "cosine"]

STATISTICS = ("mean", "variance", "statistic")  # measured on data, not learnt: they say nothing about alikeness
MOST_PAIRS = 10_000  # pairs of units whose insides are matched one by one; above, the insides are taken as they lie


@dataclass(frozen=True, eq=False)
class Network:
    """One network in a basis of its own: its tensors, and how its neurons lie in them."""

    state: State
    graph: NeuronGraph


@dataclass(frozen=True, eq=False)
class Products:
    """Inner products of one group's neurons: `cross` (member, target), and the squared norms of both sides."""

    cross: Tensor
    member: Tensor
    target: Tensor

    def distances(self, distance: Distance) -> Tensor:
        """The cost of matching each member's neuron to each target neuron, shape `(member, target)`.

        "squared" is |x - y|², "euclidean" its root, "cosine" 1 - x·y / |x||y| (1 where a neuron has no weights).

        Example:
            >>> same = torch.eye(2)
            >>> Products(same, torch.ones(2), torch.ones(2)).distances("squared")
            tensor([[0., 2.],
                    [2., 0.]])
        """
        if distance == "cosine":
            lengths = torch.outer(self.member.sqrt(), self.target.sqrt())
            return 1 - self.cross / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
        squared = torch.mul(self.cross, -2).add_(self.member[:, None]).add_(self.target).clamp_min_(0)
        return squared if distance == "squared" else squared.sqrt_()


class Similarity(Protocol):
    """Something that can tell how alike the neurons of two networks are."""

    def products(self, group: str, maps: Maps, known: Container[str], readers: bool) -> Products | None:
        """Products of a group's neurons, given the groups matched so far; None if nothing can be said yet.

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


class WeightSimilarity:
    """Neurons are alike if their weights are, each axis of the member's weights being aligned first.

    A neuron's features are its entries in every weight, bias, scale and shift that makes it (and reads it, if
    asked), all producers together; running statistics do not count.

    Source: Singh & Jaggi 2020, arXiv:1910.05653, section 4; Ainsworth et al. 2023, arXiv:2209.04836, section 3.2.
    """

    def __init__(self, target: Network, member: Network):
        self.target = target
        self.member = member
        self.free = frozenset(group.name for group in target.graph.free)
        self.inside = {group.name: group.inside for group in target.graph.free if group.inside is not None}

    def products(self, group: str, maps: Maps, known: Container[str], readers: bool) -> Products | None:
        """As `Similarity.products` says."""
        sizes = self.member.graph[group].size, self.target.graph[group].size
        total = ProductSum(*sizes)
        for name, dim in weight_axes(self.target.graph, group, readers):
            info = self.target.graph.tensors[name]
            if not self._usable(info, dim, group, known):
                continue
            own, own_layout = aligned(self.member, name, maps, leave=(group, dim))
            own, other = real_parts(own), real_parts(self.target.state[name].to(own))
            hidden = [g for g in info.roles[dim] if g not in known and self._within(g, group)]
            left, right = unit_cells(own_layout, group, hidden), unit_cells(info.layouts[dim], group, hidden)
            for inner, positions in left.items():
                total.add(inner, unit_features(own, dim, positions), unit_features(other, dim, right[inner]))
        return total.products()

    def nothing(self, group: str) -> Products:
        """As `Similarity.nothing` says."""
        member, target = self.member.graph[group].size, self.target.graph[group].size
        return Products(torch.zeros(member, target), torch.ones(member), torch.ones(target))

    def objective(self, maps: Maps, group: str | None = None) -> float:
        """Σ over tensors of <target, aligned member>, every tensor counted once."""
        graph = self.target.graph
        groups = [g.name for g in graph.free] if group is None else [group]
        names = {name for g in groups for name, _ in weight_axes(graph, g, readers=True)}
        total = 0.0
        for name in sorted(names):
            own, _ = aligned(self.member, name, maps)
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
                if not beside and not (d == dim and (other == group or self._within(other, group))):
                    return False
        return True

    def _within(self, inner: str, outer: str) -> bool:
        parent = self.inside.get(inner)
        return parent is not None and (parent == outer or self._within(parent, outer))


def _share_segment(layout: Layout, group: str, other: str) -> bool:
    """Whether two groups are factors of one product somewhere along a dimension, not only summands."""
    return any({group, other} <= {factor.group for factor in term.factors} for term in terms(layout))


class ProductSum:
    """Adds up products over tensors; units whose insides are not matched yet count with their best inner matching."""

    def __init__(self, member: int, target: int):
        self.sizes = member, target
        self.plain: Products | None = None
        self.cells: dict[str, Tensor] = {}

    def add(self, inner: str | None, own: Tensor, other: Tensor) -> None:
        """Add features of both sides, one row per unit, or per unit and neuron of the group `inner`."""
        if self.plain is None:
            self.plain = Products(own.new_zeros(self.sizes), own.new_zeros(self.sizes[0]), own.new_zeros(self.sizes[1]))
        dtype = torch.promote_types(own.dtype, self.plain.cross.dtype)
        own, other = own.to(dtype), other.to(dtype)
        if dtype != self.plain.cross.dtype:
            self.plain = Products(self.plain.cross.to(dtype), self.plain.member.to(dtype), self.plain.target.to(dtype))
        self.plain.member.add_(squared_norms(own).reshape(self.sizes[0], -1).sum(1))
        self.plain.target.add_(squared_norms(other).reshape(self.sizes[1], -1).sum(1))
        if inner is None:
            self.plain.cross.addmm_(own, other.T)
        else:
            self.cells[inner] = own @ other.T + self.cells.get(inner, 0)

    def products(self) -> Products | None:
        """All that was added; None if nothing was."""
        if self.plain is not None:
            for cells in self.cells.values():
                self.plain.cross.add_(best_inner_products(cells, *self.sizes).to(self.plain.cross))
        return self.plain


def weight_axes(graph: NeuronGraph, group: str, readers: bool) -> Iterator[tuple[str, int]]:
    """Every (tensor, dimension) where weights make the group's neurons, and read them if asked."""
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


def aligned(network: Network, name: str, maps: Maps, leave: tuple[str, int] | None = None) -> tuple[Tensor, Layout]:
    """One tensor with every axis brought into the fused basis, but for one group along one axis.

    Returns:
        The tensor in float32 or better, and the layout of the axis that was left alone (`()` if none was).
    """
    info = network.graph.tensors[name]
    tensor = network.state[name]
    tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    left: Layout = ()
    for dim, layout in enumerate(info.layouts):
        mixings = {
            g: roles_mixing(maps[g], roles) for g, roles in info.roles[dim].items() if g in maps and (g, dim) != leave
        }
        fused = resize_layout(layout, {g: maps[g].fused for g in mixings}) if mixings else layout
        if mixings:
            tensor = mix_along(tensor, dim, layout, fused, mixings)
        if leave is not None and dim == leave[1]:
            left = fused
    return tensor, left


def unit_cells(layout: Layout, group: str, hidden: list[str]) -> dict[str | None, Tensor]:
    """Positions per unit under the key None, and per (unit, inner neuron) under each inner group in `hidden`."""
    found: dict[str | None, list[Tensor]] = {}
    for key, places in cell_positions(layout, group, hidden).items():
        found.setdefault(key[0] if key else None, []).append(places.flatten(0, 1 if key else 0).flatten(1))
    return {inner: torch.cat(places, 1) for inner, places in found.items()}


def unit_features(tensor: Tensor, dim: int, positions: Tensor) -> Tensor:
    """One row of features per unit: all entries of the tensor at its positions along `dim`.

    Example:
        >>> unit_features(torch.tensor([[1, 2], [3, 4]]), 1, torch.tensor([[1], [0]]))
        tensor([[2, 4],
                [1, 3]])
    """
    flat = positions.flatten()
    whole = len(flat) == tensor.shape[dim] and bool((flat == torch.arange(len(flat))).all())
    rows = tensor if whole else tensor.index_select(dim, flat.to(tensor.device))
    rows = rows.reshape(*rows.shape[:dim], *positions.shape, *rows.shape[dim + 1 :])
    return rows.movedim(dim, 0).reshape(len(positions), -1)


def squared_norms(features: Tensor) -> Tensor:
    """|x|² of every row, without a squared copy."""
    lengths: Tensor = torch.linalg.vector_norm(features, dim=1)
    return lengths.square()


def best_inner_products(cells: Tensor, member: int, target: int) -> Tensor:
    """For each pair of units the largest product over all matchings of their inner neurons, shape `(member, target)`.

    `cells` has a row per (member unit, inner neuron) and a column per (target unit, inner neuron). Since
    |x - Py|² = |x|² + |y|² - 2 x·Py, this is the pair's least distance whatever order the insides lie in.
    """
    blocks = cells.reshape(member, -1, target, cells.shape[1] // target).permute(0, 2, 1, 3)
    if member * target > MOST_PAIRS:
        return blocks.diagonal(dim1=2, dim2=3).sum(-1)
    best = cells.new_zeros(member, target)
    arrays = blocks.double().cpu().numpy()
    for i in range(member):
        for j in range(target):
            best[i, j] = float(arrays[i, j][linear_sum_assignment(arrays[i, j], maximize=True)].sum())
    return best


def neuron_norms(network: Network, group: str) -> tuple[Tensor, Tensor]:
    """The norms of the weights that make and that read each neuron, each of shape `(units,)`, float64.

    Their product says how much signal a neuron carries: rescaling a ReLU neuron leaves it as it is, and copies of
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
