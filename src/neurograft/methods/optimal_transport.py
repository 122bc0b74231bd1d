"""Optimal transport: align every member's neurons to a reference by a transport plan, then average."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from neurograft.alignment.activations import When
from neurograft.alignment.assignment import Solver, assign, check_memory, transport
from neurograft.alignment.matching import Everything, execution_order, identity, match_forward
from neurograft.alignment.products import Distance, Products
from neurograft.alignment.representation import (
    Representation,
    mean_representation,
    medoid,
    representations_of,
    resized_representation,
)
from neurograft.alignment.weight_similarity import Maps, Similarity
from neurograft.axes.maps import NeuronMap, Pairs, PerUnit
from neurograft.errors import OptionError, PlanError
from neurograft.members.members import Members
from neurograft.methods.method import Method, check_reference
from neurograft.options import check_count
from neurograft.plans.plan import Filling
from neurograft.selection.widths import fused_sizes
from neurograft.tracing.graph import NeuronGraph

MOST_ROUNDS = 20  # of a barycenter; it stops as soon as no plan moves


@dataclass(frozen=True, kw_only=True)
class OptimalTransport(Method):
    """Match neurons by a transport plan T of least cost, A = diag(1/β) Tᵀ and B = diag(1/α) T, and average.

    Groups are matched in execution order. With `metric="weights"` two neurons cost the distance of their incoming
    weights (biases, scales and shifts among them; running statistics not), the member's inputs being aligned already;
    over several producers the squared distances add up. The outputs, being fixed, are aligned on their inputs only.
    Groups inside a group (the channels of a head) are matched one to one.

    Incoming weights alone decide little where a first layer is narrow (a LeNet's 6 filters), and what is mismatched
    there misleads all layers behind it. There `metric="activations"` and the method `permutation`, which counts
    outgoing weights too, do better; docs/one-shot.md has figures.

    A group that an op contracts with another or reduces (q·k, LayerNorm) allows permutations only: there, soft plans
    between equal widths become assignments, with a warning. Between different widths a contracted group is refused, and
    a reduced one warned of.

    Attributes:
        metric: "weights" needs no data; "activations" compares what neurons do on calibration batches.
        when: activations before ("pre") or after ("post") the nonlinearity.
        samples: activations per neuron that are compared.
        distance: between two neurons' features: "euclidean", "squared" or "cosine".
        marginals: "uniform", or "importance": mass |features| · |weights that read the neuron|, which lets a network
            meet a duplicate of itself with unevenly many copies of a layer's neurons and keep its function.
        solver: "exact" or "sinkhorn".
        reg: entropic regularisation as a share of the mean cost, for "sinkhorn".
        sweeps: how often all groups are matched; from the second time on every producer counts.
        restarts: orders in which the groups are tried, the first in execution order; the cheapest match is kept.
        barycenter: alternate between matching to the mean and averaging until nothing moves.
        published: the published scaling diag(1/β) for readers too, which changes the signal between different widths.
        width: neurons per group, one number for all or a mapping of patterns; default those of the reference.
        reference: the member that the others are aligned to; default the medoid among those of the fused widths.
        max_memory: bytes that solving one group may take; default what the machine has.

    Raises:
        OptionError: an option outside its range.

    Example:
        >>> import neurograft as ng
        >>> from torch import nn
        >>> nets = [nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 2)) for n in (8, 12)]
        >>> ng.plan(nets, torch.randn(1, 4), method="optimal_transport").sizes
        {'0.weight:0': 8}

    Source: Singh & Jaggi 2020, arXiv:1910.05653, sections 4 and 5; docs/design.md, "Parity with the
    published code".
    """

    name: ClassVar[str] = "optimal_transport"
    aligns: ClassVar[bool] = True
    dense: ClassVar[bool] = True

    metric: Literal["weights", "activations"] = "weights"
    when: When = "pre"
    samples: int = 1024
    distance: Distance = "euclidean"
    marginals: Literal["uniform", "importance"] = "uniform"
    solver: Solver = "exact"
    reg: float = 0.05
    sweeps: int = 1
    restarts: int = 1
    barycenter: bool = False
    published: bool = False
    width: int | Mapping[str, int] | None = None
    reference: int | None = None
    max_memory: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("samples", self.samples)
        check_count("sweeps", self.sweeps)
        check_count("restarts", self.restarts)
        if not 0 < self.reg < float("inf"):
            raise OptionError(f"reg is a share of the mean cost above 0, got {self.reg}")

    @property
    def needs_data(self) -> bool:
        """Whether activations are compared."""
        return self.metric == "activations"

    def fill(self, members: Members, generator: torch.Generator) -> Filling:
        """Match every member's neurons to the reference's.

        Raises:
            OptionError: a reference that is no member, a group too wide for the memory, or no calibration batches
                where they are looked at.
            PlanError: a marginal with zeros, or different widths of a contracted group.
        """
        check_reference(self.reference, members)
        sizes = _sizes(members, self.width, self.reference)
        for group, n in sizes.items():
            check_memory(group, max(members.sizes(group)), n, self.solver, self.marginals == "uniform", self.max_memory)
        sides = representations_of(members, self.metric, self.when, self.samples)
        return _fuse(members, sides, _Aligner(self, generator), sizes, self.reference, self.barycenter)


@dataclass(frozen=True, eq=False)
class _Aligned:
    """One member's maps onto the target, the mean cost of a fused neuron per group, and what to warn of."""

    maps: Maps
    costs: Mapping[str, float]
    warnings: tuple[str, ...]

    @property
    def total(self) -> float:
        return sum(self.costs.values())


@dataclass(frozen=True, eq=False)
class _Aligner:
    options: OptimalTransport
    generator: torch.Generator

    def __call__(self, target: Representation, member: Representation) -> _Aligned:
        """Match a member to the target: in execution order, and in random orders if asked."""
        evidence = target.against(member)
        graph = target.graph
        order = execution_order(graph)
        best = self._attempt(evidence, target, member, order)
        for _ in range(self.options.restarts - 1):
            mixed = [order[i] for i in torch.randperm(len(order), generator=self.generator)]
            other = self._attempt(evidence, target, member, mixed)
            best = min(best, other, key=lambda found: found.total)
        return best

    def _attempt(
        self, evidence: Similarity, target: Representation, member: Representation, order: Sequence[str]
    ) -> _Aligned:
        solve = _Solver(self.options, target, member)
        graph = target.graph
        maps = match_forward(evidence, graph, order, solve, sweeps=self.options.sweeps)
        costs = solve.costs
        if self.options.restarts > 1:  # orders can only be compared on what they all see
            costs = {}
            for group in order:
                products = evidence.products(group, maps, Everything(), readers=False)
                if products is not None:
                    costs[group] = _mean_cost(products.distances(self.options.distance), maps[group])
        return _Aligned(maps, costs, tuple(solve.warnings))


@dataclass(eq=False)
class _Solver:
    """Decides one group's map after the other, and notes what it cost."""

    options: OptimalTransport
    target: Representation
    member: Representation
    costs: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __call__(self, name: str, products: Products) -> NeuronMap:
        cost = products.distances(self.options.distance)
        if self._one_to_one(name, cost):
            neuron_map = NeuronMap.permutation(assign(cost))
        else:
            neuron_map = self._soft(name, cost, products)
        self.costs[name] = _mean_cost(cost, neuron_map)
        return neuron_map

    def _one_to_one(self, name: str, cost: Tensor) -> bool:
        group, equal = self.target.graph[name], cost.shape[0] == cost.shape[1]
        soft = self.options.solver == "sinkhorn" or self.options.marginals == "importance"
        if group.bilinear and not equal:
            raise PlanError(
                f"group {name} has {cost.shape[0]} neurons in a member and {cost.shape[1]} in the fused network, but "
                f"{group.bilinear[0]} contracts it, which allows permutations only; give the members equal widths there"
            )
        ops = group.bilinear or group.reduced_by
        if ops and not equal:
            self.warnings.append(
                f"group {name} changes from {cost.shape[0]} to {cost.shape[1]} neurons under {ops[0]}, which reduces "
                "over them: the plan is exact there only if the statistics over the neurons stay the same"
            )
        if ops and equal and soft:
            self.warnings.append(
                f"group {name} is matched one to one: {ops[0]} allows permutations only, a soft plan would alter it"
            )
        return equal and (not soft or bool(ops))

    def _soft(self, name: str, cost: Tensor, products: Products) -> NeuronMap:
        alpha, beta = (torch.full((n,), 1 / n, dtype=torch.double) for n in cost.shape)
        if self.options.marginals == "importance":
            alpha = _shares(self.member.mass(name, products.member), name, "member")
            beta = _shares(self.target.mass(name, products.target), name, "target")
        solved = transport(cost, alpha, beta, self.options.solver, self.options.reg)
        if solved.warning:
            self.warnings.append(f"group {name}: {solved.warning}")
        if tied := [tied.tensor for tied in self.target.graph.tied if tied.group == name]:
            self.warnings.append(
                f"group {name} is made and read by one tensor, {tied[0]}, which can only be transported as it is made; "
                "a soft plan is approximate where it reads"
            )
        merge = (solved.plan / beta).T.to(cost).contiguous()
        unmerge = merge if self.options.published else (solved.plan / alpha[:, None]).T.to(cost).contiguous()
        return NeuronMap(merge, unmerge)


def _shares(mass: Tensor, group: str, whose: str) -> Tensor:
    mass = mass.detach().double().cpu()
    if not bool((mass > 0).all()) or not bool(mass.isfinite().all()):
        bad = (~(mass > 0)).nonzero().flatten().tolist()
        raise PlanError(
            f'marginals="importance": neurons {bad[:5]} of group {group} ({len(bad)} of {len(mass)} in the {whose}) '
            'have no importance, so no mass can be moved from or to them; use marginals="uniform"'
        )
    return mass / mass.sum()


def _mean_cost(cost: Tensor, neuron_map: NeuronMap) -> float:
    """What a fused neuron costs on average, each the A-weighted mean of the costs of what it is made of."""
    merge = neuron_map.merge
    if isinstance(merge, Pairs):
        return float(cost[merge.source, merge.target].sum(dtype=torch.double)) / merge.fused
    assert isinstance(merge, Tensor)
    return float((merge.T * cost).sum(dtype=torch.double)) / len(merge)


def _sizes(members: Members, width: int | Mapping[str, int] | None, reference: int | None) -> dict[str, int]:
    if width is None and reference is not None:
        return {group.name: members.sizes(group.name)[reference] for group in members.graph.outermost}
    return fused_sizes(members, None, width)


def _fuse(
    members: Members,
    sides: Sequence[Representation],
    align: _Aligner,
    sizes: Mapping[str, int],
    reference: int | None,
    barycenter: bool,
) -> Filling:
    everybody = range(len(sides))
    fitting = [m for m in everybody if all(members.sizes(g)[m] == n for g, n in sizes.items())]
    known: dict[tuple[int, int], _Aligned] = {}

    def cost(r: int, m: int) -> float:
        known[r, m] = align(sides[r], sides[m])
        return known[r, m].total

    if reference is None:
        reference = medoid(fitting or everybody, len(sides), cost)
    if reference in fitting:
        target, unmoved = sides[reference], _Aligned({}, {}, ())
        aligned = [
            unmoved if m == reference else known.get((reference, m)) or align(target, sides[m]) for m in everybody
        ]
    else:
        target = resized_representation(sides[reference], sizes)
        aligned = [align(target, side) for side in sides]
    rounds = 0
    still = not barycenter
    while not still and rounds < MOST_ROUNDS:
        rounds += 1
        moved = [side.moved(found.maps, target.graph) for side, found in zip(sides, aligned, strict=True)]
        centre = mean_representation(moved, members.weights_or())
        again = [align(centre, side) for side in sides]
        still = all(_same(a.maps, b.maps) for a, b in zip(aligned, again, strict=True))
        aligned = again
    return _filling(target.graph, aligned, members.weights_or(), reference, rounds)


def _same(before: Maps, after: Maps) -> bool:
    """Whether two matchings of a member are one; a group that has no map keeps its places."""
    for name, b in after.items():
        one, other = (before.get(name) or identity(b.fused)).merge, b.merge
        one, other = (m.inner if isinstance(m, PerUnit) else m for m in (one, other))
        if isinstance(one, Pairs) and isinstance(other, Pairs):
            if one.source.shape != other.source.shape or not torch.equal(one.source, other.source):
                return False
        elif isinstance(one, Pairs) or isinstance(other, Pairs) or float((one - other).abs().max()) > 1e-6:
            return False
    return True


def _filling(
    graph: NeuronGraph, aligned: Sequence[_Aligned], weights: tuple[float, ...], reference: int, rounds: int
) -> Filling:
    names = [name for name in graph.by_name if any(name in found.maps for found in aligned)]
    maps = {n: tuple(found.maps.get(n) or identity(graph[n].size) for found in aligned) for n in names}
    matched = [n for n in names if any(n in found.costs for found in aligned)]
    costs = {n: tuple(found.costs.get(n, 0.0) for found in aligned) for n in matched}
    return Filling(
        maps=maps,
        weights=weights,
        warnings=tuple(dict.fromkeys(warning for found in aligned for warning in found.warnings)),
        details={"reference": reference, "cost": costs, "rounds": rounds},
    )
