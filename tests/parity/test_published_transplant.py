"""What transplanting gives is what the published code gave."""

from pathlib import Path

import pytest
import torch
from tests.fusion import planned
from tests.parity.networks import build, example
from torch import Tensor

import neurograft as ng

NETWORKS = ("mlp", "vgg", "resnet")
CASES = (
    "mlp/2/transplant",
    "mlp/4/transplant",
    "mlp/4/iterative",
    "mlp/4/hierarchical",
    "vgg/2/transplant",
    "resnet/2/transplant",
)


def published(order: str, case: str) -> Tensor:
    return torch.load(Path(__file__).with_name(f"published_{order}.pt"), weights_only=True)[case]


@pytest.mark.parametrize("order", ["backward", "joint"])
@pytest.mark.parametrize("case", CASES)
def test_a_transplant_is_the_published_one(case: str, order: str) -> None:
    expected = published(order, case)
    network, count, what = case.split("/")
    members = [build(network, 100 + m) for m in range(int(count))]
    fused = planned(members, example(), order=order, strategy="flat" if what == "transplant" else what)
    assert float((fused(example()) - expected).detach().abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("order", ["backward", "joint"])
def test_average_and_ensemble_are_the_published_ones(network: str, order: str) -> None:
    members = [build(network, 100 + m) for m in range(2)]
    for what, found in (("average", planned(members, example(), "average")), ("ensemble", ng.Ensemble(members))):
        expected = published(order, f"{network}/2/{what}")
        torch.testing.assert_close(found(example()).detach(), expected, rtol=1e-5, atol=1e-6)
