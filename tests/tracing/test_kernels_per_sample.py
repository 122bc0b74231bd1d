"""Convolutions whose kernels are mixed per sample: channels are followed through the kernel that is made of weights."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.tracing.test_blocks import assert_fuses_back, traced


class MixedConv(nn.Module):
    """A kernel per sample, the mean of several by the sample's routing; one group of the convolution per sample."""

    def __init__(self, width: int, out: int, how: str) -> None:
        super().__init__()
        self.how, self.shape = how, (out, width, 3, 3)
        self.route, self.bias = nn.Linear(width, 4), nn.Parameter(torch.randn(4, out))
        flat = (4, out * width * 9) if how == "product" else (4, *self.shape)
        self.weight = nn.Parameter(torch.randn(*flat) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        (n, c, *size), (o, i, *window) = x.shape, self.shape
        mixed = self.route(x.mean((2, 3))).sigmoid()
        if self.how == "product":
            kernel = mixed @ self.weight
        elif self.how == "viewed":
            kernel = mixed @ self.weight.flatten(1)
        else:
            kernel = (mixed[:, :, None, None, None, None] * self.weight).sum(1)
        kernel, bias = kernel.view(n * o, i, *window), (mixed @ self.bias).view(-1)
        return F.conv2d(x.reshape(1, n * c, *size), kernel, bias, padding=1, groups=n).view(n, o, *size)


class Mixed(nn.Module):
    """Two such convolutions between two plain layers, the second one in a residual branch."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)
        self.first, self.second = MixedConv(6, 8, how), MixedConv(8, 8, how)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(self.stem(x).relu())).relu()
        return self.head((x + self.second(x).tanh()).mean((2, 3)))


@pytest.mark.parametrize("how", ["product", "viewed", "summed"])
def test_kernels_mixed_per_sample_are_followed(how: str) -> None:
    torch.manual_seed(0)
    model, x = Mixed(how).double().eval(), torch.randn(3, 3, 7, 7, dtype=torch.float64)
    graph = traced(model, x)
    assert sorted(group.size for group in graph.free) == [4, 4, 6, 8]
    # the sample's own kernel is an activation: both sides of the contraction are made
    assert graph["stem.weight:0"].bilinear == ("convolution in first",)
    assert_fuses_back(model, graph, x)
