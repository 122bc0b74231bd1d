"""W_fused = Σ_m c_m · (A_m on out and elementwise axes) W_m (B_m on in axes), against explicit matrices in float64."""

import pytest
import torch
from torch import Tensor

from neurograft.applying.formula import FusedRows, fuse_tensor
from neurograft.axes.layout import layout_size
from neurograft.axes.maps import Mixing, NeuronMap, Pairs
from neurograft.operators.owned import Owned
from neurograft.plans.plan import FusionPlan
from neurograft.tracing.graph import Factor, Group, Layout, NeuronGraph, Role, TensorInfo, slots_by_group

SIZES = ({"a": 4, "b": 3, "c": 2}, {"a": 5, "b": 2, "c": 3})
FUSED = {"a": 6, "b": 3, "c": 2}


def axis(*segments: tuple[str | int | tuple, ...], sizes: dict[str, int]) -> Layout:
    """A layout from names (groups), numbers (unmoved factors) and nested tuples (sums)."""

    def part(x: str | int | tuple) -> Factor | Layout:
        if isinstance(x, str):
            return Factor(x, sizes[x])
        if isinstance(x, int):
            return Factor(None, x)
        return axis(*x, sizes=sizes)

    return tuple(tuple(part(x) for x in segment) for segment in segments)


def graph_of(shape: list[tuple], roles: list[dict[str, Role]], sizes: dict[str, int]) -> NeuronGraph:
    layouts = tuple(axis(*dim, sizes=sizes) for dim in shape)
    info = TensorInfo(
        "w",
        tuple(layout_size(layout) for layout in layouts),
        torch.float64,
        "weight",
        False,
        layouts,
        tuple({g: frozenset({r}) for g, r in dim.items()} for dim in roles),
    )
    slots = slots_by_group({"w": info})
    groups = tuple(Group(g, n, slots.get(g, ())) for g, n in sizes.items())
    return NeuronGraph(groups, {"w": info})


def dense_axis(layout: Layout, matrices: dict[str, Tensor]) -> Tensor:
    """The whole axis' matrix: block diagonal over segments of Kronecker products over factors."""
    blocks = []
    for segment in layout:
        block = torch.ones(1, 1, dtype=torch.float64)
        for part in segment:
            if not isinstance(part, Factor):
                block = torch.kron(block, dense_axis(part, matrices))
            elif part.group in matrices:
                block = torch.kron(block, matrices[part.group])
            else:
                block = torch.kron(block, torch.eye(part.size, dtype=torch.float64))
        blocks.append(block)
    return torch.block_diag(*blocks)


def random_mixing(kind: str, fused: int, member: int, generator: torch.Generator) -> Mixing:
    if kind == "dense":
        return torch.rand(fused, member, generator=generator, dtype=torch.float64)
    count = min(fused, member)
    target = torch.randperm(fused, generator=generator)[:count]
    source = torch.randperm(member, generator=generator)[:count]
    if kind == "selection":
        return Pairs(target, source, fused, member)
    target = torch.randint(fused, (member,), generator=generator)  # several pairs share a target
    weight = torch.rand(member, generator=generator, dtype=torch.float64)
    return Pairs(target, torch.arange(member), fused, member, weight)


def dense(mixing: Mixing) -> Tensor:
    return mixing if isinstance(mixing, Tensor) else mixing.dense().double()


CASES: dict[str, tuple[list[tuple], list[dict[str, Role]]]] = {
    "linear": ([(("a",),), (("b",),)], [{"a": "out"}, {"b": "in"}]),
    "convolution to linear, channels first": ([(("a",),), (("b", 4),)], [{"a": "out"}, {"b": "in"}]),
    "channels last": ([(("a",),), ((4, "b"),)], [{"a": "out"}, {"b": "in"}]),
    "concatenation": ([(("a",),), (("b",), ("c",), ("b",))], [{"a": "out"}, {"b": "in", "c": "in"}]),
    "two groups on one axis": ([(("a", "b"),), ((3,),)], [{"a": "out", "b": "out"}, {}]),
    "fused qkv per head": ([(("a", (("b",), ("c",), (2,))),), ((3,),)], [{"a": "out", "b": "out", "c": "out"}, {}]),
    "positional embedding with two out axes": ([(("a",),), (("b",),)], [{"a": "out"}, {"b": "out"}]),
    "LayerNorm over C x H x W": ([(("a",),), ((2,),), ((3,),)], [{"a": "elementwise"}, {}, {}]),
    "a query that is only read": ([(("a",),)], [{"a": "in"}]),
    "convolution": ([(("a",),), (("b",),), ((3,),), ((3,),)], [{"a": "out"}, {"b": "in"}, {}, {}]),
    "square": ([(("a",),), (("a",),)], [{"a": "out"}, {"a": "in"}]),
}


@pytest.mark.parametrize("kind", ["dense", "selection", "weighted", "mixed"])
@pytest.mark.parametrize("case", CASES)
def test_the_formula_against_explicit_matrices(case: str, kind: str) -> None:
    shape, roles = CASES[case]
    generator = torch.Generator().manual_seed(0)
    graphs = [graph_of(shape, roles, sizes) for sizes in SIZES]
    kinds = {"a": "dense", "b": "weighted", "c": "selection"} if kind == "mixed" else dict.fromkeys("abc", kind)
    maps = {
        g: tuple(
            NeuronMap(
                random_mixing(kinds[g], FUSED[g], sizes[g], generator),
                random_mixing(kinds[g], FUSED[g], sizes[g], generator),
            )
            for sizes in SIZES
        )
        for g in "abc"
    }
    plan = FusionPlan("test", tuple(graphs), maps, (0.25, 0.75))
    tensors = [torch.randn(g.tensors["w"].shape, generator=generator, dtype=torch.float64) for g in graphs]

    expected = torch.zeros(plan.graph.tensors["w"].shape, dtype=torch.float64)
    for m, (tensor, graph) in enumerate(zip(tensors, graphs, strict=True)):
        for dim, layout in enumerate(graph.tensors["w"].layouts):
            used = {g: maps[g][m].unmerge if r == "in" else maps[g][m].merge for g, r in roles[dim].items()}
            matrix = dense_axis(layout, {g: dense(mixing) for g, mixing in used.items()})
            tensor = torch.tensordot(matrix, tensor, dims=([1], [dim])).movedim(0, dim)
        expected += (0.25, 0.75)[m] * tensor

    out = torch.zeros(plan.graph.tensors["w"].shape, dtype=torch.float64)
    torch.testing.assert_close(fuse_tensor(tensors, plan, "w", out), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("case", "owned"),
    [("linear", True), ("LayerNorm over C x H x W", True), ("a query that is only read", False)],
)
def test_owned_neurons_enter_unscaled_where_they_are_made(case: str, owned: bool) -> None:
    shape, roles = CASES[case]
    graph = graph_of(shape, roles, SIZES[0])
    maps = {g: (NeuronMap.permutation(torch.arange(n)),) * 2 for g, n in SIZES[0].items()}
    plan = FusionPlan("test", (graph, graph), maps, (0.25, 0.75), Owned())
    assert plan.coefficients("w") == ((1.0, 1.0) if owned else (0.25, 0.75))


def test_a_wrong_output_shape_is_refused() -> None:
    graph = graph_of(*CASES["linear"], SIZES[0])
    plan = FusionPlan("test", (graph,), {}, (1.0,))
    with pytest.raises(ValueError, match=r"w: out has shape \(2, 2\), the plan has \(4, 3\)"):
        fuse_tensor([torch.zeros(4, 3, dtype=torch.float64)], plan, "w", torch.zeros(2, 2, dtype=torch.float64))


def test_the_aligned_blocks_of_members_are_there_whatever_they_weigh() -> None:
    """A_m W_m B_m, rows 1 to 3, for a member of weight 0 and a selection that leaves zeros; bfloat16 in float32."""
    graph = graph_of(*CASES["linear"], SIZES[0])
    first = NeuronMap.selection(torch.tensor([0, 2]), torch.tensor([3, 1]), 4, 4)
    second = NeuronMap.permutation(torch.tensor([1, 0, 3, 2]))
    plan = FusionPlan("test", (graph, graph), {"a": (first, second)}, (0.0, 1.0))
    tensors = [torch.randn(4, 3).bfloat16() for _ in range(2)]
    rows = FusedRows(tensors, plan, "w")
    selected, permuted = rows.aligned(1, 3)
    torch.testing.assert_close(selected, torch.stack([torch.zeros(3), tensors[0][1].float()]), rtol=0, atol=0)
    torch.testing.assert_close(permuted, tensors[1][[0, 3]].float(), rtol=0, atol=0)
    torch.testing.assert_close(rows.block(1, 3), tensors[1][[0, 3]], rtol=0, atol=0)
