"""Tensors that are made along an axis of which only a part are neurons that move."""

from typing import Any

import pytest
import torch
from tests.fusion import planned
from torch import nn

import neurograft as ng


class OutputsBesideNeurons(nn.Module):
    """One layer makes outputs and hidden neurons; a norm lies along inputs and hidden neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(5, 3 + 8)
        self.norm = nn.BatchNorm1d(5 + 8)
        self.head = nn.Linear(5 + 8, 3)
        nn.init.normal_(self.norm.weight)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, hidden = self.both(x).split([3, self.both.out_features - 3], -1)
        return outputs + self.head(self.norm(torch.cat([x, hidden.relu()], -1)))


def members(count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [OutputsBesideNeurons().double().eval() for _ in range(count)]


@pytest.mark.parametrize("method", ["transplant", "zip"])
def test_what_members_share_beside_their_neurons_is_averaged(method: str) -> None:
    a, b = members(2)
    x = torch.randn(20, 5).double()
    options: dict[str, Any] = {"calibration": [x]} if method == "zip" else {}
    fused = ng.fuse([a, b], x, method, weights=[1, 3], recover=None, **options)
    for name, shared in (("both.weight", 3), ("both.bias", 3), ("norm.weight", 5), ("norm.running_var", 5)):
        left, right, mixed = (net.state_dict()[name][:shared] for net in (a, b, fused))
        torch.testing.assert_close(mixed, left / 4 + right * 3 / 4)


def test_a_network_transplanted_with_its_copy_is_itself() -> None:
    (net,) = members(1)
    x = torch.randn(20, 5).double()
    fused = planned([net, net], x, diversity=True)
    torch.testing.assert_close(fused(x), net(x))


class OutputsBesideNeuronsOnly(nn.Module):
    """As above, without the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(5, 3 + 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, hidden = self.both(x).split([3, self.both.out_features - 3], -1)
        return outputs + self.head(hidden.relu())


@pytest.mark.parametrize("order", ["backward", "joint"])
def test_combining_and_pruning_such_networks_is_transplanting(order: str) -> None:
    torch.manual_seed(0)
    nets = [OutputsBesideNeuronsOnly().double() for _ in range(3)]
    x = torch.randn(20, 5).double()
    wide = ng.combine(nets, x)
    torch.testing.assert_close(wide(x), torch.stack([net(x) for net in nets]).mean(0))
    pruned = ng.prune(wide, x, ratio=2 / 3, order=order)
    for name, tensor in ng.fuse(nets, x, order=order, recover=None).state_dict().items():
        torch.testing.assert_close(pruned.state_dict()[name], tensor)
