"""Weights that are products of parameters (low rank, LoRA): what one factor makes, the other reads."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import neurograft as ng
from neurograft.tracing.observing import ObservedOp, observe
from tests.fusion import planned

pytestmark = pytest.mark.filterwarnings("ignore:.* are factors of a product")


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


class LowRank(nn.Module):
    """A hidden layer whose weight is U @ V, and an output layer whose weight is P @ Q."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.U, self.V, self.P, self.Q = parameter(6, 4), parameter(4, 8), parameter(3, 2), parameter(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(self.stem(x).relu(), self.U @ self.V).relu()
        return F.linear(h, self.P @ self.Q)


class Adapted(nn.Module):
    """A linear layer with an adapter of low rank, merged before it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer = nn.Linear(5, 8), nn.Linear(8, 3)
        self.up, self.down = parameter(3, 4), parameter(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.stem(x).relu(), self.layer.weight + 0.5 * (self.up @ self.down), self.layer.bias)


class Three(nn.Module):
    """The product of three parameters, to the right of what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.a, self.b, self.c = parameter(8, 4), parameter(4, 6), parameter(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x).relu() @ (self.a @ self.b @ self.c)


class Stacked(nn.Module):
    """A stack of low-rank weights, one per head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(6, 3)
        self.a, self.b = parameter(2, 8, 4), parameter(2, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.bmm(self.a, self.b).transpose(0, 1).reshape(8, 6)
        return self.head((self.stem(x).relu() @ weight).relu())


class Asking(nn.Module):
    """Learned queries that go through a layer and ask by heads: they are activations, not weights."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.q = parameter(4, 8), nn.Linear(8, 6)
        self.k, self.v, self.o = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q(self.queries).view(1, 4, 2, 3).transpose(1, 2).expand(b, -1, -1, -1)
        k, v = (layer(x).view(b, t, 2, 3).transpose(1, 2) for layer in (self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, 4, 6)).mean(1)


class Added(nn.Module):
    """A position code made by a layer from a parameter, then added to the stream: an activation too."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.layer = parameter(4, 6), nn.Linear(6, 8)
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.stem(x) + self.layer(self.code)).relu().mean(1))


def rows() -> Tensor:
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).double()


def sequences() -> Tensor:
    return torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1)).double()


PRODUCTS: dict[str, tuple[type[nn.Module], dict[str, str]]] = {
    # parameter and dim -> the role that the neurons inside the product play there
    "low_rank": (LowRank, {"U:1": "in", "V:0": "out", "P:1": "in", "Q:0": "out"}),
    "adapted": (Adapted, {"up:1": "in", "down:0": "out"}),
    "three": (Three, {"a:1": "out", "b:0": "in", "b:1": "out", "c:0": "in"}),
    "stacked": (Stacked, {"a:2": "out", "b:1": "in"}),
}


def members(kind: type[nn.Module], count: int = 3) -> list[nn.Module]:
    torch.manual_seed(0)
    return [kind().double().eval() for _ in range(count)]


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_inner_neurons_are_made_and_read_between_parameters(name: str) -> None:
    kind, expected = PRODUCTS[name]
    (model,) = members(kind, 1)
    graph = ng.trace(model, rows())
    found = {f"{slot.tensor}:{slot.dim}": slot.role for group in graph.free for slot in group.slots}
    assert {place: found[place] for place in expected} == expected
    assert not any(group.bilinear for group in graph)
    proof = ng.verify(model, graph, rows(), seed=3, deep=True)
    assert proof.passed, str(proof)


@pytest.mark.parametrize("name", [name for name in PRODUCTS if name != "stacked"])
def test_combined_products_are_the_members_average(name: str) -> None:
    models, x = members(PRODUCTS[name][0]), rows()
    wide = ng.combine(models, x)
    expected = torch.stack([model(x) for model in models]).mean(0)
    assert torch.allclose(wide(x), expected, rtol=1e-12, atol=1e-12)
    fused = ng.fuse(models, x, method="transplant")
    assert torch.allclose(ng.prune(wide, x, ratio=2 / 3)(x), fused(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in PRODUCTS if name != "stacked"])
def test_a_network_transplanted_with_copies_of_itself_is_itself(name: str) -> None:
    (model,) = members(PRODUCTS[name][0], 1)
    fused = planned([model, model], rows(), method="transplant", diversity=True)
    assert torch.allclose(fused(rows()), model(rows()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [Asking, Added])
def test_what_is_asked_with_or_added_is_an_activation(kind: type[nn.Module]) -> None:
    (model,) = members(kind, 1)
    graph = ng.trace(model, sequences())
    assert graph.products == ()
    name, layer = ("queries", "q.weight") if kind is Asking else ("code", "layer.weight")
    # (the queries themselves may change places too, where their answers are averaged)
    (group,) = [g for g in graph.free if any(slot.tensor == name and slot.dim == 1 for slot in g.slots)]
    assert {(slot.tensor, slot.role) for slot in group.slots} == {(name, "out"), (layer, "in")}
    proof = ng.verify(model, graph, sequences(), deep=True)
    assert proof.passed, str(proof)


def test_code_of_positions_runs_side_by_side() -> None:
    models, x = members(Added), sequences()
    expected = torch.stack([model(x) for model in models]).mean(0)
    assert torch.allclose(ng.combine(models, x)(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "inputs"), [(PRODUCTS[n][0], rows) for n in PRODUCTS] + [(Asking, sequences), (Added, sequences)]
)
def test_products_are_seen_in_use(kind: type[nn.Module], inputs: Callable[[], Tensor]) -> None:
    (model,) = members(kind, 1)
    graph = ng.trace(model, inputs())
    seen: list[tuple[str, int]] = []

    class Noting:
        def before(self, step: ObservedOp) -> None:
            if step.reading is not None:
                seen.append(step.reading.key)

        def after(self, step: ObservedOp, result: Tensor) -> None:
            if step.reading is not None and step.reading.use is not None:
                assert len(step.reading.use.output) == result.dim()

    with torch.no_grad(), observe(model, graph, Noting()):
        model(inputs())
    assert seen == [(use.tensor, use.nth) for use in graph.uses]
