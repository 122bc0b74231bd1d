"""The networks of the demonstration, small enough to train in seconds."""

import itertools
from collections.abc import Callable
from typing import TypeAlias, cast

from torch import Tensor, nn

Shape: TypeAlias = tuple[int, int, int]


class MLP(nn.Module):
    """Fully connected layers with ReLU between them.

    Args:
        shape: channels, height and width of an image.
        classes: outputs.
        width: neurons of each hidden layer.
        depth: hidden layers.
    """

    def __init__(self, shape: Shape, classes: int, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        channels, height, rows = shape
        widths = [channels * height * rows] + [width] * depth
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape `(samples, classes)` for images of shape `(samples, channels, height, width)`."""
        return cast(Tensor, self.head(self.hidden(images)))


class ConvNet(nn.Module):
    """Three 3 x 3 convolutions with BatchNorm, one of them residual, and a linear head on each channel's mean.

    Args:
        shape: channels, height and width of an image.
        classes: outputs.
        width: channels of the first two convolutions; the last has twice as many.
    """

    def __init__(self, shape: Shape, classes: int, width: int = 8) -> None:
        super().__init__()
        self.stem = _convolution(shape[0], width)
        self.residual = _convolution(width, width)
        self.pool = nn.MaxPool2d(2)
        self.wide = _convolution(width, 2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape `(samples, classes)` for images of shape `(samples, channels, height, width)`."""
        features = self.stem(images).relu()
        features = self.pool(features + self.residual(features).relu())
        return cast(Tensor, self.head(self.wide(features).relu().mean((2, 3))))


def _convolution(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after))


def digits_mlp() -> MLP:
    """The demonstration's MLP for the bundled digits, images of shape `(1, 8, 8)`."""
    return MLP((1, 8, 8), 10)


def digits_convnet() -> ConvNet:
    """The demonstration's convolutional network for the bundled digits, images of shape `(1, 8, 8)`."""
    return ConvNet((1, 8, 8), 10)


def mlp_for(shape: Shape, classes: int) -> MLP:
    """An MLP of a width that suits the images."""
    return MLP(shape, classes, 32 if shape[1] <= 8 else 128)


def convnet_for(shape: Shape, classes: int) -> ConvNet:
    """A convolutional network of a width that suits the images."""
    return ConvNet(shape, classes, 8 if shape[1] <= 8 else 16)


NETWORKS: dict[str, tuple[str, Callable[[Shape, int], nn.Module]]] = {
    "mlp": ("MLP", mlp_for),
    "convnet": ("Convolutional network with BatchNorm", convnet_for),
}
"""Name on the command line and in results -> what people read, and how it is made."""
