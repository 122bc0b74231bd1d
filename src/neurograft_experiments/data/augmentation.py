"""Random crops and flips of whole batches."""

from dataclasses import dataclass

import torch
from torch import Tensor

from neurograft.errors import OptionError


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
        """Crop and mirror each image as its row of `draws` says.

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
