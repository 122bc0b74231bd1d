"""`combine` and `prune` with several examples, other kinds of outputs, and norms over all channels."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import neurograft as ng
from neurograft.errors import PlanError


def test_several_example_inputs() -> None:
    nets = [nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in "ab"]
    examples = [torch.randn(4, 5), torch.randn(1, 5)]
    assert ng.combine(nets, examples)[0].out_features == 16
    assert ng.prune(nets[0], examples, 0.5)[0].out_features == 4


@dataclass
class Answer:
    scores: Tensor


class Answering(nn.Module):
    def __init__(self, squashed: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
        self.squashed = squashed

    def forward(self, x: Tensor) -> Answer:
        y = self.net(x)
        return Answer(y.tanh() if self.squashed else y)


def test_outputs_in_a_dataclass_are_compared() -> None:
    x = torch.randn(4, 5)
    nets = [Answering(False) for _ in "ab"]
    torch.testing.assert_close(ng.combine(nets, x)(x).scores, (nets[0](x).scores + nets[1](x).scores) / 2)
    with pytest.raises(
        PlanError, match=r"what net\.2\..* makes goes through tanh in the network itself, which is not linear"
    ):
        ng.combine([Answering(True) for _ in "ab"], x)


def test_a_group_norm_of_one_group_works_per_member() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6).double()

    def net() -> nn.Module:
        layers = nn.Conv2d(3, 6, 3), nn.GroupNorm(1, 6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 3)
        return nn.Sequential(*layers).double()

    nets = [net() for _ in range(3)]
    wide = ng.combine(nets, x)
    torch.testing.assert_close(wide(x), torch.stack([one(x) for one in nets]).mean(0))
    pruned, fused = ng.prune(wide, x, 2 / 3), ng.fuse(nets, x, recover=None)
    torch.testing.assert_close(pruned(x), fused(x))
    assert isinstance(pruned[1], nn.GroupNorm)
    assert pruned[1].num_channels == 6


class Behind(nn.Module):
    """An MLP with something behind its last layer."""

    def __init__(self, after: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.after = nn.Linear(4, 6), nn.Linear(6, 4), after
        self.register_buffer("mean", torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.b(self.a(x - self.mean).relu()), x)


SQUASHING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "clamp": lambda y, x: y.clamp(-1, 1),
    "relu": lambda y, x: (y + 100).relu(),
    "hardtanh": lambda y, x: nn.functional.hardtanh(y, -50, 50),
    "abs": lambda y, x: (y + 100).abs(),
    "round": lambda y, x: y + (0 * y).round(),
    "minimum": lambda y, x: torch.minimum(y, torch.full_like(y, 50.0)),
    "where": lambda y, x: torch.where(y > 50, x, y),
    "max_pool": lambda y, x: nn.functional.max_pool1d(y[:, None], 1)[:, 0],
    "product": lambda y, x: y + 1e-9 * y * y,
    "quotient": lambda y, x: y + 1e-12 / (y + 100),
    "norm": lambda y, x: y * (1 + 1e-9 * y.norm()),
    "in_place": lambda y, x: y.clone().clamp_(-50, 50),
    "written": lambda y, x: torch.zeros(5, 4).copy_(y).clamp_(-50, 50),
    "residual_clamp": lambda y, x: (x + y).clamp(-50, 50),
}


@pytest.mark.parametrize("kind", SQUASHING)
def test_what_is_not_linear_behind_the_last_layer_is_refused_whatever_the_inputs_are(kind: str) -> None:
    nets = [Behind(SQUASHING[kind]) for _ in "ab"]
    with pytest.raises(PlanError, match=r"what b\.(bias|weight) makes (goes through|meets other values)"):
        ng.combine(nets, 1e-3 * torch.randn(5, 4))


LINEAR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "residual": lambda y, x: x + y,
    "denoiser": lambda y, x: x - y,
    "scaled_residual": lambda y, x: 0.5 * x + y / 3 - 2,
    "gated_by_the_input": lambda y, x: x.sigmoid() * y + x.relu(),
    "pooled": lambda y, x: nn.functional.avg_pool1d((y + x)[:, None], 2)[:, 0],
    "masked": lambda y, x: torch.where(x > 0, y, x).masked_fill(x > 1, 3.0),
    "glued": lambda y, x: torch.cat([y[:, ::2], x, y.flip(1)], 1),
    "written": lambda y, x: torch.zeros(5, 4).copy_(y),
    "blurred": lambda y, x: nn.functional.conv1d(y[:, None], torch.ones(1, 1, 3)).flatten(1),
    "transformed": lambda y, x: torch.fft.rfft(y).real,
    "summed": lambda y, x: (y @ torch.arange(8.0).reshape(4, 2)).cumsum(1) + x.mean(),
    "cast": lambda y, x: y.double().float(),
}


@pytest.mark.parametrize("weights", [None, [1, 3]])
@pytest.mark.parametrize("kind", LINEAR)
def test_affine_ops_behind_the_last_layer_keep_the_average(kind: str, weights: list[float] | None) -> None:
    nets = [Behind(LINEAR[kind]).double() if kind != "cast" else Behind(LINEAR[kind]) for _ in "ab"]
    dtype = torch.float32 if kind in ("cast", "written", "blurred", "summed") else torch.float64
    nets = [net.to(dtype) for net in nets]
    x = torch.randn(5, 4, dtype=dtype)
    wide = ng.combine(nets, x, weights)
    assert wide.a.out_features == 12
    first, second = (0.5, 0.5) if weights is None else (0.25, 0.75)
    big = 100 * torch.randn(5, 4, dtype=dtype)
    for given in (x, big):
        torch.testing.assert_close(wide(given), first * nets[0](given) + second * nets[1](given))


class Denoiser(nn.Module):
    """x - noise(x), as denoisers are built; the streams of deeper ones would meet inside."""

    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()
        )
        self.last, self.deep = nn.Conv2d(6, 1, 3, padding=1), deep

    def forward(self, x: Tensor) -> Tensor:
        x = x - self.last(self.layers(x))
        return x - self.last(self.layers(x)) if self.deep else x


def test_a_global_residual_has_the_exact_average() -> None:
    nets, x = [Denoiser(False).double().eval() for _ in range(3)], torch.randn(2, 1, 6, 6, dtype=torch.double)
    wide = ng.combine(nets, x)
    assert wide.last.in_channels == 18
    torch.testing.assert_close(wide(x), torch.stack([net(x) for net in nets]).mean(0), rtol=1e-12, atol=1e-12)
    with pytest.raises(PlanError, match=r"what last\.bias makes meets other values of the members in convolution"):
        ng.combine([Denoiser(True).double().eval() for _ in range(2)], x)


def test_what_all_members_share_inside_is_told() -> None:
    class Gained(Behind):
        def __init__(self) -> None:
            super().__init__(lambda y, x: y)
            self.gain = nn.Parameter(torch.rand(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x - self.mean).relu() * self.gain)

    nets, x = [Gained() for _ in "ab"], torch.randn(5, 4)
    with pytest.raises(PlanError, match="gain is one for all units in mul"):
        ng.combine(nets, x)
    nets[1].gain.data.copy_(nets[0].gain)
    torch.testing.assert_close(ng.combine(nets, x)(x), ng.Ensemble(nets)(x))
