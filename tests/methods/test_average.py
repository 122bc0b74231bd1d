"""Averaging: weights per member and per tensor, exclusions, and members that are aligned already."""

import copy

import pytest
import torch
from tests.fusion import planned
from tests.networks import NETWORKS, build, example
from torch import nn

import neurograft as ng
from neurograft.alignment.ancestry import distance_ratio
from neurograft.errors import BadWeights, MembersDiffer, OptionError
from neurograft.members.states import state_of

X = example("mlp_bias")


def related(net: nn.Module, share: float, seed: int = 5) -> nn.Module:
    """The network with noise of `share` of every tensor's spread, as after fine-tuning."""
    other = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += share * (parameter.std() if parameter.numel() > 1 else parameter.abs()) * noise
    return other


@pytest.mark.parametrize("network", ["mlp_bias", "vgg_batch_norm", "resnet", "tied", "attention", "bare"])
def test_every_tensor_is_the_weighted_mean(network: str) -> None:
    members = [build(network, seed) for seed in range(3)]
    fused = planned(members, example(network), "average", weights=[1, 2, 5])
    for name, tensor in fused.state_dict().items():
        if tensor.is_floating_point():
            expected = sum(w * net.state_dict()[name] for w, net in zip((0.125, 0.25, 0.625), members, strict=True))
            torch.testing.assert_close(tensor, expected)


def test_patterns_give_tensors_weights_of_their_own() -> None:
    members = [build("mlp_bias", seed) for seed in range(2)]
    own = {"layers.*.bias": [1, 3], "layers.0.*": [1, 0]}
    plan = ng.plan(members, X, "average", weights=own)
    assert plan.weights == (0.5, 0.5)
    assert plan.options == {"weights": {pattern: tuple(shares) for pattern, shares in own.items()}}
    fused = ng.apply(plan, members).state_dict()
    first, second = (net.state_dict() for net in members)
    torch.testing.assert_close(fused["layers.0.bias"], first["layers.0.bias"])
    torch.testing.assert_close(fused["layers.0.weight"], first["layers.0.weight"])
    torch.testing.assert_close(fused["layers.1.bias"], 0.25 * first["layers.1.bias"] + 0.75 * second["layers.1.bias"])
    torch.testing.assert_close(fused["layers.1.weight"], (first["layers.1.weight"] + second["layers.1.weight"]) / 2)


def test_excluded_tensors_are_member_0s_and_the_plan_says_so() -> None:
    members = [build("vgg_batch_norm", seed) for seed in range(2)]
    plan = ng.plan(members, example("vgg_batch_norm"), "average", exclude=["classifier.*", "*.running_*"])
    fused = ng.apply(plan, members).state_dict()
    taken = plan.details["taken from member 0"]
    assert {"classifier.weight", "classifier.bias"} < set(taken)
    assert sum("running" in name for name in taken) == 6
    for name, tensor in members[0].state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(fused[name], tensor) == (name in taken), name


def test_tensors_that_no_run_reached_obey_patterns_too() -> None:
    members = [build("unused", seed) for seed in range(2)]
    fused = planned(members, example("unused"), "average", exclude=["spare"]).state_dict()
    assert torch.equal(fused["spare"], members[0].state_dict()["spare"])
    torch.testing.assert_close(fused["idle.weight"], sum(net.state_dict()["idle.weight"] for net in members) / 2)


@pytest.mark.parametrize("network", ["mlp", "vgg_batch_norm", "resnet", "attention", "densenet", "mixer"])
def test_children_of_one_ancestor_are_told_from_strangers(network: str) -> None:
    net = build(network, 0)
    child, stranger = related(net, 0.3), build(network, 1)
    graph = ng.trace(net, example(network))
    assert distance_ratio(state_of(net), state_of(child), graph) < 0.2
    assert 0.7 < distance_ratio(state_of(net), state_of(stranger), graph) < 1.3


def test_the_plan_says_when_plain_averaging_will_do() -> None:
    net = build("mlp_bias")
    members = [net, related(net, 0.2), related(net, 0.2, seed=6)]
    assert 'method="average" will do' in str(ng.plan(members, X))
    assert ng.plan(members, X, "average").warnings == ()
    assert 'method="average" will do' not in str(ng.plan([*members, build("mlp_bias", 9)], X))


def test_averaging_strangers_is_warned_of() -> None:
    net = build("mlp_bias")
    plan = ng.plan([net, related(net, 0.2), build("mlp_bias", 8), build("mlp_bias", 9)], X, "average")
    assert len(plan.warnings) == 1
    assert plan.warnings[0].startswith("members 2, 3 are not aligned with member 0")


def test_different_widths_cannot_be_averaged() -> None:
    members = [NETWORKS["mlp"].make(), type(build("mlp"))(12, 20, 14, 10)]
    with pytest.raises(MembersDiffer, match="has 16 / 20 neurons in the members; average needs equal widths"):
        ng.plan(members, X, "average")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"exclude": ["layer.0.*"]}, OptionError, "exclude fits no tensor: 'layer.0.\\*'; did you mean"),
        ({"exclude": "layer.0.*"}, OptionError, "exclude fits no tensor: 'layer.0.\\*'; did you mean"),
        ({"weights": {"nothing": [1, 1]}}, OptionError, "weights fit no tensor: 'nothing'"),
        ({"weights": {"*": [1]}}, BadWeights, "weights\\['\\*'\\] has 1 entries for 2 members"),
        ({"weights": {"*": [1, -1]}}, BadWeights, "weights\\['\\*'\\] must be finite"),
        ({"tensor_weights": {"*": [1, 1]}}, OptionError, "method 'average' has no option 'tensor_weights'"),
        ({"weights": [0, 0]}, BadWeights, "weights must be finite, not negative and not all zero"),
    ],
)
def test_bad_options_are_refused(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ng.plan([build("mlp_bias", 0), build("mlp_bias", 1)], X, "average", **options)
