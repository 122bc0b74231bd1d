"""plan: what is checked before any work, and what the plan tells."""

import re

import pytest
import torch
from tests.networks import NETWORKS, build
from torch import nn

import neurograft as ng
from neurograft.errors import BadWeights, InputError, MembersDiffer, OptionError, PlanError, Unreached


def pair(name: str = "mlp_bias") -> tuple[list[nn.Module], object]:
    return [build(name, seed) for seed in range(2)], NETWORKS[name].inputs()


def test_an_unknown_method_names_the_closest() -> None:
    models, x = pair()
    with pytest.raises(OptionError, match=re.escape("unknown method 'transplnt'; did you mean 'transplant'?")):
        ng.plan(models, x, method="transplnt")


def test_an_unknown_option_names_the_closest() -> None:
    models, x = pair()
    with pytest.raises(OptionError, match=r"method 'transplant' has no option 'ordre'; did you mean 'order'"):
        ng.plan(models, x, ordre="joint")


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "0", True])
def test_a_seed_outside_its_range(seed: object) -> None:
    models, x = pair()
    for fuse in (ng.plan, ng.fuse):
        with pytest.raises(OptionError, match=r"seed is a whole number from 0 to 2\^63 - 1"):
            fuse(models, x, seed=seed)  # type: ignore[arg-type]


def test_a_method_that_is_no_name() -> None:
    models, x = pair()
    with pytest.raises(OptionError, match="unknown method None; known: average"):
        ng.fuse(models, x, method=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "option"),
    [
        ("transplant", "balance"),
        ("transplant", "diversity"),
        ("optimal_transport", "barycenter"),
        ("optimal_transport", "published"),
    ],
)
def test_switches_are_true_or_false(method: str, option: str) -> None:
    models, x = pair()
    with pytest.raises(OptionError, match=f"{option} is True or False, got 'false'"):
        ng.plan(models, x, method, **{option: "false"})
    with pytest.raises(OptionError, match=f"{option} is True or False, got 1"):
        ng.plan(models, x, method, **{option: 1})


@pytest.mark.parametrize(
    ("method", "option", "value", "message"),
    [
        ("transplant", "ratio", "half", "ratio is a number, got 'half'"),
        ("transplant", "tolerance", [1], r"tolerance is a number, got \[1\]"),
        ("optimal_transport", "reg", "0.1", "reg is a number, got '0.1'"),
        ("permutation", "reference", 0.5, "reference is a whole number, got 0.5"),
    ],
)
def test_numbers_are_numbers(method: str, option: str, value: object, message: str) -> None:
    models, x = pair()
    with pytest.raises(OptionError, match=message):
        ng.plan(models, x, method, **{option: value})


def test_one_member_is_too_few() -> None:
    models, x = pair()
    with pytest.raises(PlanError, match="at least two members, got 1"):
        ng.plan(models[:1], x)
    with pytest.raises(PlanError, match="must be a list of networks, not MLP"):
        ng.plan(models[0], x)  # type: ignore[arg-type]


def test_other_classes_are_named() -> None:
    models, x = pair()
    with pytest.raises(MembersDiffer, match=r"models\[1\] is a Linear but models\[0\] a MLP"):
        ng.plan([models[0], nn.Linear(2, 2)], x)


def test_a_missing_tensor_is_named() -> None:
    models, x = pair()
    models[1].layers[1].bias = None
    with pytest.raises(MembersDiffer, match=r"models\[1\] lacks 'layers.1.bias'"):
        ng.plan(models, x)
    with pytest.raises(MembersDiffer, match=r"models\[1\] has 'layers.1.bias', which models\[0\] lacks"):
        ng.plan(models[::-1], x)


def test_other_shapes_on_fixed_axes_are_named() -> None:
    models, x = pair()
    models[1].layers[2] = nn.Linear(14, 7)
    with pytest.raises(MembersDiffer, match=r"layers.2.weight has 7 positions in models\[1\], 10 in models\[0\]"):
        ng.plan(models, x)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["average", "transplant"])
def test_bad_numbers_are_named(value: float, method: str) -> None:
    models, x = pair()
    with torch.no_grad():
        models[1].layers[0].bias[3] = value
    with pytest.raises(BadWeights, match=r"layers.0.bias of models\[1\] holds 1 NaN or infinite of 16 entries"):
        ng.plan(models, x, method=method)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "1 entries for 2 members"),
        ([1.0, -1.0], "not negative"),
        ([0.0, 0.0], "not all zero"),
        ([float("nan"), 1.0], "finite"),
        ("ab", "weights must be a list of numbers, one per member, got 'ab'"),
        (0.5, "weights must be a list of numbers, one per member, got 0.5"),
    ],
)
def test_member_weights_that_make_no_sense(weights: list[float], message: str) -> None:
    models, x = pair()
    with pytest.raises(BadWeights, match=message):
        ng.plan(models, x, weights=weights)


def test_wrong_example_inputs_say_what_they_should_be() -> None:
    models, _ = pair()
    with pytest.raises(InputError, match=r"tensor, a tuple of arguments or a dict"):
        ng.plan(models, 3.0)  # type: ignore[arg-type]


def test_a_one_shot_calibration_is_refused() -> None:
    models, x = pair()
    with pytest.raises(InputError, match="one-shot generator"):
        ng.plan(models, x, calibration=(batch for batch in [x]))


def test_parameters_beside_moved_neurons_must_be_reached() -> None:
    models, x = pair("unused")
    with pytest.raises(Unreached, match=r"was not reached by the example inputs, but neurons beside it move"):
        ng.plan(models, x)
    plan = ng.plan(models, x, fixed=["idle.*", "spare"])
    fused = ng.apply(plan, models)
    torch.testing.assert_close(fused.spare, (models[0].spare + models[1].spare) / 2)
    assert ng.plan(models, x, method="average").maps == {}


def test_the_plan_prints_shares_and_warns_of_cut_networks() -> None:
    models, x = pair("mlp")
    with torch.no_grad():  # the same function at another scale: layer 0 of member 1 large, layer 1 small
        models[1].layers[0].weight.mul_(30)
        models[1].layers[1].weight.div_(30)
    plan = ng.plan(models, x, order="joint")
    assert plan.shares["layers.0.weight:0"] == (0.0, 1.0)
    text = str(plan)
    assert "layers.0.weight:0" in text
    assert "100%" in text
    assert any("member 1 supplies 100%" in warning and "nearly cut" in warning for warning in plan.warnings)
    assert "nearly cut" in text


def test_graphs_and_plans_are_short_where_python_shows_them() -> None:
    nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in "ab"]
    plan = ng.plan(nets, torch.randn(1, 4))
    assert repr(plan.graphs[0]) == "NeuronGraph(Sequential: 1 free group, 2 fixed)"
    assert repr(plan) == "FusionPlan(transplant of 2 members: 1 group moved)"


def test_the_same_members_give_the_same_plan() -> None:
    models, x = pair("vgg")
    first, second = (ng.plan(models, x, seed=3) for _ in range(2))
    for group, maps in first.maps.items():
        for a, b in zip(maps, second.maps[group], strict=True):
            assert torch.equal(a.merge.source, b.merge.source)  # type: ignore[union-attr]


def test_neurons_contracted_as_they_are_made_are_warned_of() -> None:
    class Towers(nn.Module):
        """How alike two inputs are."""

        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(5, 8), nn.Linear(5, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.left(x) @ self.right(x).t()

    models, x = [Towers(), Towers()], torch.randn(4, 5)
    assert any("left.weight:0 is contracted on both sides" in warning for warning in ng.plan(models, x).warnings)


def test_a_product_of_parameters_is_a_weight_like_any_other() -> None:
    class LowRank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(5, 8)
            self.up, self.down = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.stem(x).relu(), self.up @ self.down)

    plan = ng.plan([LowRank(), LowRank()], torch.randn(4, 5))
    assert set(plan.maps) == {"up:1", "down:1"}
    assert not any("contracted" in warning for warning in plan.warnings)
    # what makes outputs is averaged, what makes neurons is not
    assert plan.coefficients("up") == (0.5, 0.5)
    assert plan.coefficients("down") == (1.0, 1.0)
