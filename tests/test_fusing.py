"""`fuse` recovers what suits the network and the data; `Fusion` keeps what was done and of whom the result is."""

import pytest
import torch
from torch import nn

import neurograft as ng
from neurograft.applying import formula
from neurograft.errors import InputError, OptionError
from tests.networks import build, example


def members(name: str) -> list[nn.Module]:
    return [build(name, seed) for seed in range(2)]


@pytest.mark.parametrize(
    ("name", "method", "data", "expected"),
    [
        ("vgg", "transplant", True, "refit"),
        ("vgg_batch_norm", "permutation", True, "refit"),
        ("vgg_batch_norm", "permutation", False, "repair without data"),
        ("vgg_batch_norm", "transplant", False, None),
        ("vgg_batch_norm", "average", False, None),
        ("vgg", "permutation", False, None),
    ],
)
def test_the_default_suits_network_and_data(name: str, method: str, data: bool, expected: str | None) -> None:
    calibration = [torch.randn(20, 3, 8, 8)] if data else None
    found = ng.Members(members(name), example(name), calibration=calibration)
    report = ng.Fusion.of(found, method, recover="auto").report
    assert (None if report.recovery is None else report.recovery.recovery) == expected


@pytest.mark.parametrize("recover", ["refit", "repair", "batch_norm"])
def test_what_is_asked_for_is_what_the_function_gives(recover: str) -> None:
    nets, x = members("vgg_batch_norm"), example("vgg_batch_norm")
    calibration = [torch.randn(20, 3, 8, 8)]
    plan = ng.plan(nets, x, "permutation", calibration=calibration)
    start = ng.apply(plan, nets)
    expected = {
        "refit": lambda: ng.refit(start, plan, nets, calibration),
        "repair": lambda: ng.repair(start, plan, nets, calibration),
        "batch_norm": lambda: ng.reestimate_batch_norm(start, calibration),
    }[recover]()
    fusion = ng.Fusion.of(ng.Members(nets, x, calibration=calibration), "permutation", recover=recover)
    assert [report.recovery for report in fusion.report.recoveries] == [recover]
    found = fusion.model
    assert all(
        torch.equal(a, b) for a, b in zip(found.state_dict().values(), expected.state_dict().values(), strict=True)
    )


def test_nothing_is_recovered_when_nothing_is_asked_for() -> None:
    nets, x = members("vgg_batch_norm"), example("vgg_batch_norm")
    found = ng.fuse(nets, x, "permutation", calibration=[torch.randn(20, 3, 8, 8)], recover=None)
    expected = ng.apply(ng.plan(nets, x, "permutation"), nets)
    assert all(
        torch.equal(a, b) for a, b in zip(found.state_dict().values(), expected.state_dict().values(), strict=True)
    )


def test_bad_recoveries_are_refused() -> None:
    nets, x = members("vgg"), example("vgg")
    with pytest.raises(OptionError, match="unknown recover='refti'; did you mean 'refit'"):
        ng.fuse(nets, x, recover="refti")
    with pytest.raises(OptionError, match="recover='batch_norm' looks at activations"):
        ng.fuse(nets, x, recover="batch_norm")
    with pytest.raises(InputError, match="one-shot"):
        ng.fuse(nets, x, calibration=iter([x]))


class Counted:
    """How often each tensor was made by the formula."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        made = formula.FusedRows.__init__

        def making(rows: formula.FusedRows, tensors: object, plan: ng.FusionPlan, name: str, *base: object) -> None:
            self.names.append(name)
            made(rows, tensors, plan, name, *base)  # type: ignore[arg-type]

        monkeypatch.setattr(formula.FusedRows, "__init__", making)

    def taken(self) -> int:
        """How often all tensors of a network were made since the last time this was asked."""
        counts = {self.names.count(name) for name in self.names}
        self.names.clear()
        assert len(counts) <= 1, "every tensor as often as any other"
        return counts.pop() if counts else 0


@pytest.mark.parametrize(
    ("method", "refit", "plainly"),
    [("transplant", 0, 0), ("average", 1, 2), ("permutation", 1, 2)],  # merged neurons are weighted anew, which is once
)
def test_nothing_is_fused_a_second_time(method: str, refit: int, plainly: int, monkeypatch: pytest.MonkeyPatch) -> None:
    nets, x = members("mlp_bias"), example("mlp_bias")
    samples = [torch.randn(60, *x.shape[1:])]
    counted = Counted(monkeypatch)
    fusion = ng.Fusion.of(ng.Members(nets, x), method)
    assert counted.taken() == 1
    better = fusion.refit(samples)
    assert counted.taken() == refit
    fusion.repair(samples).reestimate_batch_norm(samples)
    assert counted.taken() == 0
    other = ng.refit(fusion.model, fusion.plan, nets, samples)  # a network somebody may have changed is compared first
    assert counted.taken() == plainly
    torch.testing.assert_close(better.model.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_a_changed_network_is_compared_up_to_the_first_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    nets, x = members("mlp_bias"), example("mlp_bias")
    plan = ng.plan(nets, x, "average")
    fused = ng.apply(plan, nets)
    with torch.no_grad():
        next(fused.parameters()).add_(1)
    counted = Counted(monkeypatch)
    ng.refit(fused, plan, nets, [torch.randn(60, *x.shape[1:])])
    assert len(counted.names) == 1


def test_a_network_that_was_changed_since_is_refitted_as_it_is() -> None:
    nets, x = members("mlp_bias"), example("mlp_bias")
    samples = [torch.randn(60, *x.shape[1:])]
    fusion = ng.Fusion.of(ng.Members(nets, x), "average")
    assert fusion.refit(samples).report.recoveries[0].notes
    with torch.no_grad():
        next(fusion.model.parameters())[0].add_(1)
    found = fusion.refit(samples)
    assert found.report.recoveries[0].notes == ()  # not weighted anew from the members
    torch.testing.assert_close(
        found.model.state_dict(), ng.refit(fusion.model, fusion.plan, nets, samples).state_dict(), rtol=0, atol=0
    )


def test_recoveries_follow_one_another_and_leave_the_network_before_as_it_is() -> None:
    nets, x = members("vgg_batch_norm"), example("vgg_batch_norm")
    samples = [torch.randn(20, 3, 8, 8)]
    fusion = ng.Fusion.of(ng.Members(nets, x), ng.Transplant(order="joint"))
    before = {name: tensor.clone() for name, tensor in fusion.model.state_dict().items()}
    last = fusion.refit(samples, agree=False).reestimate_batch_norm(samples).repair()
    assert [report.recovery for report in last.report.recoveries] == ["refit", "batch_norm", "repair without data"]
    assert last.report.recovery is last.report.recoveries[-1]
    assert last.members is fusion.members
    torch.testing.assert_close(fusion.model.state_dict(), before, rtol=0, atol=0)
    assert fusion.report.recovery is None
    assert repr(last).endswith("; refit; batch_norm; repair without data)")
    with pytest.raises(OptionError, match="recover='refit' looks at activations"):
        fusion.refit()


@pytest.mark.parametrize(
    ("method", "options", "shares"),
    [
        ("average", {"weights": [1, 3]}, (0.25, 0.75)),
        ("permutation", {"weights": [1, 3]}, (0.25, 0.75)),
        ("transplant", {"quota": [1, 3]}, (0.25, 0.75)),
        ("transplant", {"quota": [0, 1], "weights": [1, 1]}, (0.0, 1.0)),
    ],
)
def test_the_report_tells_how_much_of_the_result_is_each_members(
    method: str, options: dict, shares: tuple[float, float]
) -> None:
    nets, x = members("mlp_bias"), example("mlp_bias")
    fusion = ng.Fusion.of(ng.Members(nets, x), method, **options)
    assert fusion.report.shares == pytest.approx(shares, abs=0.05)
    first = str(fusion.report).splitlines()[0]
    each = [f"member {m} {share:.0%}" for m, share in enumerate(fusion.report.shares)]
    assert first.endswith(", ".join(each))
    assert first.startswith("this is member 1, hardly changed") == (shares[1] > 0.9)
    assert ", ".join(each) in repr(fusion)


def test_a_result_that_is_nearly_one_member_is_warned_of() -> None:
    nets, x = members("mlp_bias"), example("mlp_bias")
    samples = [torch.randn(200, *x.shape[1:])]
    with pytest.warns(UserWarning, match="this is member 0, hardly changed: member 0 95%, member 1 5%"):
        ng.fuse(nets, x, "average", [95, 5])
    # neurons of networks that have nothing in common: refit's default gives one member's own back
    fusion = ng.Fusion.of(ng.Members(nets, x), "average")
    assert fusion.report.shares == (0.5, 0.5)
    refitted = fusion.refit(samples)
    assert max(refitted.report.shares) > 0.9
    with pytest.warns(UserWarning, match=f"this is member {refitted.report.shares.index(max(refitted.report.shares))}"):
        ng.fuse(nets, x, "average", calibration=samples)
    assert fusion.refit(samples, agree=False).report.shares == (0.5, 0.5)
