"""Corners of weights, quotas and fixed patterns."""

from typing import Any

import pytest
import torch
from tests.fusion import planned
from torch import nn

import neurograft as ng
from neurograft.errors import OptionError
from neurograft.tracing.graph import FixedReason

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double()


def mlps(count: int = 2) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double() for _ in range(count)]


@pytest.mark.parametrize("options", [{"quota": [0, 1]}, {"fraction": 1.0}, {"quota": [0, 1, 0]}])
def test_all_neurons_from_one_member_are_that_member(options: dict[str, Any]) -> None:
    nets = mlps(len(options.get("quota", "ab")))
    torch.testing.assert_close(planned(nets, X, **options)(X), nets[1](X))


def test_a_fraction_is_a_quota_of_two() -> None:
    nets = mlps()
    torch.testing.assert_close(ng.fuse(nets, X, fraction=0.25)(X), ng.fuse(nets, X, quota=[3, 1])(X))


@pytest.mark.parametrize("method", ["average", "permutation", "optimal_transport"])
def test_a_member_of_all_the_weight_is_the_fused_network(method: str) -> None:
    nets = mlps()
    torch.testing.assert_close(planned(nets, X, method, weights=[0, 1])(X), nets[1](X))


def test_transplanting_neurons_that_nobody_weighs_is_warned_of() -> None:
    nets = mlps()
    assert any("member 0 has weight 0" in note for note in ng.plan(nets, X, weights=[0, 1]).warnings)
    assert not ng.plan(nets, X, weights=[0, 1], quota=[0, 1]).warnings


def test_a_tied_reader_without_a_norm_is_warned_of() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code = nn.Linear(5, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.code(x).relu() @ self.code.weight

    nets = [Tied().double() for _ in "ab"]
    assert any("code.weight makes" in note and "sum" in note for note in ng.plan(nets, X).warnings)
    assert not ng.plan(nets, X, "average").warnings[1:]


def test_fixed_patterns_count_beside_a_given_graph() -> None:
    nets = mlps()
    graph = ng.trace(nets[0], X)
    assert ng.plan(nets, X, graph=graph, fixed=["0.weight"]).sizes == {}
    assert ng.prune(nets[0], X, 0.5, graph=graph, fixed=["0.weight"])[0].out_features == 8
    assert graph.fixing(["0.bias"])["0.weight:0"].reason is FixedReason.ASKED
    with pytest.raises(OptionError, match=r"fixed='0.weigth' matches no parameter"):
        ng.plan(nets, X, graph=graph, fixed=["0.weigth"])


def test_whole_numbers_as_parameters() -> None:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)
            self.order = nn.Parameter(torch.tensor([2, 0, 1]), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)[:, self.order]

    fused = ng.fuse([Chosen().double() for _ in "ab"], X)
    assert fused.order.tolist() == [2, 0, 1]
    assert not fused.order.requires_grad


def test_masks_that_differ_between_members_are_warned_of() -> None:
    class Masked(nn.Module):
        def __init__(self, places: list[int]) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)
            self.register_buffer("places", torch.tensor(places))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x[:, self.places])

    a, b = Masked([0, 1, 2, 3, 4]).double(), Masked([4, 1, 2, 3, 0]).double()
    assert any("'places'" in note and "member 0's" in note for note in ng.plan([a, b], X).warnings)
    assert not ng.plan([a, a], X).warnings
