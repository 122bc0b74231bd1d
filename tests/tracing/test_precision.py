"""Networks that compute in less precision than they return: rounding is no movement, and movement no rounding."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import neurograft as ng
from neurograft.tracing.bench import Bench, largest_change


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))


class Autocast(nn.Module):
    """Layers under bfloat16, a result in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = layers()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.layers(x).float()


def inputs() -> Tensor:
    return torch.randn(16, 8, generator=torch.Generator().manual_seed(1))


def prepared() -> nn.Module:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    model: nn.Module = accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare(layers())
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    return model


@pytest.mark.parametrize("make", [Autocast, prepared])
def test_autocast_inside_is_rounding(make: type[nn.Module]) -> None:
    model, x = make(), inputs()
    assert model(x).dtype == torch.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = ng.trace(model, x)
    assert [group.size for group in graph.free] == [32, 32]
    assert ng.verify(model, graph, x).tolerance == 0.1
    # the copy that is proven is what runs
    bench = Bench(model, (x,), graph.outputs, 0)
    halved = {name: tensor / 2 for name, tensor in bench.original.items()}
    assert largest_change(bench.run({}), bench.run(halved)) > 0.5


def freed(graph: ng.NeuronGraph, name: str) -> ng.NeuronGraph:
    """The graph with a fixed group declared free."""
    groups = tuple(replace(group, reason=None) if group.name == name else group for group in graph)
    return replace(graph, groups=groups)


def test_autocast_inside_is_no_excuse() -> None:
    model, x = Autocast(), inputs()
    proof = ng.verify(model, freed(ng.trace(model, x), "layers.4.weight:0"), x)
    assert not proof.passed
    assert proof.guilty == ("layers.4.weight:0",)


def test_weights_cast_before_are_not_those_of_the_proof() -> None:
    model, x = layers(), inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
        graph = ng.trace(model, x)
        assert [group.size for group in graph.free] == [32, 32]
        assert ng.verify(model, freed(graph, "4.weight:0"), x).guilty == ("4.weight:0",)
        assert torch.is_autocast_cache_enabled()
