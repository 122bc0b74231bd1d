"""The fusion plan: for every free group and member the two matrices, and nothing of the weights themselves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from neurograft.axes.maps import NeuronMap, PerUnit, kept_share
from neurograft.operators.depth import depths
from neurograft.operators.mean import Mean
from neurograft.operators.operator import Operator
from neurograft.operators.owned import Owned
from neurograft.plans.joint import enters_unscaled
from neurograft.text_table import paragraph, text_table
from neurograft.tracing.canonical import steps_text
from neurograft.tracing.graph import NeuronGraph

PlanMaps = Mapping[str, tuple[NeuronMap, ...]]


@dataclass(frozen=True, eq=False)
class Filling:
    """What a fusion method returns: the maps of the groups it moves, and how members are combined in them.

    A group that is not in `maps` keeps the identity for every member; groups inside others are permuted at most. With
    `Owned` the rows of [A_1 … A_k] sum to 1 jointly (transplant, zip): tensors made along a moved axis enter unscaled,
    all others with the member's weight. `tensor_weights` overrides the members' weights for single tensors.
    """

    maps: PlanMaps
    weights: tuple[float, ...]
    operator: Operator = field(default_factory=Mean)
    tensor_weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class FusionPlan:
    """How members become one network; what `neurograft.plan` returns, and all that `neurograft.apply` needs.

    For every tensor, aligned_m = (A_m on each out or elementwise axis) W_m (B_m on each in axis), with
    A_m = `maps[group][m].merge` and B_mᵀ = `maps[group][m].unmerge`. The operator combines them; the weighted sum is
    W_fused = Σ_m c_m aligned_m with c_m = `coefficients(tensor name)[m]`.

    Attributes:
        method: what made it, in words.
        graphs: how the neurons of each member lie in its tensors.
        maps: group -> one map per member; a group that is not there keeps its places.
        weights: the members' weights, which sum to 1.
        operator: how aligned members are combined.
        options: those of the method that are not at their defaults.
        seed: of everything random in it.
        tensor_weights: tensor name -> the members' weights there, where they are others.
        base: how the members' ancestor comes into the fused basis, for operators that need it.
        warnings: what may make the fused network worse than expected.
        details: what the method noted.
        canonical: whether the maps are for members in canonical form, into which they are brought before.

    Source: docs/design.md, "One formula"; Öz et al. 2024, arXiv:2502.06849; Singh & Jaggi 2020, arXiv:1910.05653.
    """

    method: str
    graphs: tuple[NeuronGraph, ...]
    maps: PlanMaps
    weights: tuple[float, ...]
    operator: Operator = field(default_factory=Mean)
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    tensor_weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    base: "FusionPlan | None" = None
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    canonical: bool = False

    @property
    def owned(self) -> bool:
        """Whether the moved neurons are made by all members together."""
        return isinstance(self.operator, Owned)

    @cached_property
    def joint(self) -> frozenset[str]:
        """The groups in which the rows of [A_1 … A_k] sum to 1 jointly: all of owned neurons, and heads that are kept.

        A fused neuron there is made of all members together, and no A_m alone makes a whole one.
        """
        return self.chosen if self.owned else frozenset(self.details.get("heads", ()))

    @property
    def members(self) -> int:
        """Number of members."""
        return len(self.graphs)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The number of fused neurons in every group the plan moves."""
        return {name: maps[0].fused for name, maps in self.maps.items()}

    @cached_property
    def chosen(self) -> frozenset[str]:
        """The moved groups that lie inside no other; those inside (the channels of a head) are at most reordered."""
        return chosen_groups(self.graphs[0], self.maps)

    @cached_property
    def depths(self) -> dict[str, float]:
        """How deep in the network tensors lie, from 0 to 1; those outside of blocks are not there and count as 0."""
        return graph_depths(self.graphs[0])

    @cached_property
    def graph(self) -> NeuronGraph:
        """The graph of the fused network."""
        changed = {name: n for name, n in self.sizes.items() if n != self.graphs[0][name].size}
        return self.graphs[0].resized(changed) if changed else self.graphs[0]

    @cached_property
    def shares(self) -> dict[str, tuple[float, ...]]:
        """For every moved group, the share of the fused neurons that each member supplies."""
        inside = {name: self.graphs[0][name].inside or "" for name in self.maps if self._varies(name)}
        return {name: kept_share(maps, self.maps.get(inside.get(name, ""))) for name, maps in self.maps.items()}

    def _varies(self, name: str) -> bool:
        return any(isinstance(own.merge, PerUnit) for own in self.maps[name])

    def coefficients(self, name: str) -> tuple[float, ...]:
        """The scale c_m of each member's part of the tensor `name`.

        c_m is the member's weight, and 1 where an out or elementwise axis holds a `joint` group, except in the norm in
        front of a tied head, which carries the weight that the shared tensor cannot. Where only a part of the axis is
        joint (a layer that makes outputs beside neurons), the rest has c_m = the member's weight: see
        `shared_positions`.
        """
        weights = tuple(self.weight(name, m) for m in range(self.members))
        info = self.graphs[0].tensors.get(name)
        if info is None:
            return weights
        return (1.0,) * self.members if enters_unscaled(info, self.graphs[0], self.joint) else weights

    def weight(self, name: str, member: int) -> float:
        """The weight of a member in the tensor `name`, which is its share wherever members are averaged."""
        return self.tensor_weights.get(name, self.weights)[member]

    def __repr__(self) -> str:
        moved, warned = len(self.maps), len(self.warnings)
        more = f", {warned} warning{'s' if warned != 1 else ''}" if warned else ""
        return (
            f"FusionPlan({self.method} of {self.members} members: {moved} group{'s' if moved != 1 else ''} moved{more})"
        )

    def __str__(self) -> str:
        weights = ", ".join(f"{w:.3g}" for w in self.weights)
        lines = [f"{self.method} of {self.members} members, weights {weights}"]
        if self.canonical:
            lines.append(paragraph(f"members are brought into canonical form: {steps_text(self.graph.steps)}"))
        if self.maps:
            columns = ("group", "members", "fused", "kept share of each member")
            lines.append(text_table(columns, map(self._row, self.maps), numbers=columns[1:]))
        else:
            lines.append(f"every neuron keeps its place: the tensors are combined by {self.operator}")
        aligned = self.details.get("aligned", ())
        if len(aligned) > 1 and all(aligned) and self.maps:
            lines.append('note: the members are aligned already (one ancestor): method="average" will do')
        lines += [paragraph(f"warning: {note}") for note in self.warnings]
        return "\n".join(lines)

    def _row(self, name: str) -> tuple[str, ...]:
        sizes = sorted({m.member for m in self.maps[name]})
        shares = " ".join(f"{s:4.0%}" for s in self.shares[name][:16]) + (" …" if self.members > 16 else "")
        where = f"{name} in each {self.graphs[0][name].inside}" if self._varies(name) else name
        return where, "/".join(map(str, sizes)), str(self.sizes[name]), shares


def graph_depths(graph: NeuronGraph) -> dict[str, float]:
    """How deep the tensors of a graph lie."""
    return depths((*graph.tensors, *graph.unreached))


def chosen_groups(graph: NeuronGraph, moved: Iterable[str]) -> frozenset[str]:
    """Those of the moved groups that lie inside no other."""
    return frozenset(group for group in moved if graph[group].inside is None)
