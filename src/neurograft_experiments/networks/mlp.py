"""Fully connected networks."""

import itertools
from typing import cast

from torch import Tensor, nn

from neurograft_experiments.networks.shapes import Shape


class MLP(nn.Module):
    """Fully connected layers with ReLU between them.

    Args:
        shape: channels, height and width of an image.
        classes: outputs.
        width: neurons of each hidden layer.
        depth: hidden layers.
        bias: whether all layers, or none, have biases.
    """

    def __init__(self, shape: Shape, classes: int, width: int = 32, depth: int = 3, bias: bool = True) -> None:
        super().__init__()
        channels, height, rows = shape
        widths = [channels * height * rows] + [width] * depth
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after, bias), nn.ReLU()]
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], classes, bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape `(samples, classes)` for images of shape `(samples, channels, height, width)`."""
        return cast(Tensor, self.head(self.hidden(images)))


def mlp(shape: Shape, classes: int, *, width: int = 512, depth: int = 4, bias: bool = False) -> MLP:
    """The papers' MLP: `depth` hidden layers of `width` neurons, without biases.

    Example:
        >>> sum(p.numel() for p in mlp((1, 28, 28), 10).parameters()) == 784 * 512 + 3 * 512 * 512 + 512 * 10
        True
    """
    return MLP(shape, classes, width, depth, bias)
