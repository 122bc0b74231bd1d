"""Data sets of the Hugging Face hub."""

from pathlib import Path
from typing import Any

from neurograft.errors import InputError, MissingExtra
from neurograft_experiments.data.decoding import Found, Labelled
from neurograft_experiments.data.folders import LABEL_COLUMNS, TEST_NAMES, column


def find_on_hub(hub: str, configuration: str | None, name: str) -> Found:
    """A data set of the hub, downloaded by `datasets` into its own cache the first time.

    The column of images is the one of type `Image`; classes are in `label`, `fine_label` or `labels`.

    Raises:
        InputError: if it cannot be loaded, has no training or test split, or no such columns.
        MissingExtra: if `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra(f"{hub} is on the hub, which needs datasets: pip install 'neurograft[data]'") from error
    try:
        splits = datasets.load_dataset(hub, configuration)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{hub} cannot be loaded from the hub: {reason}") from error
    test = next((split for split in TEST_NAMES if split in splits), None)
    if "train" not in splits or test is None:
        raise InputError(f"{hub} has no train and test split; its splits are {', '.join(splits)}")

    def read() -> tuple[Labelled, Labelled]:
        return _read(splits["train"], hub, datasets.Image), _read(splits[test], hub, datasets.Image)

    files = [Path(file["filename"]) for split in ("train", test) for file in splits[split].cache_files]
    return Found(name, tuple(files), read)


def _read(split: Any, hub: str, image_type: type) -> Labelled:
    pictures = [name for name, feature in split.features.items() if isinstance(feature, image_type)]
    if not pictures:
        raise InputError(f"{hub} has no column of images; its columns are {', '.join(split.features)}")
    label = column(list(split.features), LABEL_COLUMNS, hub)
    encoded = split.select_columns([pictures[0], label]).cast_column(pictures[0], image_type(decode=False))
    images = [cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]) for cell in encoded[pictures[0]]]
    return images, list(encoded[label])
