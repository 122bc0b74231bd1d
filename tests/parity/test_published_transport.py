"""What optimal transport gives is what the paper's formula gives, written down a second time."""

import pytest
import torch
from tests.parity.networks import build, example
from tests.parity.transport_by_hand import fused, transported
from torch import Tensor, nn

import neurograft as ng

X = example().double()


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in model.parameters()]


def by_hand(members: list[nn.Module], reference: int) -> list[Tensor]:
    layers = fused([[weight.numpy() for weight in weights(member)] for member in members], reference)
    return [torch.from_numpy(layer) for layer in layers]


@pytest.mark.parametrize("reference", [0, 1])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("network", ["mlp", "vgg"])
def test_equal_widths(network: str, count: int, reference: int) -> None:
    members = [build(network, 100 + m).double() for m in range(count)]
    found = ng.fuse(members, X, method="optimal_transport", reference=reference)
    expected = by_hand(members, reference)
    for own, other in zip(weights(found), expected, strict=True):
        torch.testing.assert_close(own, other)
    average = ng.fuse(members, X, method="average")
    assert float((weights(average)[0] - expected[0]).abs().max()) > 1e-2, "neurons had to move"


WIDTHS = {
    "mlp": [(24, 20, 16), (16, 30, 16), (36, 10, 22)],
    "vgg": [(8, 0, 12, 10, 0), (12, 0, 8, 10, 0), (6, 0, 9, 14, 0)],
}


@pytest.mark.parametrize("reference", [0, 1])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("network", ["mlp", "vgg"])
def test_different_widths_with_the_published_scaling(network: str, count: int, reference: int) -> None:
    members = [build(network, 100 + m, *widths).double() for m, widths in enumerate(WIDTHS[network][:count])]
    found = ng.fuse(members, X, method="optimal_transport", reference=reference, published=True)
    expected = by_hand(members, reference)
    for own, other in zip(weights(found), expected, strict=True):
        torch.testing.assert_close(own, other)
    shaped = build(network, 0, *WIDTHS[network][reference]).double()
    with torch.no_grad():
        for parameter, layer in zip(shaped.parameters(), expected, strict=True):
            parameter.copy_(layer)
    torch.testing.assert_close(found(X), shaped(X))


def test_by_hand_a_permuted_member_comes_back() -> None:
    """The formula itself: a member whose hidden neurons were shuffled is moved to where they were."""
    member = build("mlp", 100, 24, 20, 16).double()
    shuffled = ng.permute(member, ng.trace(member, X), {"layers.1.weight:0": torch.randperm(20)})
    moved = transported(*([weight.numpy() for weight in weights(net)] for net in (shuffled, member)))
    for own, other in zip(moved, weights(member), strict=True):
        torch.testing.assert_close(torch.from_numpy(own), other)
