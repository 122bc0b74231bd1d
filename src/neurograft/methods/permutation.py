"""Permutation alignment: give every member's neurons the order in which they agree best, then average."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from neurograft.alignment.activations import When
from neurograft.alignment.assignment import assign, check_memory
from neurograft.alignment.matching import (
    Everything,
    assign_all,
    execution_order,
    identity,
    inner_groups,
    inner_map,
    match_forward,
    matched_insides,
    moves,
    order_of,
)
from neurograft.alignment.products import Products
from neurograft.alignment.representation import Representation, mean_representation, medoid, representations_of
from neurograft.alignment.weight_similarity import Similarity
from neurograft.axes.maps import NeuronMap
from neurograft.axes.mixing import cell_positions
from neurograft.members.members import Members
from neurograft.methods.method import Method, check_reference
from neurograft.options import check_count
from neurograft.plans.plan import Filling
from neurograft.tracing.graph import Group, NeuronGraph

MOST_ROUNDS = 100  # of synchronising; it stops as soon as no member moves
ROUNDING = 1e-6  # gains below this share of |target||member| are rounding, not progress

NARROW, MANY_STARTS, FEW_STARTS = 512, 10, 3  # starts of a descent where they are cheap, and where they are not

Permutations = dict[str, NeuronMap]


@dataclass(frozen=True, kw_only=True)
class Permutation(Method):
    """Permute each member's neurons so that the members agree best, A = P, B = Pᵀ, and average.

    With `metric="weights"` coordinate descent maximises Σ over tensors of <W_reference, aligned W_member>: one group
    after the other is assigned exactly, given all others, until a sweep over all groups changes nothing. It starts
    from a forward pass of assignments (each group on what the groups before it allow to compare). With
    `metric="activations"` every group maximises the summed correlation of matched neurons, at once. Groups inside
    others (the channels of a head) are permuted too, in every unit by itself unless all units share their order: units
    are then assigned as wholes, by what they have in common in the order of their insides that fits best.

    More than two members are first matched to a reference and then, in turn, each to the mean of all the others
    until none moves; the reference keeps its places. `details["objective"]` holds, for every member, the objective at
    the best start and after each of its sweeps, `details["agreement"]` the summed objective against the others' mean
    after each round.

    Attributes:
        metric: "weights" needs no data; "activations" compares what neurons do on calibration batches.
        when: activations before ("pre") or after ("post") the nonlinearity.
        samples: activations per neuron that are compared.
        sweeps: the most sweeps of one descent.
        restarts: starts to try: the forward pass, then random orders and random permutations; the best is kept.
            Default 10 for weights where the widest group has at most 512 neurons, else 3. With narrow first layers
            (6 filters are little evidence of which goes with which) descents end in optima of very different accuracy.
        reference: the member that keeps its places; default the medoid.
        max_memory: bytes that matching one group may take; default what the machine has.

    Raises:
        OptionError: an option outside its range.

    Example:
        >>> import neurograft as ng
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> moved = ng.permute(net, ng.trace(net, torch.randn(1, 4)), {"0.weight:0": torch.tensor([2, 0, 1])})
        >>> plan = ng.plan([net, moved], torch.randn(1, 4), method="permutation")
        >>> plan.maps["0.weight:0"][1].merge.source
        tensor([1, 2, 0])

    Source: Ainsworth et al. 2023, arXiv:2209.04836, sections 3.1 and 3.2, and appendix A.8 (many members).
    """

    name: ClassVar[str] = "permutation"
    equal_widths: ClassVar[bool] = True
    aligns: ClassVar[bool] = True
    dense: ClassVar[bool] = True

    metric: Literal["weights", "activations"] = "weights"
    when: When = "pre"
    samples: int = 1024
    sweeps: int = 100
    restarts: int | None = None
    reference: int | None = None
    max_memory: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("samples", self.samples)
        check_count("sweeps", self.sweeps)
        if self.restarts is not None:
            check_count("restarts", self.restarts)

    @property
    def needs_data(self) -> bool:
        """Whether activations are compared."""
        return self.metric == "activations"

    def fill(self, members: Members, generator: torch.Generator) -> Filling:
        """Find every member's permutations.

        Raises:
            OptionError: a reference that is no member, a group too wide for the memory, or no calibration batches
                where they are looked at.
        """
        check_reference(self.reference, members)
        for group in members.graph.free:
            n = group.size * _distinct_units(members.graph, group.name)
            check_memory(group.name, n, n, "exact", True, self.max_memory)
        sides = [side.standardised() for side in representations_of(members, self.metric, self.when, self.samples)]
        descent = _Descent(members.graph, self.sweeps, self._starts(members.graph), generator)
        reference = self.reference
        if reference is None:
            reference = medoid(
                range(len(sides)), len(sides), lambda r, m: -descent.forward(sides[r].against(sides[m])).best
            )
        found = [
            _DescentResult(descent.identity(), ()) if m == reference else descent(sides[reference].against(side))
            for m, side in enumerate(sides)
        ]
        objectives = tuple(f.objectives for f in found)
        agreement: tuple[float, ...] = ()
        if len(sides) > 2:
            found, agreement = _synchronise(sides, found, members.weights_or(), reference, descent)
        moved = [g.name for g in members.graph.free if g.inside is None or any(moves(f.maps[g.name]) for f in found)]
        return Filling(
            maps={name: tuple(f.maps[name] for f in found) for name in moved},
            weights=members.weights_or(),
            details={"reference": reference, "objective": objectives, "agreement": agreement},
        )

    def _starts(self, graph: NeuronGraph) -> int:
        if self.restarts is not None:
            return self.restarts
        narrow = max((group.size for group in graph.free), default=0) <= NARROW
        return MANY_STARTS if narrow and self.metric == "weights" else FEW_STARTS


@dataclass(frozen=True, eq=False)
class _DescentResult:
    """A member's permutations, and the objective after the start and after each sweep."""

    maps: Permutations
    objectives: tuple[float, ...]

    @property
    def best(self) -> float:
        return self.objectives[-1] if self.objectives else 0.0


@dataclass(frozen=True, eq=False)
class _Descent:
    """Coordinate descent over the groups of one graph."""

    graph: NeuronGraph
    sweeps: int
    restarts: int
    generator: torch.Generator

    def __call__(self, evidence: Similarity) -> _DescentResult:
        """The best of all starts."""
        best = self.descend(evidence, self.forward(evidence))
        for attempt in range(1, self.restarts):
            order = self._shuffled(execution_order(self.graph))
            start = self.forward(evidence, order) if attempt % 2 else self._random(evidence)
            other = self.descend(evidence, start, shuffle=True)
            if other.best > best.best + ROUNDING * abs(best.best):
                best = other
        return best

    def identity(self) -> Permutations:
        """Every neuron in its place."""
        return {group.name: identity(group.size) for group in self.graph.free}

    def forward(self, evidence: Similarity, order: Sequence[str] | None = None) -> _DescentResult:
        """A start: one group after the other, on what the groups before it allow to compare."""

        def solve(_group: str, products: Products) -> NeuronMap:
            return NeuronMap.permutation(assign(products.distances("squared")))

        order = execution_order(self.graph) if order is None else order
        maps = self.identity() | match_forward(evidence, self.graph, order, solve, readers=True)
        return _DescentResult(maps, (evidence.objective(maps),))

    def descend(self, evidence: Similarity, start: _DescentResult, shuffle: bool = False) -> _DescentResult:
        """Improve one group after the other until a whole sweep improves nothing."""
        maps = dict(start.maps)
        objectives = list(start.objectives)
        groups = [g for outer in execution_order(self.graph) for g in (outer, *inner_groups(self.graph, outer))]
        for _ in range(self.sweeps):
            moved = [self._improve(evidence, maps, group) for group in (self._shuffled(groups) if shuffle else groups)]
            if not any(moved):
                break
            objectives.append(evidence.objective(maps))
        return _DescentResult(maps, tuple(objectives))

    def _improve(self, evidence: Similarity, maps: Permutations, group: str) -> bool:
        products = evidence.products(group, maps, Everything(), readers=True)
        if products is None:
            return False
        better = assign_all(products.cross.neg())
        least = ROUNDING * float(products.member.sum().double() * products.target.sum().double()) ** 0.5
        if _matched(products, better) - self._value(products, maps, group) <= least:
            return False
        moved = maps | {group: inner_map(self.graph, group, better, maps)}
        moved |= matched_insides(self.graph, group, products, moved)
        if evidence.twice(group) and evidence.objective(moved, group) <= evidence.objective(maps, group) + least:
            return False
        maps |= moved
        return True

    def _value(self, products: Products, maps: Permutations, group: str) -> float:
        """The summed products in the order there is now."""
        order = order_of(maps[group])
        if products.cross.dim() == 3:
            # the orders of the member's units, as the target's units lie
            order = order.expand(len(products.cross), -1)[order_of(maps[str(self.graph[group].inside)])]
        value = _matched(products, order)
        if products.insides is None:
            return value
        target = torch.arange(len(order))
        inner = {name: order_of(maps[name]) for name in products.insides.names}
        now = {name: found.expand(len(order), -1)[order] for name, found in inner.items()}
        return value + products.insides.value(order, target, now) - float(products.insides.best[order, target].sum())

    def _shuffled(self, names: Sequence[str]) -> list[str]:
        return [names[i] for i in torch.randperm(len(names), generator=self.generator)]

    def _random(self, evidence: Similarity) -> _DescentResult:
        maps = {group.name: self._shuffle(group) for group in self.graph.free}
        return _DescentResult(maps, (evidence.objective(maps),))

    def _shuffle(self, group: Group) -> NeuronMap:
        units = self.graph[group.inside].size if group.inside and group.per_unit else 0
        orders = [torch.randperm(group.size, generator=self.generator) for _ in range(units or 1)]
        return inner_map(self.graph, group.name, torch.stack(orders) if units else orders[0], {})


def _synchronise(
    sides: Sequence[Representation],
    found: Sequence[_DescentResult],
    weights: Sequence[float],
    reference: int,
    descent: _Descent,
) -> tuple[list[_DescentResult], tuple[float, ...]]:
    """Match each member in turn to the mean of the others, all in the reference's basis, until none moves."""
    graph = descent.graph
    moved = [side.moved(f.maps, graph) for side, f in zip(sides, found, strict=True)]
    found = list(found)
    agreement: list[float] = []
    for _ in range(MOST_ROUNDS):
        still = True
        total = 0.0
        for m in range(len(sides)):
            others = [i for i in range(len(sides)) if i != m and weights[i] > 0]
            if m == reference or not others:
                continue
            evidence = mean_representation([moved[i] for i in others], [weights[i] for i in others]).against(sides[m])
            after = descent.descend(evidence, _DescentResult(found[m].maps, (evidence.objective(found[m].maps),)))
            total += after.best
            if len(after.objectives) > 1:
                still = False
                found[m] = after
                moved[m] = sides[m].moved(after.maps, graph)
        agreement.append(total)
        if still:
            break
    return found, tuple(agreement)


def _distinct_units(graph: NeuronGraph, group: str) -> int:
    """How many neurons inside a unit are compared one by one, at most."""
    inside = [g.name for g in graph.free if g.per_unit and g.inside == group]
    layouts = {layout for info in graph.tensors.values() for layout in info.layouts if inside}
    cells = [found for layout in layouts for found in cell_positions(layout, group, inside).values()]
    return max((prod(found.shape[1:-1]) for found in cells), default=1)


def _matched(products: Products, order: Tensor) -> float:
    """The summed products if target neuron i (of every unit) gets the member's neuron `order[…, i]`."""
    cross = products.cross.double()
    return float(cross.gather(-2, order.to(cross.device)[..., None, :]).sum())
