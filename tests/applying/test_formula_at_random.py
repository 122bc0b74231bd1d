"""The formula on random layouts, roles and matrices, against explicit matrices in float64, whole and block by block."""

import itertools
import random
from dataclasses import replace

import pytest
import torch
from tests.applying.test_formula import FUSED, SIZES, dense, dense_axis, graph_of, random_mixing
from tests.axes.test_mixing import places, whole_matrix
from torch import Tensor

from neurograft.applying.formula import FusedRows, fuse_tensor
from neurograft.axes.maps import NeuronMap, PerUnit
from neurograft.operators.mean import Mean
from neurograft.operators.owned import Owned
from neurograft.plans.plan import FusionPlan
from neurograft.tracing.graph import Role

WEIGHTS = (0.25, 0.75)


def random_segment(chance: random.Random, deep: bool) -> tuple:
    """A product of one or two factors: groups, unmoved numbers, or a sum of segments."""
    parts: list[str | int | tuple] = []
    for _ in range(chance.choice((1, 1, 2))):
        parts.append(chance.choice(("a", "b", "c", 2, 3)))
    if deep and chance.random() < 0.3:
        parts.append(tuple(random_segment(chance, False) for _ in range(2)))
    return tuple(parts)


def groups_of(segments: tuple) -> set[str]:
    found: set[str] = set()
    for part in segments:
        found |= groups_of(part) if isinstance(part, tuple) else {part} if isinstance(part, str) else set()
    return found


def random_tensor(chance: random.Random) -> tuple[list[tuple], list[dict[str, Role]]]:
    """The layouts of one to three dimensions, and the role of every group along each."""
    shape = [tuple(random_segment(chance, True) for _ in range(chance.choice((1, 1, 2)))) for _ in range(chance.choice((1, 2, 3)))]  # fmt: skip  # noqa: E501
    roles: tuple[Role, ...] = ("out", "in", "elementwise")
    return shape, [{g: chance.choice(roles) for g in sorted(groups_of(dim))} for dim in shape]


def expected_of(plan: FusionPlan, tensors: list[Tensor], roles: list[dict[str, Role]]) -> Tensor:
    """Σ_m c_m ∘ (A … W_m … B), every matrix written out, c_m entry by entry."""
    total = torch.zeros(plan.graph.tensors["w"].shape, dtype=torch.float64)
    for m, tensor in enumerate(tensors):
        scale = torch.ones(total.shape, dtype=torch.float64)
        c = owned_scale(plan, roles, WEIGHTS[m], scale) if plan.owned else WEIGHTS[m]
        total += aligned_of(plan, tensor, m, roles) * c
    return total


def aligned_of(plan: FusionPlan, tensor: Tensor, m: int, roles: list[dict[str, Role]]) -> Tensor:
    """A_m … W_m … B_m, every matrix written out."""
    for dim, layout in enumerate(plan.graphs[m].tensors["w"].layouts):
        maps = {g: plan.maps[g][m] for g in roles[dim]}
        used = {g: n.unmerge if roles[dim][g] == "in" else n.merge for g, n in maps.items()}
        matrix = dense_axis(layout, {g: dense(mixing) for g, mixing in used.items()})
        tensor = torch.tensordot(matrix, tensor, dims=([1], [dim])).movedim(0, dim)
    return tensor


def owned_scale(plan: FusionPlan, roles: list[dict[str, Role]], weight: float, ones: Tensor) -> Tensor:
    """1 for entries that a moved group makes along some dimension, the member's weight for all others."""
    made = torch.zeros(ones.shape, dtype=torch.bool)
    for dim, layout in enumerate(plan.graph.tensors["w"].layouts):
        makers = [g for g, role in roles[dim].items() if role != "in"]
        # a position belongs to a maker if moving that maker's units moves it
        moved = torch.zeros(ones.shape[dim], dtype=torch.bool)
        for g in makers:
            shift = torch.roll(torch.eye(FUSED[g], dtype=torch.float64), 1, 0)
            moved |= dense_axis(layout, {g: shift}).diagonal() == 0
        made |= moved.reshape(-1, *[1] * (len(ones.shape) - dim - 1))
    return torch.where(made, 1.0, weight)


@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_random_tensors(seed: int, owned: bool) -> None:
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    shape, roles = random_tensor(chance)
    graphs = [graph_of(shape, roles, sizes) for sizes in SIZES]
    kinds = {g: "selection" if owned else chance.choice(("dense", "selection", "weighted")) for g in "abc"}
    maps = {
        g: tuple(
            NeuronMap(*(random_mixing(kinds[g], FUSED[g], sizes[g], generator) for _ in range(2))) for sizes in SIZES
        )
        for g in "abc"
    }
    plan = FusionPlan("test", tuple(graphs), maps, WEIGHTS, Owned() if owned else Mean())
    tensors = [torch.randn(g.tensors["w"].shape, generator=generator, dtype=torch.float64) for g in graphs]
    expected = expected_of(plan, tensors, roles)
    whole = fuse_tensor(tensors, plan, "w", torch.zeros(expected.shape, dtype=torch.float64))
    torch.testing.assert_close(whole, expected, rtol=1e-11, atol=1e-11)
    rows = FusedRows(tensors, plan, "w")
    if not rows.whole:
        cuts = sorted({0, rows.count, *(chance.randrange(rows.count + 1) for _ in range(3))})
        blocks = [rows.block(start, stop) for start, stop in itertools.pairwise(cuts)]
        torch.testing.assert_close(torch.cat(blocks), expected, rtol=1e-11, atol=1e-11)
        for m, block in enumerate(rows.aligned(cuts[1], rows.count)):
            own = aligned_of(plan, tensors[m], m, roles)
            torch.testing.assert_close(block, own[cuts[1] :], rtol=1e-11, atol=1e-11)


def random_insides(chance: random.Random, units: int) -> NeuronMap:
    """One matrix per unit of b: permutations, or dense."""
    if chance.random() < 0.5:
        return NeuronMap.permutations("b", torch.stack([torch.randperm(2) for _ in range(units)]))
    return NeuronMap(*(PerUnit("b", torch.rand(units, 2, 2, dtype=torch.float64)) for _ in range(2)))


@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_random_tensors_whose_units_hold_orders_of_their_own(seed: int, owned: bool) -> None:
    """As above, with neurons d (two in every unit of b, left or right of it, or in a sum beside it)."""
    torch.manual_seed(seed)
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    forms = (("b", "d"), ("d", "b"), ("b", (("d",), (3,))), (2, "b", "d"), ("b", "a", "d"), ("b",), ("a",))
    shape = [tuple(chance.choice(forms) for _ in range(chance.choice((1, 2)))) for _ in range(chance.choice((1, 2)))]
    roles: list[dict[str, Role]] = [{g: chance.choice(("out", "in")) for g in sorted(groups_of(dim))} for dim in shape]
    sizes = [{**own, "d": 2} for own in SIZES]
    graphs = []
    for own in sizes:
        graph = graph_of(shape, roles, own)
        groups = (replace(g, inside="b", per_unit=True) if g.name == "d" else g for g in graph)
        graphs.append(replace(graph, groups=tuple(groups)))
    kinds = {g: "selection" if owned else chance.choice(("dense", "selection", "weighted")) for g in "abc"}
    maps = {
        g: tuple(NeuronMap(*(random_mixing(kinds[g], FUSED[g], own[g], generator) for _ in range(2))) for own in SIZES)
        for g in "abc"
    }
    maps["d"] = tuple(random_insides(chance, own["b"]) for own in SIZES)
    plan = FusionPlan("test", tuple(graphs), maps, WEIGHTS, Owned() if owned else Mean())
    tensors = [torch.randn(g.tensors["w"].shape, generator=generator, dtype=torch.float64) for g in graphs]
    total = torch.zeros(plan.graph.tensors["w"].shape, dtype=torch.float64)
    aligned = []
    for m, tensor in enumerate(tensors):
        for dim, layout in enumerate(graphs[m].tensors["w"].layouts):
            used = {g: maps[g][m].unmerge if role == "in" else maps[g][m].merge for g, role in roles[dim].items()}
            matrix = whole_matrix(layout, plan.graph.tensors["w"].layouts[dim], used)
            tensor = torch.tensordot(matrix, tensor, dims=([1], [dim])).movedim(0, dim)
        aligned.append(tensor)
        made = [{g: role for g, role in dim.items() if g != "d"} for dim in roles]
        total += tensor * (scale_of(plan, made, WEIGHTS[m]) if owned else WEIGHTS[m])
    whole = fuse_tensor(tensors, plan, "w", torch.zeros(total.shape, dtype=torch.float64))
    torch.testing.assert_close(whole, total, rtol=1e-11, atol=1e-11)
    rows = FusedRows(tensors, plan, "w")
    if not rows.whole:
        cuts = sorted({0, rows.count, *(chance.randrange(rows.count + 1) for _ in range(3))})
        blocks = [rows.block(start, stop) for start, stop in itertools.pairwise(cuts)]
        torch.testing.assert_close(torch.cat(blocks), total, rtol=1e-11, atol=1e-11)
        for block, own in zip(rows.aligned(cuts[1], rows.count), aligned, strict=True):
            torch.testing.assert_close(block, own[cuts[1] :], rtol=1e-11, atol=1e-11)


def scale_of(plan: FusionPlan, roles: list[dict[str, Role]], weight: float) -> Tensor:
    """1 for entries that an outermost group makes along some dimension, the member's weight for all others."""
    info = plan.graph.tensors["w"]
    made = torch.zeros(info.shape, dtype=torch.bool)
    for dim, layout in enumerate(info.layouts):
        makers = {g for g, role in roles[dim].items() if role != "in"}
        along = torch.tensor([any(group in makers for _, group, _ in place) for place in places(layout)])
        made |= along.reshape(-1, *[1] * (len(info.shape) - dim - 1))
    return torch.where(made, 1.0, weight)
