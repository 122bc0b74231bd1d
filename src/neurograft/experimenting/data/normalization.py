"""Pixels shifted and scaled per channel: by what the papers used, or by the training images' own statistics."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 5000  # images that are floats at the same time


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
        count = pixels.numel() // pixels.shape[1]
        mean = _total(pixels, torch.zeros(1), 1) / count
        deviation = (_total(pixels, mean, 2) / max(1, count - 1)).sqrt()
        return Normalization(mean.float(), torch.where(deviation > 0, deviation, 1.0).float())


def _total(pixels: Tensor, mean: Tensor, power: int) -> Tensor:
    """`Σ (x − mean)^power` per channel, float64 of shape `(1, channels, 1, 1)`, a chunk of images at a time."""
    total = torch.zeros(1, pixels.shape[1], 1, 1, dtype=torch.float64)
    for start in range(0, len(pixels), CHUNK):
        part = scaled(pixels[start : start + CHUNK]).double()
        total += ((part - mean) ** power).sum((0, 2, 3), keepdim=True)
    return total


def scaled(pixels: Tensor) -> Tensor:
    """Bytes as floats from 0 to 1; floats as they are."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
