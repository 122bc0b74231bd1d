"""A norm of parameters makes a weight where activations meet its result as one (NFNets), and is in use elsewhere."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import neurograft as ng
from neurograft.tracing.observing import ObservedOp, observe
from tests.tracing.test_checklist import others, roughened


class ByBatchNorm(nn.Conv2d):
    """timm's ScaledStdConv2d: all rows of the weight at once, each with a gain."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))

    def standardised(self) -> Tensor:
        rows, gain = self.weight.reshape(1, self.out_channels, -1), (self.gain * 0.3).view(-1)
        return F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0).reshape_as(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.standardised(), self.bias)


class ByGroupNorm(ByBatchNorm):
    def standardised(self) -> Tensor:
        rows = self.weight.flatten(1)[None]
        return F.group_norm(rows, self.out_channels, self.gain.flatten()).reshape_as(self.weight)


class Normaliserless(nn.Module):
    def __init__(self, kind: type[ByBatchNorm]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = kind(3, 8), kind(8, 8), kind(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.a(x))
        return self.head(F.gelu(self.c(x + self.b(x))).mean((2, 3)))


@pytest.mark.parametrize("kind", [ByBatchNorm, ByGroupNorm])
def test_standardised_weights_are_weights(kind: type[ByBatchNorm]) -> None:
    torch.manual_seed(0)
    model, x = roughened(Normaliserless(kind)), torch.randn(2, 3, 6, 6)
    graph = ng.trace(model, x, strict=True)
    assert {group.name: group.size for group in graph.free} == {"a.weight:0": 8, "c.weight:0": 6}
    roles = {(slot.tensor, slot.dim): slot.role for slot in graph["a.weight:0"].slots}
    assert [roles["a.weight", 0], roles["a.gain", 0], roles["b.weight", 1], roles["c.weight", 1]] == [
        *("out", "out", "in", "in")
    ]
    assert graph.tensors["b.weight"].curved
    proof = ng.verify(model, graph, x, seed=4, deep=True)
    assert proof.passed, str(proof)
    assert ng.verify(model, graph, others(x), seed=5).passed


def test_standardised_weights_are_seen_in_use() -> None:
    model, x = roughened(Normaliserless(ByBatchNorm)), torch.randn(2, 3, 6, 6)
    graph = ng.trace(model, x)
    seen = []

    class Noting:
        def before(self, step: ObservedOp) -> None:
            seen.extend([step.reading.key] if step.reading else [])

        def after(self, step: ObservedOp, result: object) -> None:
            pass

    with torch.no_grad(), observe(model, graph, Noting()):
        model(x)
    assert seen == [(use.tensor, use.nth) for use in graph.uses]
    assert [tensor for tensor, _ in seen] == ["a.weight", "b.weight", "c.weight", "head.weight"]


def test_a_permuted_copy_is_found_again() -> None:
    model, x = roughened(Normaliserless(ByBatchNorm).double()), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    graph = ng.trace(model, x)
    other = ng.permute(model, graph, {"a.weight:0": torch.randperm(8), "c.weight:0": torch.randperm(6)})
    fused = ng.fuse([model, other], x, method="permutation")
    torch.testing.assert_close(fused(x), model(x))


class Latents(nn.Module):
    """Learned queries go through a norm and ask the inputs: they are activations."""

    def __init__(self) -> None:
        super().__init__()
        self.latents, self.norm = nn.Parameter(torch.randn(4, 8)), nn.LayerNorm(8)
        self.query, self.key, self.value, self.head = (
            nn.Linear(8, 8),
            nn.Linear(5, 8),
            nn.Linear(5, 6),
            nn.Linear(6, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        asked = self.query(self.norm(self.latents))
        share = torch.einsum("qd,bkd->bqk", asked, self.key(x)).softmax(-1)
        return self.head((share @ self.value(x)).mean(1))


def test_learned_queries_behind_a_norm_stay_activations() -> None:
    model, x = roughened(Latents()), torch.randn(2, 7, 5)
    graph = ng.trace(model, x, strict=True)
    assert "norm.weight" in [use.tensor for use in graph.uses]
    assert graph.products == ()
    assert ng.verify(model, graph, others(x), seed=5, deep=True).passed
