"""The fusion plan: for every free group and member the two matrices, and nothing of the weights themselves."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from neurograft.axes.layout import layout_size
from neurograft.axes.maps import NeuronMap, Pairs, kept_share
from neurograft.axes.mixing import unit_positions
from neurograft.text_table import paragraph, text_table
from neurograft.tracing.graph import NeuronGraph, TensorInfo

PlanMaps = Mapping[str, tuple[NeuronMap, ...]]


@dataclass(frozen=True, eq=False)
class Filling:
    """What a fusion method returns: the maps of the groups it moves, and the scale of each member's tensors.

    A group that is not in `maps` keeps the identity for every member; groups inside others are permuted at most.
    `owned` says that a fused neuron has one owner (transplant, zip): tensors made along a moved axis then enter
    unscaled, all others with the member's weight. `tensor_weights` overrides the members' weights for single tensors.
    """

    maps: PlanMaps
    weights: tuple[float, ...]
    owned: bool
    tensor_weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class FusionPlan:
    """How members become one network; what `neurograft.plan` returns, and all that `neurograft.apply` needs.

    For every tensor, W_fused = Σ_m c_m · (A_m on each out or elementwise axis) W_m (B_m on each in axis), with
    A_m = `maps[group][m].merge`, B_mᵀ = `maps[group][m].unmerge` and c_m = `coefficients(tensor name)[m]`.
    Source: docs/design.md, "One formula"; Öz et al. 2024, arXiv:2502.06849; Singh & Jaggi 2020, arXiv:1910.05653.
    """

    method: str
    graphs: tuple[NeuronGraph, ...]
    maps: PlanMaps
    weights: tuple[float, ...]
    owned: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    tensor_weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

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
    def graph(self) -> NeuronGraph:
        """The graph of the fused network."""
        changed = {name: n for name, n in self.sizes.items() if n != self.graphs[0][name].size}
        return self.graphs[0].resized(changed) if changed else self.graphs[0]

    @cached_property
    def shares(self) -> dict[str, tuple[float, ...]]:
        """For every moved group, the share of the fused neurons that each member supplies."""
        return {name: kept_share(maps) for name, maps in self.maps.items()}

    def coefficients(self, name: str) -> tuple[float, ...]:
        """The scale c_m of each member's part of the tensor `name`.

        c_m is the member's weight; with owned neurons it is 1 where an out or elementwise axis is moved, except
        in the norm in front of a tied head, which carries the weight that the shared tensor cannot. Where only a
        part of the axis is moved (a layer that makes outputs beside neurons), the rest has c_m = the member's
        weight: see `shared_positions`.
        """
        weights = tuple(self.weight(name, m) for m in range(self.members))
        info = self.graphs[0].tensors.get(name)
        if info is None or not self.owned:
            return weights
        return (1.0,) * self.members if enters_whole(info, self.graphs[0], self.chosen) else weights

    def weight(self, name: str, member: int) -> float:
        """The weight of a member in the tensor `name`, which is its share wherever members are averaged."""
        return self.tensor_weights.get(name, self.weights)[member]

    def __repr__(self) -> str:
        moved, warned = len(self.maps), len(self.warnings)
        told = f", {warned} warning{'s' if warned != 1 else ''}" if warned else ""
        return (
            f"FusionPlan({self.method} of {self.members} members: {moved} group{'s' if moved != 1 else ''} moved{told})"
        )

    def __str__(self) -> str:
        weights = ", ".join(f"{w:.3g}" for w in self.weights)
        lines = [f"{self.method} of {self.members} members, weights {weights}"]
        if self.maps:
            columns = ("group", "members", "fused", "kept share of each member")
            lines.append(text_table(columns, map(self._row, self.maps), numbers=columns[1:]))
        else:
            lines.append("every neuron keeps its place: the tensors are averaged")
        aligned = self.details.get("aligned", ())
        if len(aligned) > 1 and all(aligned) and self.method != "average":
            lines.append('note: the members are aligned already (one ancestor): method="average" will do')
        lines += [paragraph(f"warning: {note}") for note in self.warnings]
        return "\n".join(lines)

    def _row(self, name: str) -> tuple[str, ...]:
        sizes = sorted({m.member for m in self.maps[name]})
        shares = " ".join(f"{s:4.0%}" for s in self.shares[name][:16]) + (" …" if self.members > 16 else "")
        return name, "/".join(map(str, sizes)), str(self.sizes[name]), shares


def chosen_groups(graph: NeuronGraph, moved: Iterable[str]) -> frozenset[str]:
    """Those of the moved groups that lie inside no other."""
    return frozenset(group for group in moved if graph[group].inside is None)


def made_by(info: TensorInfo, moved: Container[str]) -> bool:
    """Whether an out or elementwise axis of the tensor belongs to one of the moved groups."""
    return any(roles & {"out", "elementwise"} for dim in info.roles for group, roles in dim.items() if group in moved)


def enters_whole(info: TensorInfo, graph: NeuronGraph, moved: Container[str]) -> bool:
    """Whether c = 1 for a tensor of owned neurons: made along a moved axis, and not the norm of a tied head."""
    return made_by(info, moved) and not carries_weights(info, graph, moved)


def shared_positions(info: TensorInfo, moved: Container[str]) -> dict[int, Tensor]:
    """The places of no moved group along each axis of a tensor that also makes moved neurons.

    An entry that lies at such places on all these axes belongs to every member and is averaged, although the tensor
    enters whole elsewhere (one layer that makes hidden neurons beside outputs, a norm over both). Empty if a moved
    group fills an axis.

    Returns:
        dimension -> which positions, shape `(positions,)`, bool.

    Example:
        >>> from neurograft.axes.layout import Factor
        >>> layout = (Factor("output", 1),), (Factor("hidden", 2),)
        >>> roles = {"output": frozenset({"out"}), "hidden": frozenset({"out"})}
        >>> shared_positions(TensorInfo("bias", (3,), torch.float32, "bias", False, (layout,), (roles,)), {"hidden"})
        {0: tensor([ True, False, False])}
    """
    found = {}
    for dim, layout in enumerate(info.layouts):
        made = [g for g, roles in info.roles[dim].items() if g in moved and roles & {"out", "elementwise"}]
        if not made:
            continue
        shared = torch.ones(layout_size(layout), dtype=torch.bool)
        for group in made:
            shared[unit_positions(layout, group)] = False
        if not bool(shared.any()):
            return {}
        found[dim] = shared
    return found


def carries_weights(info: TensorInfo, graph: NeuronGraph, moved: Container[str]) -> bool:
    """Whether a tensor belongs to the affine norm in front of a head that is tied to its embedding.

    The head cannot be scaled by the members' weights, so the norm is, and it is mapped as the head would read it:
    where a fused neuron stands for several, their scales add up.
    """
    return any(info.name in tied.norm for tied in graph.tied if tied.group in moved)


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
