"""Members are checked against each other before any work is done."""

from types import SimpleNamespace

import pytest
import torch
from tests.networks import MLP, NETWORKS, build, example
from torch import Tensor, nn

import neurograft as ng
from neurograft.errors import BadWeights, MembersDiffer, PlanError
from neurograft.members.checks import check_finite, check_member_weights, check_models, check_names
from neurograft.members.settings import differing_settings
from neurograft.members.states import state_of


def test_a_state_shares_the_models_memory_and_holds_ties_once() -> None:
    net = build("tied")
    state = state_of(net)
    assert "head.weight" not in state
    assert state["embed.weight"].data_ptr() == net.embed.weight.data_ptr()
    assert not any(tensor.requires_grad for tensor in state.values())


def test_a_state_holds_persistent_buffers_only() -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("kept", torch.ones(1))
    net.register_buffer("passing", torch.ones(1), persistent=False)
    assert set(state_of(net)) == {"weight", "bias", "kept"}


@pytest.mark.parametrize(
    ("models", "error", "message"),
    [
        (nn.Linear(2, 2), PlanError, "models must be a list of networks, not Linear"),
        ([nn.Linear(2, 2)], PlanError, "fusing needs at least two members, got 1"),
        ([], PlanError, "fusing needs at least two members, got 0"),
        ([nn.Linear(2, 2), {}], PlanError, r"models\[1\] is a dict, not a torch.nn.Module"),
        ([nn.Linear(2, 2), nn.Identity()], MembersDiffer, r"models\[1\] is a Identity but models\[0\] a Linear"),
    ],
)
def test_what_is_no_list_of_equals_is_refused(models: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_models(models)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": torch.ones(2)}, r"models\[1\] lacks 'b'"),
        ({"a": torch.ones(2), "b": torch.ones(2, 2), "c": torch.ones(1), "d": torch.ones(1)}, "'c', .* and 1 more"),
        ({"a": torch.ones(2, 1), "b": torch.ones(2, 2)}, r"a has shape \(2, 1\) in models\[1\] but \(2,\) in models"),
        ({"a": torch.ones(2, dtype=torch.long), "b": torch.ones(2, 2)}, r"a is torch.int64 in models\[1\] but"),
    ],
)
def test_members_hold_the_same_tensors(state: dict, message: str) -> None:
    with pytest.raises(MembersDiffer, match=message):
        check_names([{"a": torch.ones(2), "b": torch.ones(2, 2)}, state])


def test_numbers_that_are_none_are_counted() -> None:
    bad = torch.ones(3, 3)
    bad[0, 1], bad[2, 2] = float("nan"), float("inf")
    with pytest.raises(BadWeights, match=r"w of models\[4\] holds 2 NaN or infinite of 9 entries"):
        check_finite("w", bad, "models[4]")
    check_finite("w", torch.full((3,), 3e38), "models[0]")
    check_finite("n", torch.tensor([1, 2]), "models[0]")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1], "weights has 1 entries for 2 members"),
        ([1, -1], "weights must be finite, not negative and not all zero"),
        ([0, 0], "weights must be finite, not negative and not all zero"),
        ([1, float("nan")], "weights must be finite, not negative and not all zero"),
        ([1, float("inf")], "weights must be finite, not negative and not all zero"),
        ([1, 10**400], "weights must be finite, not negative and not all zero"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(BadWeights, match=message):
        check_member_weights(weights, 2)


def test_weights_sum_to_one() -> None:
    assert check_member_weights([2, 6], 2) == (0.25, 0.75)
    assert check_member_weights([1e308, 1e308], 2) == (0.5, 0.5)
    assert check_member_weights([5e-324, 1.5e-323], 2) == (0.25, 0.75)
    assert check_member_weights([0, 5e-324], 2) == (0.0, 1.0)
    assert check_member_weights([1e-320, 1e300], 2) == (0.0, 1.0)
    assert check_member_weights(None, 2) is None


def test_networks_without_values_are_refused() -> None:
    full, x = MLP(12, 16, 10), example("mlp")
    with torch.device("meta"):
        empty = MLP(12, 16, 10)
    message = r"layers.0.weight of models\[1\] and 1 more tensor on the meta device: shapes without values; load the"
    for act in (ng.plan, ng.fuse, ng.combine):
        with pytest.raises(PlanError, match=message):
            act([full, empty], x)
    with pytest.raises(PlanError, match=message):
        ng.apply(ng.plan([full, full], x), [full, empty])
    with pytest.raises(PlanError, match="layers.0.weight of the model and 1 more tensor on the meta device"):
        ng.prune(empty, x.to("meta"))


class Configured(nn.Module):
    """A network whose function depends on settings that no tensor shows."""

    def __init__(self, width: int = 8, rate: float = 0.1, act: object = torch.relu, stride: int = 1, **config: object):
        super().__init__()
        self.act, self.config = act, SimpleNamespace(hidden=width, **config)
        self.conv, self.drop = nn.Conv1d(2, width, 3, stride, padding=1), nn.Dropout(rate)
        self.head = nn.Linear(width, 3)
        self.anything = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.act(self.conv(x))).mean(-1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0.5}, "drop.p is 0.1 in models[0] but 0.5 in models[1]: the fused network is built like models[0]"),
        ({"act": torch.tanh}, "act is relu in models[0] but tanh in models[1]"),
        ({"act": nn.ReLU()}, "act is relu in models[0] but ReLU in models[1]"),
        ({"stride": 2}, "conv.stride is (1,) in models[0] but (2,) in models[1]"),
        ({"eps": 1e-3}, "config.eps is absent in models[0] but 0.001 in models[1]"),
        ({"rate": 0.2, "act": torch.tanh, "stride": 2, "eps": 1.0}, "and 1 more)"),
        ({"width": 12, "rate": 0.2}, "drop.p is 0.1 in models[0] but 0.2 in models[1]: the"),
    ],
)
def test_settings_that_differ_are_named(settings: dict, message: str) -> None:
    members, x = [Configured().eval(), Configured(**settings).eval()], torch.randn(2, 2, 6)
    notes = [note for note in ng.plan(members, x).warnings if "built like" in note]
    assert len(notes) == 1
    assert message in notes[0]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "unused"])
def test_members_of_one_make_have_no_differing_settings(name: str) -> None:
    assert differing_settings([build(name, 0), build(name, 1), build(name, 2)]) == ()


def test_widths_are_no_differing_settings() -> None:
    assert differing_settings([Configured(8), Configured(12)]) == ()
    assert differing_settings([Configured(8, name_or_path="a"), Configured(8, name_or_path="b")]) == ()
    assert differing_settings([Configured(8, act=lambda x: x), Configured(8, act=lambda y: y + 0)]) != ()


def test_inputs_and_outputs_of_other_sizes_are_refused() -> None:
    with pytest.raises(MembersDiffer, match=r"models\[1\] cannot be traced where models\[0\] can"):
        ng.plan([MLP(12, 16, 10), MLP(11, 16, 10)], example("mlp"))
    with pytest.raises(MembersDiffer, match="along an axis that must not change"):
        ng.plan([MLP(12, 16, 10), MLP(12, 16, 9)], example("mlp"))


def test_architectures_that_differ_in_more_than_widths_are_refused() -> None:
    deeper = MLP(12, 16, 14, 10)
    with pytest.raises(MembersDiffer, match=r"models\[1\] has 'layers.2.weight', which models\[0\] lacks"):
        ng.plan([MLP(12, 16, 10), deeper], example("mlp"))


@pytest.mark.parametrize("size", [1e308, 5e-324])
def test_members_of_extreme_weights_count_as_they_should(size: float) -> None:
    nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2)]
    x = torch.randn(5, 4)
    for wide in (ng.combine(nets, x, weights=[size, size]), ng.combine(nets, x)):
        torch.testing.assert_close(wide(x), ng.Ensemble(nets)(x))
    equal, extreme = (ng.fuse(nets, x, "average", weights={"*": [own, own]}) for own in (1.0, size))
    assert all(torch.equal(a, b) for a, b in zip(equal.parameters(), extreme.parameters(), strict=True))
    assert bool(equal[0].weight.any())
