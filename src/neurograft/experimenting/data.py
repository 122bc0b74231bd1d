"""Labelled images as tensors, split once and for all by a seed: bundled digits, or local parquet files."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neurograft.errors import InputError, MissingExtra, OptionError

SPLIT_SEED = 0
"""Of the split into training, validation and test images: the same in every run, whatever seed trains on them."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images, float32 of shape `(samples, channels, height, width)`, and their classes, int64 of shape `(samples,)`."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int = 256, *, shuffle: bool = False) -> "TensorBatches":
        """The split in batches of `size` images; `shuffle` draws a new order in every pass."""
        return TensorBatches(self, size, shuffle)


@dataclass(frozen=True, eq=False)
class TensorBatches:
    """A split cut into `(images, labels)` batches, from memory: far faster than a DataLoader for small images.

    A single image that is left over at the end is left out while shuffling: BatchNorm cannot train on it. The order
    is drawn from torch's random state.
    """

    split: Split
    size: int
    shuffle: bool

    def __len__(self) -> int:
        count = len(self.split)
        return count // self.size if self.shuffle and count % self.size == 1 else -(-count // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.split)
        order = torch.randperm(count) if self.shuffle else torch.arange(count)
        for start in range(0, len(self) * self.size, self.size):
            chosen = order[start : start + self.size]
            yield self.split.images[chosen], self.split.labels[chosen]


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
        channels, height, width = self.train.images.shape[1:]
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


def load_images(source: str, *, samples: int | None = None) -> Images:
    """Load the bundled digits (`"digits"`), or a folder of parquet files such as MNIST or CIFAR-10.

    Pixels are scaled to 0…1, then shifted and scaled per channel to mean 0 and standard deviation 1 of the training
    images. A folder holds `train*.parquet` and `test*.parquet` with columns `image` (encoded bytes) and `label`;
    a fifth of its training images validate.

    Args:
        source: `"digits"` (1,797 scanned digits of 8 x 8 pixels that ship inside scikit-learn: 400 to train, 400 to
            validate, 997 to test, so that there is something left to gain) or a folder.
        samples: how many images to use for training and validation together, None for all.

    Raises:
        InputError: if the folder or its files are missing or cannot be read.
        MissingExtra: if scikit-learn, or pyarrow and pillow, are not installed.
    """
    return _digits(samples) if source == "digits" else _parquet(Path(source), samples)


def _digits(samples: int | None) -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("the bundled digits need scikit-learn: pip install 'neurograft[data]'") from error
    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
    classes = torch.from_numpy(labels).long()
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(SPLIT_SEED))
    test, rest = order[:997], order[997:]
    return _split("digits", (pixels[rest], classes[rest]), (pixels[test], classes[test]), samples, validation=400)


def _parquet(folder: Path, samples: int | None) -> Images:
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; --data takes 'digits' or a folder with train*.parquet, test*.parquet"
        )
    train, test = _read(folder, "train", samples), _read(folder, "test", None)
    return _split(folder.name, train, test, samples, validation=len(train[1]) // 5)


def _read(folder: Path, split: str, samples: int | None) -> tuple[Tensor, Tensor]:
    files = sorted(folder.glob(f"{split}*.parquet"))
    if not files:
        raise InputError(f"{folder} holds no {split}*.parquet; see docs/how-to-choose.md for the layout")
    pairs = list(_rows(files, samples))
    images = torch.stack([image for image, _ in pairs])
    return images, torch.tensor([label for _, label in pairs])


def _rows(files: list[Path], samples: int | None) -> Iterator[tuple[Tensor, int]]:
    try:
        import numpy
        from PIL import Image
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise MissingExtra("parquet files need pyarrow and pillow: pip install 'neurograft[data]'") from error
    count = 0
    for file in files:
        try:
            table = parquet.read_table(file, columns=["image", "label"])
        except (ArrowInvalid, OSError, KeyError) as error:
            raise InputError(f"{file} is no parquet file with columns image and label: {error}") from error
        for image, label in zip(table["image"], table["label"], strict=True):
            if count == samples:
                return
            pixels = torch.from_numpy(numpy.array(Image.open(io.BytesIO(image["bytes"].as_py())))).float() / 255
            yield (pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1)), label.as_py()
            count += 1


def _split(
    name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], samples: int | None, validation: int
) -> Images:
    images, labels = train
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))[:samples]
    held, rest = order[:validation], order[validation:]
    if len(rest) < 2 or len(held) < 1:
        raise InputError(f"{name} has {len(order)} images to train and validate on, which is too few")
    mean, deviation = images[rest].mean((0, 2, 3), keepdim=True), images[rest].std((0, 2, 3), keepdim=True)

    def standard(pixels: Tensor) -> Tensor:
        return (pixels - mean) / deviation

    return Images(
        name=name,
        classes=int(max(labels.max(), test[1].max())) + 1,
        train=Split(standard(images[rest]), labels[rest]),
        validation=Split(standard(images[held]), labels[held]),
        test=Split(standard(test[0]), test[1]),
    )
