"""Alignment by every symmetry that networks have: permutations, signs, scales and rotations, then an average."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from neurograft.alignment.activations import When
from neurograft.alignment.assignment import assign, check_memory
from neurograft.alignment.matching import (
    Everything,
    best_inside,
    execution_order,
    identity,
    inner_groups,
    inner_map,
    match_forward,
    matched_insides,
)
from neurograft.alignment.products import Products
from neurograft.alignment.representation import Representation, mean_representation, medoid, representations_of
from neurograft.alignment.weight_similarity import Similarity, rotating_groups
from neurograft.axes.maps import Mixing, NeuronMap, Pairs, PerUnit
from neurograft.axes.symmetry import Symmetry, nearest_orthogonal
from neurograft.members.members import Members
from neurograft.methods.method import Method, check_reference
from neurograft.options import check_count
from neurograft.plans.plan import Filling
from neurograft.tracing.graph import NeuronGraph

MOST_ROUNDS = 20  # of bringing many members together; it stops as soon as nothing is gained
SETTLED = 1e-3  # a sweep that gains less than this share is the last
ROUNDING = 1e-6  # gains below this share are rounding, not progress

Maps = dict[str, NeuronMap]


@dataclass(frozen=True, kw_only=True)
class Symmetric(Method):
    """Align every group in the widest class of symmetry that it has, and average.

    Members are brought into canonical form first (`graph.steps`): scales of norms folded into their readers, units that
    may be scaled of one scale on both sides. What is left between them are permutations (assigned), signs (assigned by
    the sizes of products), and rotations (orthogonal Procrustes, fixing 1 behind a LayerNorm). Units that hold others
    (heads) are assigned as wholes, by what they have in common once their insides are rotated onto each other; values
    and outputs, and queries and keys, have a rotation of their own in every head.

    With `metric="weights"` coordinate descent maximises Σ over tensors of <W_reference, aligned W_member>, starting
    from what is fixed (inputs, positions, classes, tokens); no data is needed. With `metric="activations"` every group
    maximises the products of matched units' activations on calibration batches: residual streams behind the norms that
    read them, heads by queries, keys, values and mixed values.

    More than two members are aligned to a reference and then each to the mean of all the others, in the reference's
    basis. The fused network has the members' architecture; scales that were folded are 1 in it.

    Attributes:
        metric: "weights" needs no data; "activations" compares what units do on calibration batches.
        when: activations of units that keep their axes (hidden units) before ("pre") or after ("post") the
            nonlinearity.
        samples: activations per unit that are compared.
        sweeps: the most sweeps of one descent.
        reference: the member in whose basis the others are brought; default the medoid.
        max_memory: bytes that matching one group may take; default what the machine has.

    Raises:
        OptionError: an option outside its range.

    Example:
        >>> import copy, neurograft as ng
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Tanh(), nn.Linear(3, 2, bias=False))
        >>> other = copy.deepcopy(net)
        >>> signs = torch.tensor([1.0, -1.0, 1.0])
        >>> with torch.no_grad():
        ...     _ = other[0].weight.mul_(signs[:, None]), other[2].weight.mul_(signs)
        >>> plan = ng.plan([net, other], torch.randn(1, 4), method="symmetric")
        >>> plan.maps["0.weight:0"][1].merge.weight.tolist()
        [1.0, -1.0, 1.0]

    Source: Theus et al. 2025, Generalized Linear Mode Connectivity for Transformers, arXiv:2506.22712, for the classes
    of transformers; Ainsworth et al. 2023, arXiv:2209.04836, for the descent; docs/design.md, "Classes of symmetry".
    """

    name: ClassVar[str] = "symmetric"
    equal_widths: ClassVar[bool] = True
    aligns: ClassVar[bool] = True
    dense: ClassVar[bool] = True
    canonical: ClassVar[bool] = True

    metric: Literal["weights", "activations"] = "weights"
    when: When = "post"
    samples: int = 4096
    sweeps: int = 100
    reference: int | None = None
    max_memory: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("samples", self.samples)
        check_count("sweeps", self.sweeps)

    @property
    def needs_data(self) -> bool:
        """Whether activations are compared."""
        return self.metric == "activations"

    def fill(self, members: Members, _generator: torch.Generator) -> Filling:
        """Find every member's maps.

        Raises:
            OptionError: a reference that is no member, a group too wide for the memory, or no calibration batches
                where they are looked at.
        """
        check_reference(self.reference, members)
        graph = members.graph
        for group in graph.free:
            check_memory(group.name, group.size, group.size, "exact", True, self.max_memory)
        rotating = rotating_groups(graph)
        sides = [
            side.standardised() for side in representations_of(members, self.metric, self.when, self.samples, rotating)
        ]
        descent = _Descent(graph, self.sweeps, rotating)
        reference = self.reference
        if reference is None:
            reference = medoid(
                range(len(sides)),
                len(sides),
                lambda r, m: -_objective(sides[r].against(sides[m]), descent.forward(sides[r].against(sides[m]))),
            )
        found = [
            (descent.identity(), ()) if m == reference else descent(sides[reference].against(side))
            for m, side in enumerate(sides)
        ]
        maps, objectives = [maps for maps, _ in found], tuple(own for _, own in found)
        agreement: tuple[float, ...] = ()
        if len(sides) > 2:
            maps, agreement = _synchronised(sides, maps, members.weights_or(), reference, descent)
        moved = [g.name for g in graph.free if g.inside is None or any(not _still(own[g.name]) for own in maps)]
        return Filling(
            maps={name: tuple(own[name] for own in maps) for name in moved},
            weights=members.weights_or(),
            details={
                "reference": reference,
                "objective": objectives,
                "agreement": agreement,
                "classes": {group.name: group.symmetry.value for group in graph.free},
            },
        )


@dataclass(frozen=True, eq=False)
class _Descent:
    """Coordinate descent over the groups of one graph, each in its class."""

    graph: NeuronGraph
    sweeps: int
    rotating: frozenset[str]

    def __call__(self, evidence: Similarity) -> tuple[Maps, tuple[float, ...]]:
        """The maps, and the objective after the start and after each sweep."""
        return self.descend(evidence, self.forward(evidence))

    def identity(self) -> Maps:
        """Every unit in its place."""
        return {group.name: identity(group.size) for group in self.graph.free}

    def forward(self, evidence: Similarity) -> Maps:
        """A start: one group after the other, on what the groups before it allow to compare."""
        order = execution_order(self.graph)
        return self.identity() | match_forward(
            evidence, self.graph, order, self.solve, readers=True, rotating=self.rotating
        )

    def solve(self, group: str, products: Products) -> NeuronMap:
        """The element of an outermost group's class that gives the largest product."""
        kind = self.graph[group].symmetry.aligned
        if kind.rotates:
            rotation = nearest_orthogonal(products.cross.mT, kind)
            return NeuronMap(rotation, rotation)
        cross = products.cross
        order = assign(-cross.abs() if kind is Symmetry.SIGNED else -cross)
        if kind is not Symmetry.SIGNED:
            return NeuronMap.permutation(order)
        sign = torch.where(cross[order, torch.arange(len(order))] < 0, -1.0, 1.0)
        signed = Pairs(torch.arange(len(order)), order, len(order), len(order), sign)
        return NeuronMap(signed, signed)

    def descend(self, evidence: Similarity, start: Maps) -> tuple[Maps, tuple[float, ...]]:
        """Improve one group after the other until a whole sweep improves nothing."""
        maps = dict(start)
        objectives = [evidence.objective(maps)]
        groups = [g for outer in execution_order(self.graph) for g in (outer, *inner_groups(self.graph, outer))]
        for _ in range(self.sweeps):
            moved = [self._improve(evidence, maps, group) for group in groups]
            if not any(moved):
                break
            objectives.append(evidence.objective(maps))
            if objectives[-1] - objectives[-2] <= SETTLED * abs(objectives[-2]):
                break
        return maps, tuple(objectives)

    def _improve(self, evidence: Similarity, maps: Maps, group: str) -> bool:
        products = evidence.products(group, maps, Everything(), readers=True)
        if products is None:
            return False
        if self.graph[group].inside is None:
            better = self.solve(group, products)
        else:
            better = inner_map(self.graph, group, best_inside(products, group in self.rotating), maps)
        moved = maps | {group: better}
        moved |= matched_insides(self.graph, group, products, moved)
        least = ROUNDING * float(products.member.sum().double() * products.target.sum().double()) ** 0.5
        if products.insides is not None or evidence.twice(group):
            gain = evidence.objective(moved, group) - evidence.objective(maps, group)
        else:
            gain = self._value(products, moved, group) - self._value(products, maps, group)
        if gain <= least:
            return False
        maps |= moved
        return True

    def _value(self, products: Products, maps: Maps, group: str) -> float:
        """The summed products of matched units."""
        merge = maps[group].merge
        if products.cross.dim() == 2:
            assert not isinstance(merge, PerUnit)
            return _matched(products.cross, merge)
        outer = maps[str(self.graph[group].inside)].merge
        assert isinstance(outer, Pairs)
        partners = zip(outer.target.tolist(), outer.source.tolist(), strict=True)
        return sum(
            _matched(products.cross[t], merge.unit(s) if isinstance(merge, PerUnit) else merge) for t, s in partners
        )


def _matched(cross: Tensor, merge: Pairs | Tensor) -> float:
    """Σ_ij A_ij cross_ji, in float64."""
    cross = cross.double()
    if isinstance(merge, Tensor):
        return float((merge.to(cross) * cross.mT).sum())
    values = cross[merge.source, merge.target]
    return float((values if merge.weight is None else values * merge.weight.to(values)).sum())


def _objective(evidence: Similarity, maps: Maps) -> float:
    return evidence.objective(maps)


def _still(own: NeuronMap) -> bool:
    """Whether a map leaves every unit where it is."""
    mixing: Mixing = own.merge
    units = [mixing.unit(s) for s in range(mixing.units)] if isinstance(mixing, PerUnit) else [mixing]
    return all(
        bool((unit.source == unit.target).all()) and unit.weight is None
        if isinstance(unit, Pairs)
        else torch.equal(unit, torch.eye(len(unit)).to(unit))
        for unit in units
    )


def _synchronised(
    sides: Sequence[Representation],
    maps: Sequence[Maps],
    weights: Sequence[float],
    reference: int,
    descent: _Descent,
) -> tuple[list[Maps], tuple[float, ...]]:
    """Align each member to the mean of the others, all in the reference's basis, until nothing is gained.

    The members take turns in the order of how well they fit, so that the result does not depend on how they are given.
    """
    maps = list(maps)
    moved = [side.moved(own, descent.graph) for side, own in zip(sides, maps, strict=True)]
    fit = [sides[reference].against(side).objective(own) for side, own in zip(sides, maps, strict=True)]
    turns = sorted((m for m in range(len(sides)) if m != reference), key=lambda m: -fit[m])
    agreement: list[float] = []
    for _ in range(MOST_ROUNDS):
        total = 0.0
        for m in turns:
            others = [i for i in range(len(sides)) if i != m and weights[i] > 0]
            if not others:
                continue
            evidence = mean_representation([moved[i] for i in others], [weights[i] for i in others]).against(sides[m])
            maps[m], objectives = descent.descend(evidence, maps[m])
            moved[m] = sides[m].moved(maps[m], descent.graph)
            total += objectives[-1]
        agreement.append(total)
        if len(agreement) > 1 and agreement[-1] - agreement[-2] <= SETTLED * abs(agreement[-2]):
            break
    return maps, tuple(agreement)
