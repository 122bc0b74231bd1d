"""What becomes of pixels: shifted and scaled per channel, and cropped and mirrored while training."""

from dataclasses import dataclass

import torch
from torch import Tensor

from neurograft.errors import OptionError


@dataclass(frozen=True, eq=False)
class Normalization:
    """`(x − mean) / deviation` per channel, with x = byte / 255 for bytes and the pixel itself for floats.

    Attributes:
        mean: shape `(1, channels, 1, 1)`.
        deviation: the same shape, above 0.
    """

    mean: Tensor
    deviation: Tensor

    def __call__(self, pixels: Tensor) -> Tensor:
        """Float32 images of the shape of `pixels`, `(samples, channels, height, width)`."""
        scaled = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        return (scaled - self.mean) / self.deviation

    def to(self, device: torch.device | str) -> "Normalization":
        """The same on a device."""
        return Normalization(self.mean.to(device), self.deviation.to(device))

    @staticmethod
    def of(pixels: Tensor) -> "Normalization":
        """To mean 0 and standard deviation 1 of the given images, shape `(samples, channels, height, width)`.

        A channel without any contrast is only shifted.

        Example:
            >>> normalization = Normalization.of(torch.tensor([0.0, 2.0]).view(2, 1, 1, 1))
            >>> normalization(torch.tensor([[[[1.0]]]])).item()
            0.0
        """
        values, counts = _histogram(pixels) if pixels.dtype == torch.uint8 else (pixels.double(), torch.ones(1))
        count = pixels.numel() // pixels.shape[1]
        mean = (values * counts).sum((0, 2, 3), keepdim=True) / count
        squares = ((values - mean) ** 2 * counts).sum((0, 2, 3), keepdim=True)
        deviation = (squares / max(1, count - 1)).sqrt()
        return Normalization(mean.float(), torch.where(deviation > 0, deviation, 1.0).float())


def _histogram(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The values that bytes can have, shape `(256, 1, 1, 1)`, and how often they occur, `(256, channels, 1, 1)`."""
    counts = [torch.bincount(pixels[:, channel].flatten(), minlength=256) for channel in range(pixels.shape[1])]
    return torch.arange(256).view(256, 1, 1, 1).double() / 255, torch.stack(counts, 1)[:, :, None, None]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What the papers do to training images of CIFAR: a random crop of the image with a black border, and a flip.

    Attributes:
        padding: pixels of the border, on every side; the crop has the image's own size.
        flip: whether half of the images are mirrored, left to right. Not for digits.

    Example:
        >>> shifted = Augmentation(padding=1, flip=False)
        >>> image = torch.tensor([[1, 2], [3, 4]]).view(1, 1, 2, 2)
        >>> shifted.apply(image, torch.tensor([[0, 2, 0]])).squeeze()  # one row down, one column to the left
        tensor([[0, 0],
                [2, 0]])
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.padding, bool) or not isinstance(self.padding, int) or self.padding < 0:
            raise OptionError(f"padding is a whole number of pixels, got {self.padding!r}")
        if not isinstance(self.flip, bool):
            raise OptionError(f"flip is True or False, got {self.flip!r}")

    def draws(self, count: int) -> Tensor:
        """Random numbers for `count` images, int64 of shape `(count, 3)`: row and column of the crop, and the flip.

        They come from torch's random state on the CPU.
        """
        crops = torch.randint(2 * self.padding + 1, (count, 2))
        flips = torch.randint(2, (count, 1)) if self.flip else torch.zeros(count, 1, dtype=torch.long)
        return torch.cat([crops, flips], 1)

    def apply(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """Crop and mirror each image by its row of `draws`.

        Args:
            pixels: shape `(samples, channels, height, width)`, before normalisation, so that 0 is black.
            draws: shape `(samples, 3)`, on the same device.
        """
        samples, channels, height, width = pixels.shape
        border = torch.nn.functional.pad(pixels, (self.padding,) * 4)
        rows = draws[:, :1] + torch.arange(height, device=pixels.device)
        columns = torch.arange(width, device=pixels.device).expand(samples, width)
        columns = torch.where(draws[:, 2:] == 1, width - 1 - columns, columns) + draws[:, 1:2]
        places = (rows[:, :, None] * border.shape[3] + columns[:, None, :]).view(samples, 1, -1)
        return border.flatten(2).gather(2, places.expand(-1, channels, -1)).view(pixels.shape)
