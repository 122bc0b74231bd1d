"""The convolutional network of the demonstration."""

from typing import cast

from torch import Tensor, nn

from neurograft_experiments.networks.shapes import Shape, check_side


class ConvNet(nn.Module):
    """Three 3 x 3 convolutions with BatchNorm, one of them residual, and a linear head on each channel's mean.

    Args:
        shape: channels, height and width of an image, at least 2 x 2 pixels.
        classes: outputs.
        width: channels of the first two convolutions; the last has twice as many.
        bias: whether the head has one; the convolutions have none, BatchNorm follows them.
    """

    def __init__(self, shape: Shape, classes: int, width: int = 8, bias: bool = True) -> None:
        super().__init__()
        check_side("ConvNet", shape, 2)
        self.stem = _convolution(shape[0], width)
        self.residual = _convolution(width, width)
        self.pool = nn.MaxPool2d(2)
        self.wide = _convolution(width, 2 * width)
        self.head = nn.Linear(2 * width, classes, bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape `(samples, classes)` for images of shape `(samples, channels, height, width)`."""
        features = self.stem(images).relu()
        features = self.pool(features + self.residual(features).relu())
        return cast(Tensor, self.head(self.wide(features).relu().mean((2, 3))))


def _convolution(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after))


def convnet(shape: Shape, classes: int, *, width: int = 16, bias: bool = True) -> ConvNet:
    """The demonstration's convolutional network: small, and with everything that makes fusing hard.

    Example:
        >>> sum(p.numel() for p in convnet((1, 8, 8), 10, width=4).parameters())
        590
    """
    return ConvNet(shape, classes, width, bias)
