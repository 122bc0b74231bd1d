"""LeNet."""

from typing import cast

from torch import Tensor, nn

from neurograft_experiments.networks.shapes import Shape, check_side, scaled


class LeNet(nn.Module):
    """Two 5 x 5 convolutions with ReLU and 2 x 2 max pooling, then two hidden linear layers.

    A convolution that is too large for its image pads it by 2, so that its size stays: the first below 32 pixels (as
    the papers do it for MNIST), the second below 6. Images of 28 and 32 pixels so have 5 x 5 positions left.

    Args:
        shape: channels, height and width of an image, at least 4 x 4 pixels.
        classes: outputs.
        widths: channels of the convolutions and neurons of the linear layers.
        bias: whether all layers, or none, have biases.
    """

    def __init__(
        self, shape: Shape, classes: int, widths: tuple[int, ...] = (6, 16, 120, 84), bias: bool = False
    ) -> None:
        super().__init__()
        check_side("LeNet", shape, 4)
        c1, c2, f1, f2 = widths
        pad1, sides = _padding(shape[1:], 32)
        pad2, sides = _padding(sides, 6)
        self.conv1 = nn.Conv2d(shape[0], c1, 5, padding=pad1, bias=bias)
        self.conv2 = nn.Conv2d(c1, c2, 5, padding=pad2, bias=bias)
        self.pool = nn.MaxPool2d(2)
        self.linear1 = nn.Linear(c2 * sides[0] * sides[1], f1, bias)
        self.linear2 = nn.Linear(f1, f2, bias)
        self.head = nn.Linear(f2, classes, bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape `(samples, classes)` for images of shape `(samples, channels, height, width)`."""
        features = self.pool(self.conv1(images).relu())
        features = self.pool(self.conv2(features).relu()).flatten(1)
        return cast(Tensor, self.head(self.linear2(self.linear1(features).relu()).relu()))


def _padding(sides: tuple[int, int], enough: int) -> tuple[int, tuple[int, int]]:
    """The padding of a 5 x 5 convolution, and what is left of the image's sides behind it and the pooling."""
    padding = 2 if min(sides) < enough else 0
    height, width = ((side + 2 * padding - 4) // 2 for side in sides)
    return padding, (height, width)


def lenet(shape: Shape, classes: int, *, share: float = 1.0, bias: bool = False) -> LeNet:
    """The papers' LeNet, without biases; `share` multiplies every width.

    Example:
        >>> sum(p.numel() for p in lenet((3, 32, 32), 10).parameters())
        61770
    """
    return LeNet(shape, classes, scaled((6, 16, 120, 84), share), bias)
