"""VGG networks for small images."""

from typing import cast

from torch import Tensor, nn

from neurograft_experiments.networks.shapes import Shape, scaled

POOL = 0
VGG11 = (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL)


class VGG(nn.Module):
    """3 x 3 convolutions with ReLU, poolings between them, and a linear head on each channel's mean.

    A pooling is left out once a side is a single pixel: images of 28 pixels get four, of 8 pixels three. Images of 32
    pixels end as one position, whose mean is itself.

    Args:
        shape: channels, height and width of an image.
        classes: outputs.
        layers: channels of each convolution; 0 is a 2 x 2 max pooling.
        batch_norm: whether BatchNorm follows each convolution.
        bias: whether the convolutions and the head, or none of them, have biases.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        layers: tuple[int, ...] = VGG11,
        *,
        batch_norm: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        channels, side = shape[0], min(shape[1:])
        modules: list[nn.Module] = []
        for width in layers:
            if width != POOL:
                modules.append(nn.Conv2d(channels, width, 3, padding=1, bias=bias))
                modules += [nn.BatchNorm2d(width)] if batch_norm else []
                modules.append(nn.ReLU())
                channels = width
            elif side > 1:
                modules.append(nn.MaxPool2d(2))
                side //= 2
        self.features = nn.Sequential(*modules)
        self.head = nn.Linear(channels, classes, bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape `(samples, classes)` for images of shape `(samples, channels, height, width)`."""
        return cast(Tensor, self.head(self.features(images).mean((2, 3))))


def vgg11(shape: Shape, classes: int, *, share: float = 1.0, batch_norm: bool = False, bias: bool = False) -> VGG:
    """The papers' VGG11, without biases, with or without BatchNorm; `share` multiplies every width.

    Example:
        >>> sum(p.numel() for p in vgg11((3, 32, 32), 10).parameters())
        9222848

    Source: Simonyan & Zisserman 2015, arXiv:1409.1556, configuration A, with one linear layer as usual for CIFAR.
    """
    widths = scaled([width for width in VGG11 if width != POOL], share)
    left = iter(widths)
    layers = tuple(POOL if width == POOL else next(left) for width in VGG11)
    return VGG(shape, classes, layers, batch_norm=batch_norm, bias=bias)
