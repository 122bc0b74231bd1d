"""Encoded image files as bytes in tensors."""

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from neurograft.errors import InputError, MissingExtra

Encoded: TypeAlias = bytes | Path
Labelled: TypeAlias = tuple[Sequence[Encoded], Sequence[int]]
"""Encoded images and their classes."""

GREY = ("1", "L", "LA")
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, eq=False)
class Decoded:
    """A data set before it is split: bytes of shape `(samples, channels, height, width)` and classes, int64."""

    train_pixels: Tensor
    train_labels: Tensor
    test_pixels: Tensor
    test_labels: Tensor


@dataclass(frozen=True, eq=False)
class Found:
    """A data set that was found, and not read yet.

    Attributes:
        name: what people call it.
        files: what it is read from; their paths, sizes and times say whether it is still the same.
        read: gives the encoded training and test images.
    """

    name: str
    files: tuple[Path, ...]
    read: Callable[[], tuple[Labelled, Labelled]]

    def decoded(self, size: int | None) -> Decoded:
        """All images, `size` x `size` pixels if a size is given.

        Raises:
            InputError: if an image cannot be decoded, sizes differ, or labels are no classes.
            MissingExtra: if pillow is not installed.
        """
        (train, train_labels), (test, test_labels) = self.read()
        pixels = decode([*train, *test], self.name, size)
        labels = [torch.tensor([int(label) for label in part]) for part in (train_labels, test_labels)]
        for split, part in zip(("training", "test"), labels, strict=True):
            if not len(part):
                raise InputError(f"{self.name} holds no {split} images")
            if part.min() < 0:
                raise InputError(
                    f"{self.name}: {split} image {int(part.argmin())} has label {int(part.min())}, no class"
                )
        return Decoded(pixels[: len(train)], labels[0], pixels[len(train) :], labels[1])


def decode(images: Sequence[Encoded], name: str, size: int | None = None) -> Tensor:
    """Bytes of shape `(samples, channels, height, width)`; grey images have one channel, all have three if any has.

    Args:
        images: encoded images, or paths of their files.
        name: of the data set, for messages.
        size: side of the result in pixels (bilinear), or None to leave sizes alone.

    Raises:
        InputError: if an image cannot be decoded, or sizes differ.
        MissingExtra: if pillow is not installed.
    """
    try:
        import numpy
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("image files need pillow: pip install 'neurograft[data]'") from error

    def pixels(pair: tuple[int, Encoded]) -> Any:
        where = pair[1] if isinstance(pair[1], Path) else f"image {pair[0]}"
        try:
            image: Image.Image = Image.open(pair[1] if isinstance(pair[1], Path) else io.BytesIO(pair[1]))
            if image.mode in DEEP:
                raise InputError(
                    f"{name}: {where} has more than 8 bits per pixel (mode {image.mode}); convert it first"
                )
            image = image.convert("L" if image.mode in GREY else "RGB")
            if size is not None and image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            return numpy.asarray(image)
        except (OSError, SyntaxError) as error:
            raise InputError(f"{name}: {where} cannot be decoded: {error}") from error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        arrays = list(pool.map(pixels, enumerate(images)))
    sizes = {array.shape[:2]: number for number, array in enumerate(arrays)}
    if len(sizes) > 1:
        (one, i), (other, j) = list(sizes.items())[:2]
        raise InputError(
            f"{name}: images have different sizes: image {i} {one[0]} x {one[1]} pixels, image {j} {other[0]} x "
            f"{other[1]}; give size= to bring all to one"
        )
    if len({array.ndim for array in arrays}) > 1:
        arrays = [array if array.ndim == 3 else numpy.repeat(array[..., None], 3, 2) for array in arrays]
    stacked = torch.from_numpy(numpy.stack(arrays))
    return stacked.unsqueeze(1) if stacked.dim() == 3 else stacked.permute(0, 3, 1, 2).contiguous()
