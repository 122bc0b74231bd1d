"""Where images come from, through `datasets`: parquet files, image files in a folder per class, or the hub."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor

from neurograft.errors import InputError, MissingExtra, NeurograftError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label", "labels")
TEST_NAMES = ("test", "validation", "valid", "val")
"""What a test split may be called; a data set without a test split is tested on its validation split."""
TEST_SHARE = 0.2
"""Of an image folder that has no test split."""
GREY = ("1", "L", "LA")
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, eq=False)
class Source:
    """A data set that was found, and not read yet: what people call it, and its training and test rows."""

    name: str
    load: Callable[[], tuple[Any, Any]]

    def read(self, size: int | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Training and test images, bytes of shape `(samples, channels, height, width)`, and their classes, int64.

        They are decoded once; `datasets` keeps the bytes in its cache.

        Args:
            size: side of the images in pixels (bilinear), or None to leave sizes alone.

        Raises:
            InputError: if files cannot be read or an image decoded, sizes differ, or labels are no classes.
        """
        try:
            rows = [self._decoded(split, size) for split in self.load()]
        except NeurograftError:
            raise
        except Exception as error:
            reason = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
            raise InputError(f"{self.name} cannot be read: {reason}") from error
        shapes = sorted({tuple(shape) for split in rows for shape in _cells(split, "shape")})
        if len({shape[:2] for shape in shapes}) > 1:
            found = ", ".join(f"{height} x {width}" for height, width, _ in shapes[:3])
            raise InputError(f"{self.name}: images have different sizes ({found}, …); give size= to bring all to one")
        channels = max(channels for _, _, channels in shapes)
        train, test = ((_stacked(split, channels), _labels(split, self.name)) for split in rows)
        if unknown := set(test[1].tolist()) - set(train[1].tolist()):
            raise InputError(f"{self.name}: the test images have classes that the training images lack: {unknown}")
        return train, test

    def _decoded(self, split: Any, size: int | None) -> Any:
        """A split with columns `pixels` (bytes), `shape` (height, width, channels) and `label`."""
        datasets = imported()
        pictures = [name for name, feature in split.features.items() if isinstance(feature, datasets.Image)]
        image = pictures[0] if pictures else _column(split, IMAGE_COLUMNS, self.name)
        label = _column(split, LABEL_COLUMNS, self.name)
        chosen = split.select_columns([image, label]).rename_columns({image: "image", label: "label"})
        decoding = chosen.cast_column("image", datasets.Image())
        return decoding.map(
            _pixels, batched=True, remove_columns=["image"], fn_kwargs={"name": self.name, "size": size}
        )


def imported() -> ModuleType:
    """The library `datasets`, quiet where there is no terminal.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("data sets need datasets: pip install 'neurograft[experiments]'") from error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    module: ModuleType = datasets
    return module


def find_folder(folder: Path, name: str, configuration: str, seed: int) -> Source:
    """The data set that a folder holds.

    Parquet files `train*.parquet` and `test*.parquet`, in the folder itself, in `data`, or in the folder of the
    configuration, as on the hub; or `train/CLASS/…` and `test/CLASS/…` with image files; or `CLASS/…` alone, of which
    a fifth, drawn by `seed`, becomes the test split.

    Raises:
        InputError: with what is missing, if it holds none of these.
    """
    for place in (folder, folder / configuration, folder / "data"):
        train = sorted(map(str, place.glob("train*.parquet")))
        test = next((found for split in TEST_NAMES if (found := sorted(map(str, place.glob(f"{split}*.parquet"))))), [])
        if train and test:
            return Source(name, partial(_loaded, "parquet", data_files={"train": train, "test": test}))
        if train:
            raise InputError(f"{place} holds {Path(train[0]).name} but no test*.parquet, nor {TEST_NAMES[1]}*.parquet")
    tests = [folder / split for split in TEST_NAMES if (folder / split).is_dir()]
    if (folder / "train").is_dir() and tests:
        files = {"train": f"{folder / 'train'}/**", "test": f"{tests[0]}/**"}
        return Source(name, partial(_loaded, "imagefolder", data_files=files, drop_labels=False))
    if len([inner for inner in folder.iterdir() if inner.is_dir() and any(inner.rglob("*.*"))]) > 1:
        return Source(name, partial(_cut, folder, seed))
    raise InputError(
        f"{folder} holds no train*.parquet and test*.parquet, and no folders of images per class; docs/data.md shows "
        "what a folder may look like"
    )


def find_on_hub(hub: str, configuration: str | None, name: str) -> Source:
    """A data set of the hub, downloaded by `datasets` into its own cache the first time.

    The column of images is the one of type `Image`; classes are in `label`, `fine_label` or `labels`.

    Raises:
        InputError: if it cannot be loaded, or has no training or test split.
    """
    try:
        splits = imported().load_dataset(hub, configuration)
    except MissingExtra:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{hub} cannot be loaded from the hub: {reason}") from error
    test = next((split for split in TEST_NAMES if split in splits), None)
    if "train" not in splits or test is None:
        raise InputError(f"{hub} has no train and test split; its splits are {', '.join(splits)}")
    return Source(name, lambda: (splits["train"], splits[test]))


def _loaded(kind: str, **options: Any) -> tuple[Any, Any]:
    splits = imported().load_dataset(kind, **options)
    return splits["train"], splits["test"]


def _cut(folder: Path, seed: int) -> tuple[Any, Any]:
    """Image files without a test split, cut in two."""
    whole = imported().load_dataset("imagefolder", data_files=f"{folder}/**", drop_labels=False)["train"]
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed)).tolist()
    count = round(TEST_SHARE * len(order))
    return whole.select(sorted(order[count:])), whole.select(sorted(order[:count]))


def _column(split: Any, wanted: Sequence[str], name: str) -> str:
    for column in wanted:
        if column in split.features:
            return column
    raise InputError(f"{name} has no column {' or '.join(wanted)}; its columns are {', '.join(split.features)}")


def _pixels(batch: dict[str, Any], name: str, size: int | None) -> dict[str, Any]:
    found: dict[str, list[Any]] = {"pixels": [], "shape": []}
    for picture in batch["image"]:
        if picture.mode in DEEP:
            raise InputError(f"{name}: an image has more than 8 bits per pixel (mode {picture.mode}); convert it first")
        image = picture.convert("L" if picture.mode in GREY else "RGB")
        array = numpy.asarray(image if size is None else image.resize((size, size), 2))  # 2: bilinear
        found["pixels"].append(array.tobytes())
        found["shape"].append([*array.shape[:2], array.size // (array.shape[0] * array.shape[1])])
    return found


def _cells(split: Any, column: str) -> list[Any]:
    cells: list[Any] = split.data.column(column).to_pylist()
    return cells


def _stacked(split: Any, channels: int) -> Tensor:
    """All images of a split; grey ones among coloured ones have three equal channels."""
    cells, shapes = _cells(split, "pixels"), _cells(split, "shape")
    if any(shape[2] != channels for shape in shapes):
        arrays = [numpy.frombuffer(cell, numpy.uint8).reshape(shape) for cell, shape in zip(cells, shapes, strict=True)]
        cells = [numpy.broadcast_to(array, (*array.shape[:2], channels)).tobytes() for array in arrays]
    height, width, _ = shapes[0]
    pixels = torch.frombuffer(bytearray(b"".join(cells)), dtype=torch.uint8)
    return pixels.view(len(cells), height, width, channels).permute(0, 3, 1, 2).contiguous()


def _labels(split: Any, name: str) -> Tensor:
    labels = torch.tensor(_cells(split, "label"))
    if not len(labels) or labels.min() < 0:
        raise InputError(f"{name}: image {int(labels.argmin())} has label {int(labels.min())}, no class")
    return labels.long()
