"""Heads: averaged, or kept side by side on the fused trunk."""

import copy
from pathlib import Path

import pytest
import torch
from tests.fusion import planned
from tests.networks import MLP, VGG, build, example
from torch import Tensor, nn

import neurograft as ng
from neurograft.errors import MembersDiffer, OptionError, PlanError
from neurograft.plans.saving import SavedPlan, load_plan, save_plan


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def members_with_labels(*labels: int, bias: bool = True) -> list[nn.Module]:
    found = []
    for seed, count in enumerate(labels):
        torch.manual_seed(seed)
        found.append(MLP(12, 16, 14, count, bias=bias).double().eval())
    return found


X = torch.randn(5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_members_with_different_labels_keep_their_heads() -> None:
    members = members_with_labels(4, 7, 3)
    plan = ng.plan(members, X, heads="keep")
    fused = ng.apply(plan, members)
    assert fused(X).shape == (5, 14)
    assert fused.layers[-1].out_features == 14
    assert plan.details["heads"] == {"layers.2.weight:0": ((0, 4), (4, 11), (11, 14))}
    assert [net.layers[-1].out_features for net in members] == [4, 7, 3]


def test_every_head_reads_what_is_left_of_its_own_member() -> None:
    members = members_with_labels(4, 7)
    plan = ng.plan(members, X, heads="keep")
    fused = ng.apply(plan, members)
    hidden = fused.layers[1](fused.layers[0](X).relu()).relu()
    for m, outputs in enumerate(fused(X).split([4, 7], 1)):
        own = plan.maps["layers.1.weight:0"][m].unmerge.dense().double()
        expected = nn.functional.linear(hidden @ own, members[m].layers[2].weight, members[m].layers[2].bias)
        torch.testing.assert_close(outputs, expected)


def test_the_whole_combined_network_says_what_every_member_says() -> None:
    members = members_with_labels(4, 7)
    fused = planned(members, X, ratio=0, heads="keep")
    torch.testing.assert_close(fused(X), torch.cat([net(X) for net in members], 1))


@pytest.mark.parametrize("method", ["average", "transplant", "permutation", "optimal_transport"])
def test_a_copy_with_another_head_shares_the_trunk_exactly(method: str) -> None:
    first, second = members_with_labels(4, 7)
    other = copy.deepcopy(second)
    other.layers[0], other.layers[1] = copy.deepcopy(first.layers[0]), copy.deepcopy(first.layers[1])
    options = {"diversity": True} if method == "transplant" else {}
    fused = planned([first, other], X, method, heads="keep", **options)
    torch.testing.assert_close(fused(X), torch.cat([first(X), other(X)], 1))


def test_heads_of_convolutional_networks_are_kept() -> None:
    members = [build("vgg", seed) for seed in range(2)]
    x = example("vgg")
    fused = planned(members, x, heads="keep", ratio=0)
    assert isinstance(fused, VGG)
    torch.testing.assert_close(fused(x), torch.cat([net(x) for net in members], 1))


def test_several_heads_are_all_kept() -> None:
    members = [build("two_inputs", seed) for seed in range(2)]
    x = example("two_inputs")
    fused = planned(members, x, heads="keep", ratio=0)
    for i in range(2):
        torch.testing.assert_close(fused(**x)[i], torch.cat([net(**x)[i] for net in members], 1))


def test_different_labels_without_keeping_heads_are_refused() -> None:
    with pytest.raises(MembersDiffer, match='for different label sets use heads="keep"'):
        ng.plan(members_with_labels(4, 7), X)


def test_outputs_that_an_op_works_over_cannot_stand_side_by_side() -> None:
    nets = [nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3), nn.LogSoftmax(-1)) for _ in "ab"]
    with pytest.raises(PlanError, match="_log_softmax .* works over all of them at once"):
        ng.plan(nets, X.float(), heads="keep")


def test_a_network_whose_outputs_are_its_neurons_has_no_head() -> None:
    members = [build("tied", seed) for seed in range(2)]
    with pytest.raises(PlanError, match='heads="keep" needs outputs that a layer makes'):
        ng.plan(members, example("tied"), heads="keep")


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(OptionError, match="heads='kept' is not known; did you mean 'keep'"):
        ng.plan(members_with_labels(4, 4), X, heads="kept")


def test_averaging_heads_is_the_default() -> None:
    members = members_with_labels(4, 4)
    left: Tensor = planned(members, X)(X)
    assert torch.equal(left, planned(members, X, heads="average")(X))


def test_a_plan_with_kept_heads_survives_saving(tmp_path: Path) -> None:
    members = members_with_labels(4, 7)
    plan = ng.plan(members, X, heads="keep", diversity=True)
    save_plan(SavedPlan(plan), tmp_path / "plan.safetensors")
    again = load_plan(tmp_path / "plan.safetensors").plan
    assert again.details["heads"] == plan.details["heads"]
    assert torch.equal(ng.apply(again, members)(X), ng.apply(plan, members)(X))
