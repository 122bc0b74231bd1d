"""Load a data set by name, folder or hub name, and split it once and for all by a seed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from neurograft.errors import InputError, MissingExtra, OptionError, closest
from neurograft_experiments.data.images import Images, Split
from neurograft_experiments.data.pixels import Normalization
from neurograft_experiments.data.sources import Source, find_folder, find_on_hub

NormalizationSource: TypeAlias = Literal["train", "papers"]

SPLIT_SEED = 0
"""Of the split into training, validation and test images: the same in every run, whatever seed trains on them."""
VALIDATION = 0.2
DIGITS_TEST, DIGITS_VALIDATION = 997, 0.5


@dataclass(frozen=True, slots=True)
class Known:
    """A data set with a name here.

    Attributes:
        hub: its name on the hub.
        configuration: its configuration there, which is also the folder of its parquet files.
        shape: channels, height and width of its images.
        classes: how many.
        papers: mean and standard deviation of each channel, as both papers' code normalises; None if it does not use
            the data set.
    """

    hub: str
    configuration: str
    shape: tuple[int, int, int]
    classes: int
    papers: tuple[tuple[float, ...], tuple[float, ...]] | None


COLOURED = (3, 32, 32)
CIFAR100_PAPERS = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
KNOWN = {
    "mnist": Known("ylecun/mnist", "mnist", (1, 28, 28), 10, ((0.1307,), (0.3081,))),
    "fashion_mnist": Known("zalando-datasets/fashion_mnist", "fashion_mnist", (1, 28, 28), 10, None),
    "svhn": Known("ufldl-stanford/svhn", "cropped_digits", COLOURED, 10, ((0.0,) * 3, (1.0,) * 3)),
    "cifar10": Known("uoft-cs/cifar10", "plain_text", COLOURED, 10, ((0.5,) * 3, (0.5,) * 3)),
    "cifar100": Known("uoft-cs/cifar100", "cifar100", COLOURED, 100, CIFAR100_PAPERS),
}
"""Name in a study file and on the command line -> the data set. The bundled digits need no entry."""


def shape_of(source: str) -> tuple[tuple[int, int, int], int]:
    """Shape of an image and number of classes, guessed for a data set without a name here."""
    if source == "digits":
        return (1, 8, 8), 10
    return (KNOWN[source].shape, KNOWN[source].classes) if source in KNOWN else (COLOURED, 100)


def load_images(
    source: str | Path,
    *,
    samples: int | None = None,
    folder: str | Path | None = None,
    validation: float | None = None,
    normalization: NormalizationSource = "train",
    size: int | None = None,
    seed: int = SPLIT_SEED,
) -> Images:
    """Load labelled images as bytes in memory, split into train, validation and test.

    The validation images are a random part of the source's training images, never of its test images; the test images
    are the source's own, all of them. `"digits"` are 1,797 scanned digits of 8 x 8 pixels that ship inside
    scikit-learn: 400 to train, 400 to validate, 997 to test, so that there is something left to gain.

    Args:
        source: `"digits"`; `"mnist"`, `"fashion_mnist"`, `"svhn"`, `"cifar10"` or `"cifar100"`; a folder, see
            `find_folder` for what it may hold; or a name on the hub, `"org/name"`.
        samples: how many images to use for training and validation together, drawn at random by `seed` (not
            stratified), None for all.
        folder: where `source` is looked for first; then it is taken as a path, then as a name on the hub.
        validation: the share of the training images that validates; None for a fifth (half of the digits).
        normalization: "train" shifts and scales each channel to mean 0 and standard deviation 1 of the training images
            in use; "papers" takes the constants of both papers' code (MNIST and CIFAR-100: the published statistics;
            CIFAR-10: 0.5 and 0.5; SVHN: none, pixels from 0 to 1).
        size: side in pixels to which all images are brought; None to leave them as they are.
        seed: of the split and of `samples`.

    Raises:
        InputError: if files are missing, with where they were looked for and how to get them, or cannot be read.
        OptionError: for a value out of range, or a data set that is not known.
        MissingExtra: if scikit-learn or datasets are not installed.

    Example:
        >>> images = load_images("digits")
        >>> len(images.train), images.shape, images.train.examples(2).shape
        (400, (1, 8, 8), torch.Size([2, 1, 8, 8]))
    """
    if normalization not in ("train", "papers"):
        raise OptionError(
            f"normalization={normalization!r} is not known; {closest(str(normalization), ['train', 'papers'])}"
        )
    name, share = str(source), VALIDATION
    if name == "digits":
        pixels, labels = _digits(size)
        order = _order(len(labels), seed)
        test, rest = order[:DIGITS_TEST], order[DIGITS_TEST:]
        parts, share = ((pixels[rest], labels[rest]), (pixels[test], labels[test])), DIGITS_VALIDATION
    else:
        found = find(name, folder, seed)
        name, parts = found.name, found.read(size)
    return _split(name, *parts, samples, share if validation is None else validation, normalization, seed)


def find(name: str, folder: str | Path | None, seed: int) -> Source:
    """Find a data set in a folder or on the hub, without reading its images.

    Raises:
        InputError: if it is nowhere, with where it was looked for and how to get it.
        OptionError: if the name is none that could be anything.
    """
    known, named = KNOWN.get(name), KNOWN.get(Path(name).name)
    places = [*([Path(folder) / name] if folder is not None else []), Path(name)]
    for place in places:
        if place.is_dir():
            try:
                return find_folder(place, place.resolve().name, named.configuration if named else "data", seed)
            except InputError as error:
                raise InputError(f"{error}{_fetching(named.hub, place) if named else ''}") from error
    looked = f"no folder {' or '.join(str(place) for place in places)}"
    if known is None and not _hub_name(name):
        if len(Path(name).parts) > 1:
            raise InputError(f"{name}: no such folder")
        raise OptionError(
            f"unknown data set {name!r} ({looked}); {closest(name, ['digits', *KNOWN])}; or a folder, or a name on the "
            "hub as org/name"
        )
    hub, configuration = (known.hub, known.configuration) if known else (name, None)
    try:
        return find_on_hub(hub, configuration, name)
    except (InputError, MissingExtra) as error:
        raise type(error)(f"{name}: {looked}, and {error}{_fetching(hub, places[0])}") from error


def _fetching(hub: str, place: Path) -> str:
    return (
        f". Where there is a network, `hf download {hub} --repo-type dataset --local-dir {place}` fetches its parquet "
        "files (train*.parquet, test*.parquet)"
    )


def _hub_name(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~"))


def _digits(size: int | None) -> tuple[Tensor, Tensor]:
    if size not in (None, 8):
        raise OptionError(f"the bundled digits have 8 x 8 pixels; leave out size={size}")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("the bundled digits need scikit-learn: pip install 'neurograft[experiments]'") from error
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16, torch.from_numpy(labels).long()


def _order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _split(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    samples: int | None,
    share: float,
    statistics: NormalizationSource,
    seed: int,
) -> Images:
    if not 0 < share < 1:
        raise OptionError(f"validation is a share between 0 and 1, got {share!r}")
    pixels, labels = train
    order = _order(len(labels), seed)[:samples]
    count = round(share * len(order))
    held, rest = order[:count], order[count:]
    if len(rest) < 2 or len(held) < 1:
        raise InputError(f"{name} has {len(order)} images to train and validate on, which is too few")
    used = pixels[rest]
    normalization = Normalization.of(used) if statistics == "train" else _papers(name)
    return Images(
        name=name,
        classes=int(max(labels.max(), test[1].max())) + 1,
        train=Split(used, labels[rest], normalization),
        validation=Split(pixels[held], labels[held], normalization, held_out=True),
        test=Split(*test, normalization, held_out=True),
    )


def _papers(name: str) -> Normalization:
    known = KNOWN.get(name)
    if known is None or known.papers is None:
        have = ", ".join(key for key, value in KNOWN.items() if value.papers)
        raise OptionError(f"the papers have no normalization for {name}, only for {have}; use normalization='train'")
    mean, deviation = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in known.papers)
    return Normalization(mean, deviation)
