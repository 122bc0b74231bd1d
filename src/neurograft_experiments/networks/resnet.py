"""Residual networks for small images."""

from typing import cast

from torch import Tensor, nn

from neurograft_experiments.networks.shapes import Shape, scaled


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int, batch_norm: bool, bias: bool) -> None:
        super().__init__()
        self.first = _convolution(before, after, 3, stride, batch_norm, bias)
        self.second = _convolution(after, after, 3, 1, batch_norm, bias)
        same = stride == 1 and before == after
        self.shortcut = nn.Identity() if same else _convolution(before, after, 1, stride, batch_norm, bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features of shape `(samples, after, height / stride, width / stride)`."""
        return cast(Tensor, (self.second(self.first(features).relu()) + self.shortcut(features)).relu())


class ResNet(nn.Module):
    """A 3 x 3 stem, stages of residual blocks, and a linear head on each channel's mean.

    Every stage but the first starts with a stride of 2.

    Args:
        shape: channels, height and width of an image.
        classes: outputs.
        widths: channels of each stage.
        blocks: residual blocks of each stage.
        batch_norm: whether BatchNorm follows each convolution.
        bias: whether the head has biases, and the convolutions where no BatchNorm follows them.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        widths: tuple[int, ...],
        blocks: int,
        *,
        batch_norm: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.stem = _convolution(shape[0], widths[0], 3, 1, batch_norm, bias)
        stages, channels = [], widths[0]
        for number, width in enumerate(widths):
            strides = [2 if number else 1] + [1] * (blocks - 1)
            stage = []
            for stride in strides:
                stage.append(ResidualBlock(channels, width, stride, batch_norm, bias))
                channels = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, classes, bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape `(samples, classes)` for images of shape `(samples, channels, height, width)`."""
        return cast(Tensor, self.head(self.stages(self.stem(images).relu()).mean((2, 3))))


def _convolution(before: int, after: int, size: int, stride: int, batch_norm: bool, bias: bool) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, size, stride, size // 2, bias=bias and not batch_norm)
    return nn.Sequential(convolution, nn.BatchNorm2d(after)) if batch_norm else nn.Sequential(convolution)


def resnet18(shape: Shape, classes: int, *, share: float = 1.0, batch_norm: bool = True, bias: bool = False) -> ResNet:
    """The papers' ResNet18 in its form for CIFAR; `share` multiplies every width.

    Example:
        >>> sum(p.numel() for p in resnet18((3, 32, 32), 10).parameters())
        11173952

    Source: He et al. 2016, arXiv:1512.03385, table 1, with a 3 x 3 stem that keeps the size of the image.
    """
    return ResNet(shape, classes, scaled((64, 128, 256, 512), share), 2, batch_norm=batch_norm, bias=bias)


def resnet20(shape: Shape, classes: int, *, share: float = 1.0, batch_norm: bool = True, bias: bool = False) -> ResNet:
    """ResNet20 for CIFAR, shortcuts by 1 x 1 convolutions; `share` multiplies every width.

    Example:
        >>> sum(p.numel() for p in resnet20((3, 32, 32), 10).parameters())
        272464

    Source: He et al. 2016, arXiv:1512.03385, section 4.2, n = 3, shortcuts B.
    """
    return ResNet(shape, classes, scaled((16, 32, 64), share), 3, batch_norm=batch_norm, bias=bias)


def resnet8(shape: Shape, classes: int, *, share: float = 1.0, batch_norm: bool = True, bias: bool = False) -> ResNet:
    """ResNet8, as `resnet20` with one block per stage.

    Example:
        >>> sum(p.numel() for p in resnet8((3, 32, 32), 10).parameters())
        78032
    """
    return ResNet(shape, classes, scaled((16, 32, 64), share), 1, batch_norm=batch_norm, bias=bias)
