"""`fuse` recovers what suits the network and the data, and says what it did."""

import pytest
import torch
from torch import nn

import neurograft as ng
from neurograft.errors import InputError, OptionError
from tests.networks import build, example


def recovery(network: nn.Module) -> str | None:
    report = ng.recovery_report(network)
    return None if report is None else report.recovery


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
    assert recovery(ng.fuse(members(name), example(name), method, calibration=calibration)) == expected


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
    found = ng.fuse(nets, x, "permutation", calibration=calibration, recover=recover)
    assert recovery(found) == recover
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
