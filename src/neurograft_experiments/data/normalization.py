"""Pixels shifted and scaled per channel: by what the papers used, or by the training images' own statistics."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
        return (scaled(pixels) - self.mean) / self.deviation

    def to(self, device: torch.device | str) -> "Normalization":
        """The same on a device."""
        return Normalization(self.mean.to(device), self.deviation.to(device))

    @staticmethod
    def by(mean: Sequence[float], deviation: Sequence[float]) -> "Normalization":
        """Of given statistics, one number per channel."""
        return Normalization(torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(deviation).view(1, -1, 1, 1))

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


def scaled(pixels: Tensor) -> Tensor:
    """Bytes as floats from 0 to 1; floats as they are."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
