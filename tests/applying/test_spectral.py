"""Spectral norm, new and old."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import neurograft as ng
from neurograft.errors import PlanError

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double()


def nets() -> list[nn.Module]:
    torch.manual_seed(0)
    layers = [[nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)] for _ in "ab"]
    return [nn.Sequential(parametrizations.spectral_norm(a), b, c).double().eval() for a, b, c in layers]


def plain(net: nn.Module) -> nn.Module:
    first = nn.Linear(5, 8).double()
    first.load_state_dict({"weight": net[0].weight, "bias": net[0].bias})
    return nn.Sequential(first, nn.ReLU(), copy.deepcopy(net[2]))


@pytest.mark.parametrize("method", ["average", "transplant", "optimal_transport"])
def test_what_acts_under_spectral_norm_is_fused(method: str) -> None:
    members = nets()
    fused = ng.fuse(members, X, method, recover=None)
    torch.testing.assert_close(fused(X), ng.fuse([plain(net) for net in members], X, method, recover=None)(X))
    fused.train()(X)
    fused(X)
    fused.eval()
    torch.testing.assert_close(torch.linalg.matrix_norm(fused[0].weight, 2).item(), 1.0, rtol=0.02, atol=0)


def test_a_network_averaged_with_itself_keeps_its_singular_vectors() -> None:
    net = nets()[0]
    fused = ng.fuse([net, net], X, "average", recover=None)
    torch.testing.assert_close(fused[0].parametrizations.weight[0]._u, net[0].parametrizations.weight[0]._u)
    torch.testing.assert_close(fused(X), net(X))


@pytest.mark.parametrize("old", [torch.nn.utils.spectral_norm, torch.nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_computed_by_old_hooks_are_refused(old: object) -> None:
    members = [nn.Sequential(old(nn.Linear(5, 8)), nn.ReLU(), nn.Linear(8, 3)).double().eval() for _ in "ab"]
    with torch.no_grad(), pytest.raises(PlanError, match=r"0\.weight is computed by a hook of torch\.nn\.utils"):
        ng.plan(members, X, "average")
