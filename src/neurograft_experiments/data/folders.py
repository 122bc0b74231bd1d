"""Data sets in local folders: parquet files, or images in a folder per class."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from neurograft.errors import InputError, MissingExtra
from neurograft_experiments.data.decoding import Found, Labelled

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label", "labels")
TEST_NAMES = ("test", "validation", "valid", "val")
"""What a test split may be called; a data set without a test split is tested on its validation split."""
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
TEST_SHARE = 0.2
"""Of an image folder that has no test split."""


def find_folder(folder: Path, name: str, configuration: str, seed: int) -> Found:
    """The data set that a folder holds.

    Parquet files `train*.parquet` and `test*.parquet`, in the folder itself, in `data`, or in the folder of the
    configuration, as on the hub; or `train/CLASS/…` and `test/CLASS/…` with image files; or `CLASS/…` alone, of which
    a fifth, drawn by `seed`, becomes the test split.

    Raises:
        InputError: with what is missing, if it holds none of these.
    """
    for place in (folder, folder / configuration, folder / "data"):
        train, test = _parquet_files(place, "train"), _test_files(place)
        if train and test:
            return Found(name, (*train, *test), partial(_read_both, train, test))
        if train:
            raise InputError(f"{place} holds {train[0].name} but no test*.parquet (nor {', '.join(TEST_NAMES[1:])})")
    tests = [folder / split for split in TEST_NAMES if (folder / split).is_dir()]
    if (folder / "train").is_dir() and tests:
        parts = [_classes(folder / "train"), _classes(tests[0])]
        _check_classes(parts[0], parts[1], tests[0])
        listed = [_listed(part, list(parts[0])) for part in parts]
        return Found(name, _paths(listed), lambda: (listed[0], listed[1]))
    classes = _classes(folder)
    if len(classes) > 1:
        whole = _listed(classes, list(classes))
        return Found(name, _paths([whole]), lambda: _cut(whole, seed))
    raise InputError(
        f"{folder} holds no train*.parquet and test*.parquet, and no folders of images per class; docs/data.md shows "
        "what a folder may look like"
    )


def read_parquet(files: Sequence[Path]) -> Labelled:
    """Encoded images and classes of parquet files.

    Raises:
        InputError: if a file cannot be read or has other columns.
        MissingExtra: if pyarrow is not installed.
    """
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise MissingExtra("parquet files need pyarrow: pip install 'neurograft[data]'") from error
    images: list[bytes] = []
    labels: list[int] = []
    for file in files:
        try:
            names = parquet.read_schema(file).names
            image, label = column(names, IMAGE_COLUMNS, str(file)), column(names, LABEL_COLUMNS, str(file))
            table = parquet.read_table(file, columns=[image, label])
        except (ArrowInvalid, OSError) as error:
            raise InputError(f"{file} is no parquet file: {error}") from error
        images += [cell["bytes"] for cell in table[image].to_pylist()]
        labels += table[label].to_pylist()
    return images, labels


def _read_both(train: Sequence[Path], test: Sequence[Path]) -> tuple[Labelled, Labelled]:
    return read_parquet(train), read_parquet(test)


def column(names: Sequence[str], wanted: Sequence[str], where: str) -> str:
    """The first of the wanted columns that is there.

    Raises:
        InputError: with all columns, if there is none.
    """
    for name in wanted:
        if name in names:
            return name
    raise InputError(f"{where} has no column {' or '.join(wanted)}; its columns are {', '.join(names)}")


def _parquet_files(place: Path, split: str) -> list[Path]:
    return sorted(place.glob(f"{split}*.parquet"))


def _test_files(place: Path) -> list[Path]:
    return next((files for split in TEST_NAMES if (files := _parquet_files(place, split))), [])


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Image files by the folder that holds them, both sorted."""
    found = {}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []:
        images = sorted(path for path in inner.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
        if images:
            found[inner.name] = images
    return found


def _check_classes(train: dict[str, list[Path]], test: dict[str, list[Path]], folder: Path) -> None:
    if not train or not test:
        raise InputError(f"{folder.parent}: train and {folder.name} must hold a folder of image files per class")
    unknown = sorted(set(test) - set(train))
    if unknown:
        raise InputError(f"{folder / unknown[0]} is a class that the training images do not have: {', '.join(train)}")


def _listed(classes: dict[str, list[Path]], order: list[str]) -> Labelled:
    pairs = [(path, order.index(name)) for name, paths in classes.items() for path in paths]
    return [path for path, _ in pairs], [label for _, label in pairs]


def _paths(parts: Sequence[Labelled]) -> tuple[Path, ...]:
    return tuple(image for images, _ in parts for image in images if isinstance(image, Path))


def _cut(whole: Labelled, seed: int) -> tuple[Labelled, Labelled]:
    images, labels = whole
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    count = round(TEST_SHARE * len(order))
    train, test = ([*sorted(part)] for part in (order[count:], order[:count]))
    return ([images[i] for i in train], [labels[i] for i in train]), (
        [images[i] for i in test],
        [labels[i] for i in test],
    )
