"""Labelled images as tensors on a device: splits, batches, and the training images' augmentation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from neurograft.errors import InputError, OptionError
from neurograft_experiments.data.pixels import Augmentation, Normalization

Indices: TypeAlias = Tensor | Sequence[int]


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their classes.

    Attributes:
        pixels: shape `(samples, channels, height, width)`: bytes, or floats that `normalization` (or nobody) shifts
            and scales. Bytes take a quarter of the memory; what a network sees is made batch by batch.
        labels: classes, int64 of shape `(samples,)`.
        normalization: how pixels become what networks see; None where `pixels` are that already.
        held_out: whether the images validate or test, so that nothing may augment them.
    """

    pixels: Tensor
    labels: Tensor
    normalization: Normalization | None = None
    held_out: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """All images as networks see them, float32: made anew in every call; for a few images use `examples`."""
        return self.normalized(self.pixels)

    def normalized(self, pixels: Tensor) -> Tensor:
        """Some of the split's pixels as networks see them."""
        return pixels if self.normalization is None else self.normalization(pixels)

    def examples(self, count: int = 2) -> Tensor:
        """The first `count` images as networks see them, to trace or to calibrate with."""
        return self.normalized(self.pixels[:count])

    def subset(self, indices: Indices) -> "Split":
        """The images at `indices`, in their order.

        Raises:
            InputError: if there are none.

        Example:
            >>> split = Split(torch.arange(4.0).view(4, 1, 1, 1), torch.tensor([0, 1, 0, 1]))
            >>> split.subset([3, 1]).images.flatten()
            tensor([3., 1.])
        """
        chosen = torch.as_tensor(indices, dtype=torch.long, device=self.labels.device)
        if not len(chosen):
            raise InputError(f"a subset of {len(self)} images needs at least one index")
        return replace(self, pixels=self.pixels[chosen], labels=self.labels[chosen])

    def to(self, device: torch.device | str) -> "Split":
        """The split on a device."""
        normalization = self.normalization and self.normalization.to(device)
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device), normalization=normalization)

    def batches(
        self, size: int = 256, *, shuffle: bool = False, augment: Augmentation | bool = False
    ) -> "TensorBatches":
        """The split in batches of `size` images.

        Args:
            size: images of a batch.
            shuffle: whether every pass has a new order.
            augment: random crops and flips, new in every pass; True is `Augmentation()`.

        Raises:
            OptionError: if `size` is less than 1, or images that validate or test would be augmented.
        """
        if size < 1:
            raise OptionError(f"a batch has at least 1 image, got size={size}")
        chosen = Augmentation() if augment is True else augment or None
        if chosen and self.held_out:
            raise OptionError("only training images are augmented; leave out augment= for validation and test")
        return TensorBatches(self, size, shuffle, chosen)


@dataclass(frozen=True, eq=False)
class TensorBatches:
    """A split cut into `(images, labels)` batches, from memory: far faster than a DataLoader for small images.

    A single image that is left over at the end is left out while shuffling: BatchNorm cannot train on it. The order
    and the augmentation are drawn from torch's random state on the CPU, so that they are the same on every device.
    """

    split: Split
    size: int
    shuffle: bool
    augmentation: Augmentation | None = None

    def __len__(self) -> int:
        count = len(self.split)
        return count // self.size if self.shuffle and count % self.size == 1 else -(-count // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count, device = len(self.split), self.split.labels.device
        order = (torch.randperm(count) if self.shuffle else torch.arange(count)).to(device)
        draws = None if self.augmentation is None else self.augmentation.draws(count).to(device)
        for start in range(0, len(self) * self.size, self.size):
            chosen = order[start : start + self.size]
            pixels = self.split.pixels[chosen]
            if self.augmentation is not None and draws is not None:
                pixels = self.augmentation.apply(pixels, draws[start : start + self.size])
            yield self.split.normalized(pixels), self.split.labels[chosen]


@dataclass(frozen=True, eq=False)
class Images:
    """A data set: train, choose on `validation`, and read `test` once."""

    name: str
    classes: int
    train: Split
    validation: Split
    test: Split

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width

    def split(self, name: str) -> Split:
        """One split by name.

        Raises:
            OptionError: if there is no such split.
        """
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        if name not in splits:
            raise OptionError(f"unknown split {name!r}; known: {', '.join(splits)}")
        return splits[name]

    def to(self, device: torch.device | str) -> "Images":
        """All splits on a device, where training then finds them without waiting."""
        splits = (self.train.to(device), self.validation.to(device), self.test.to(device))
        return replace(self, train=splits[0], validation=splits[1], test=splits[2])
