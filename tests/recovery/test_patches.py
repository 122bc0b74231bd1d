"""The rows of a convolution times its matrix are its output, for every geometry."""

import pytest
import torch
from torch import nn

from neurograft.recovery.patches import Geometry, matrix_of, patches, weight_of

CONVOLUTIONS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, 2, 1), (9,)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), (7, 6)),
    "padded": (lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0)), (7, 6)),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, 2, 2, dilation=2), (9, 8)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, 1, 1, groups=2), (5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, 1, 1, groups=4), (5, 5)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2, (1, 2, 1), 1), (4, 5, 3)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 4, 2, 1), (5,)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), (4, 5)),
    "transposed_grouped": (lambda: nn.ConvTranspose2d(4, 6, (2, 3), (2, 1), (0, 1), groups=2, dilation=(2, 1)), (4, 5)),
    "transposed3d": (lambda: nn.ConvTranspose3d(4, 6, 2, 2, 1), (3, 2, 4)),
}


def geometry_of(layer: nn.Module) -> Geometry:
    transposed = "Transpose" in type(layer).__name__
    return Geometry(
        layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, transposed, layer.output_padding
    )


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patches_times_matrix_is_the_convolution(name: str) -> None:
    make, size = CONVOLUTIONS[name]
    layer, x = make().double(), torch.randn(3, 4, *size, dtype=torch.float64)
    geometry = geometry_of(layer)
    expected = layer(x).detach()
    assert geometry.output_size(size) == tuple(expected.shape[2:])
    flat = expected.flatten(2)
    positions = torch.stack([torch.randperm(flat.shape[2])[:5] for _ in range(3)])
    rows = patches(x, geometry, positions)
    matrix = matrix_of(layer.weight.detach(), geometry)
    found = (rows @ matrix).transpose(0, 1).reshape(3, positions.shape[1], -1) + layer.bias.detach()
    wanted = flat.gather(2, positions[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_matrix_becomes_its_weight_again(name: str) -> None:
    layer = CONVOLUTIONS[name][0]()
    geometry = geometry_of(layer)
    assert torch.equal(weight_of(matrix_of(layer.weight, geometry), layer.weight, geometry), layer.weight)


def test_patches_are_those_of_unfold() -> None:
    x = torch.randn(2, 3, 6, 5)
    geometry = Geometry((3, 2), (2, 1), (1, 1), (1, 2))
    expected = nn.functional.unfold(x, (3, 2), (1, 2), (1, 1), (2, 1))
    positions = torch.arange(expected.shape[2]).expand(2, -1)
    found = patches(x, geometry, positions)[0].reshape(2, expected.shape[2], -1)
    assert torch.equal(found, expected.transpose(1, 2))
