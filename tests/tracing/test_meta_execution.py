"""On the meta device the graph is the same, no value of a weight is needed, and no answer is made up."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import neurograft as ng
from neurograft.errors import TraceError
from neurograft.tracing.graph import NeuronGraph
from neurograft.tracing.recording import record
from tests.networks import NETWORKS, build, example
from tests.tracing.huggingface import HUGGINGFACE, made


def described(graph: NeuronGraph) -> list[tuple[object, ...]]:
    """All that must agree."""
    return [(group.name, group.fixed, group.slots, group.inside) for group in graph]


# spectral norm runs its power iteration when it is made, which needs values
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "weight_norm"])
def test_small_networks_give_the_same_graph(name: str) -> None:
    with torch.device("meta"):
        model = NETWORKS[name].make()
    graph = ng.trace(model, example(name))
    assert graph.proven == "unproven (meta device)"
    assert described(graph) == described(ng.trace(build(name), example(name), verify=False))


FAST = {"resnet", "swin", "bert", "llama", "mixtral", "wav2vec2", "gpt2", "falcon"}


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in HUGGINGFACE])
def test_huggingface_networks_give_the_same_graph(name: str) -> None:
    pytest.importorskip("transformers")
    real, inputs = made(name)
    with torch.device("meta"):
        model, _ = HUGGINGFACE[name]()
    graph = ng.trace(model.eval(), inputs)
    assert described(graph) == described(ng.trace(real, inputs, verify=False))


class Asks(nn.Module):
    """Asks for a value: of its mask, or of an activation."""

    def __init__(self, of_mask: bool) -> None:
        super().__init__()
        self.a, self.b, self.of_mask = nn.Linear(3, 5, device="meta"), nn.Linear(5, 2, device="meta"), of_mask

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.a(x)
        asked = mask.any() if self.of_mask else (h > 0).any()
        return self.b(h.relu() if asked else h)


def test_a_question_that_no_weight_decides_is_answered() -> None:
    mask = torch.tensor([True, False])
    names = [op.name for op in record(Asks(of_mask=True), (torch.randn(2, 3), mask)).ops]
    assert "relu" in names
    names = [op.name for op in record(Asks(of_mask=True), (torch.randn(2, 3), mask & False)).ops]
    assert "relu" not in names


@pytest.mark.parametrize(
    "take",
    [
        lambda h: h[:, [2, 3]],
        lambda h: h[[0, 1]][..., [2, 3]],
        lambda h: h[:, torch.tensor([2, 3], device=h.device)],
        lambda h: h[:, torch.as_tensor([-3, -2], device=h.device)],
    ],
)
def test_numbers_that_python_writes_out_are_known(take: Callable[[Tensor], Tensor]) -> None:
    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(take(self.a(x)).relu())

    real = ng.trace(Takes(), torch.randn(2, 3), verify=False)
    assert real["a.weight:0.1"].size == 2, str(real)
    with torch.device("meta"):
        model = Takes()
    assert described(ng.trace(model, torch.randn(2, 3))) == described(real)


def test_a_question_that_weights_decide_is_an_error() -> None:
    with pytest.raises(TraceError, match="does not run on the example inputs"):
        ng.trace(Asks(of_mask=False), (torch.randn(2, 3), torch.ones(2, dtype=torch.bool)))


def test_what_an_unknown_value_was_written_to_is_unknown() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 1, device="meta")

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(2, 1)
            state[:] = self.a(x)
            return x if state.any() else -x

    with pytest.raises(TraceError, match="does not run on the example inputs"):
        ng.trace(Writes(), torch.randn(2, 3))
