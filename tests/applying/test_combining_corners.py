"""`combine` and `prune` with several examples, other kinds of outputs, and norms over all channels."""

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
    with pytest.raises(PlanError, match="away from the members' average"):
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
