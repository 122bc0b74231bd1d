"""Where images come from: parquet files, folders per class, the hub; and that they are decoded once."""

import io
import sys

import datasets
import numpy
import pytest
import torch
from PIL import Image

from neurograft.errors import InputError, MissingExtra, OptionError
from neurograft_experiments.data import KNOWN, load_images, sources


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def picture(number, shape=(4, 5, 3)):
    """Pixels that tell their number."""
    return numpy.full(shape, number % 251, dtype=numpy.uint8)


def encoded(pixels, kind="PNG", **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def write_parquet(path, numbers, columns=("image", "label"), shape=(4, 5, 3)):
    write_cells(path, [encoded(picture(number, shape)) for number in numbers], [n % 3 for n in numbers], columns)


def write_cells(path, cells, labels, columns=("image", "label")):
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [{"bytes": cell, "path": f"{number}.png"} for number, cell in enumerate(cells)]
    parquet.write_table(pyarrow.table({columns[0]: pictures, columns[1]: list(labels)}), path)


def numbers(split):
    return split.pixels[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("name", "inner", "columns"),
    [
        ("own", ".", ("image", "label")),
        ("cifar10", "plain_text", ("img", "label")),
        ("cifar100", "cifar100", ("img", "fine_label")),
        ("svhn", "cropped_digits", ("image", "label")),
        ("own", "data", ("image", "labels")),
    ],
)
def test_parquet_files_as_they_lie_on_the_hub(tmp_path, name, inner, columns):
    folder = tmp_path / "data sets" / name
    write_parquet(folder / inner / "train-00000-of-00002.parquet", range(12), columns)
    write_parquet(folder / inner / "train-00001-of-00002.parquet", range(12, 20), columns)
    write_parquet(folder / inner / "test-00000-of-00001.parquet", range(100, 105), columns)
    by_name = load_images(name, folder=tmp_path / "data sets")
    images = load_images(folder)
    assert (images.name, images.classes, images.shape) == (name, 3, (3, 4, 5))
    assert sorted(numbers(images.train) + numbers(images.validation)) == list(range(20))
    assert numbers(images.test) == list(range(100, 105))
    assert len(images.validation) == 4
    assert images.train.labels.tolist() == [number % 3 for number in numbers(images.train)]
    assert images.train.pixels.dtype == torch.uint8
    assert numbers(by_name.train) == numbers(images.train)
    torch.testing.assert_close(images.train.images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_samples_are_a_random_part(tmp_path):
    write_parquet(tmp_path / "train.parquet", range(200))
    write_parquet(tmp_path / "test.parquet", range(5))
    images = load_images(tmp_path, samples=20)
    chosen = numbers(images.train) + numbers(images.validation)
    assert (len(images.train), len(images.validation), len(images.test)) == (16, 4, 5)
    assert len(set(chosen)) == 20
    assert max(chosen) > 100  # not the first rows
    assert chosen == numbers(load_images(tmp_path, samples=20).train) + numbers(
        load_images(tmp_path, samples=20).validation
    )


def write_classes(folder, classes, count, start=0):
    for position, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(picture(start + 10 * position + number)).save(folder / name / f"{number}.png")


def test_a_folder_per_class(tmp_path):
    write_classes(tmp_path / "train", ("cat", "dog"), 5)
    write_classes(tmp_path / "val", ("cat", "dog"), 2, start=100)
    images = load_images(tmp_path)
    assert (images.classes, len(images.train), len(images.validation)) == (2, 8, 2)
    assert images.train.labels.tolist() == [number // 10 for number in numbers(images.train)]
    assert numbers(images.test) == [100, 101, 110, 111]
    assert images.test.labels.tolist() == [0, 0, 1, 1]


def test_a_folder_per_class_without_a_test_split(tmp_path):
    write_classes(tmp_path, ("cat", "dog", "mouse"), 10)
    images, again = load_images(tmp_path), load_images(tmp_path)
    assert (len(images.train), len(images.validation), len(images.test)) == (19, 5, 6)
    assert sorted(numbers(images.train) + numbers(images.validation) + numbers(images.test)) == list(range(30))
    assert numbers(images.test) == numbers(again.test) != numbers(load_images(tmp_path, seed=1).test)
    assert images.test.labels.tolist() == [number // 10 for number in numbers(images.test)]


def test_what_a_folder_lacks_is_said(tmp_path):
    with pytest.raises(InputError, match=r"holds no train\*.parquet and test\*.parquet, and no folders of images"):
        load_images(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match=r"holds train.parquet but no test\*.parquet"):
        load_images(tmp_path)
    (tmp_path / "test.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match="cannot be read: Parquet magic bytes not found in footer"):
        load_images(tmp_path)
    for name in ("train", "test"):
        write_parquet(tmp_path / f"{name}.parquet", range(3), ("picture", "label"))
    with pytest.raises(InputError, match="has no column image or img; its columns are picture, label"):
        load_images(tmp_path)
    write_classes(tmp_path / "animals" / "train", ("cat", "dog"), 2)
    write_classes(tmp_path / "animals" / "test", ("cat", "mouse"), 2)
    with pytest.raises(InputError, match=r"animals: the test images have classes that the training images lack: \{2\}"):
        load_images(tmp_path / "animals")
    (tmp_path / "svhn").mkdir()
    with pytest.raises(InputError, match=r"svhn holds no train.* `hf download ufldl-stanford/svhn .*/svhn` fetches"):
        load_images("svhn", folder=tmp_path)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        load_images(tmp_path / "nowhere")


def test_names_that_are_none():
    with pytest.raises(OptionError, match=r"unknown data set 'mnits' \(no folder .*mnits\); did you mean 'mnist'"):
        load_images("mnits", folder="somewhere")
    with pytest.raises(OptionError, match="normalization='paper' is not known; did you mean 'papers'"):
        load_images("digits", normalization="paper")
    with pytest.raises(OptionError, match="8 x 8 pixels; leave out size=16"):
        load_images("digits", size=16)


def decoded(folder, *cells, size=None):
    """The pixels of encoded images."""
    write_cells(folder / "train.parquet", [encoded(picture(0))] * 3, [0, 1, 2])
    write_cells(folder / "test.parquet", cells, [0] * len(cells))
    return load_images(folder, size=size).test.pixels


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_pictures_of_every_kind(tmp_path, mode):
    pixels = decoded(tmp_path, encoded(numpy.asarray(Image.new("RGB", (5, 4), "white").convert(mode))))
    assert (pixels.shape, pixels.dtype) == ((1, 3, 4, 5), torch.uint8)
    assert mode == "P" or pixels.unique().tolist() == [255]


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_pictures_have_one_channel(tmp_path, mode):
    cell = encoded(numpy.asarray(Image.new("RGB", (5, 4), "white").convert(mode)))
    for name in ("train", "test"):
        write_cells(tmp_path / f"{name}.parquet", [cell] * 3, [0, 1, 2])
    assert load_images(tmp_path).shape == (1, 4, 5)


def test_grey_among_colour_has_three_channels(tmp_path):
    pixels = decoded(tmp_path, encoded(picture(3, (4, 5))), encoded(picture(7)))
    assert pixels.shape == (2, 3, 4, 5)
    assert pixels[:, :, 0, 0].tolist() == [[3, 3, 3], [7, 7, 7]]


def test_sizes_and_files_that_do_not_fit(tmp_path):
    small, large = encoded(picture(1)), encoded(picture(2, (8, 8, 3)))
    with pytest.raises(InputError, match=r"different sizes \(4 x 5, 8 x 8, …\); give size="):
        decoded(tmp_path / "sizes", small, large)
    assert decoded(tmp_path / "sizes", small, large, size=6).shape == (2, 3, 6, 6)
    with pytest.raises(InputError, match="broken cannot be read: .*truncated|broken cannot be read: .*identify"):
        decoded(tmp_path / "broken", small, small[:40])
    deep = encoded(numpy.full((4, 5), 40_000, dtype=numpy.uint16))
    with pytest.raises(InputError, match="more than 8 bits per pixel"):
        decoded(tmp_path / "deep", deep)
    write_cells(tmp_path / "labels" / "train.parquet", [small] * 3, [0, 1, 2])
    write_cells(tmp_path / "labels" / "test.parquet", [small, small], [0, -1])
    with pytest.raises(InputError, match="labels: image 1 has label -1, no class"):
        load_images(tmp_path / "labels")


def test_the_papers_normalisation(tmp_path):
    for name, shape, mean, deviation in (
        ("mnist", (4, 5), 0.1307, 0.3081),
        ("cifar10", (4, 5, 3), 0.5, 0.5),
        ("svhn", (4, 5, 3), 0.0, 1.0),
    ):
        write_parquet(tmp_path / name / "train.parquet", range(20), shape=shape)
        write_parquet(tmp_path / name / "test.parquet", [51], shape=shape)
        images = load_images(name, folder=tmp_path, normalization="papers")
        expected = torch.full_like(images.test.images, (51 / 255 - mean) / deviation)
        torch.testing.assert_close(images.test.images, expected)
    write_parquet(tmp_path / "fashion_mnist" / "train.parquet", range(20), shape=(4, 5))
    write_parquet(tmp_path / "fashion_mnist" / "test.parquet", [51], shape=(4, 5))
    with pytest.raises(
        OptionError, match="no normalization for fashion_mnist, only for mnist, svhn, cifar10, cifar100"
    ):
        load_images("fashion_mnist", folder=tmp_path, normalization="papers")


def rows(numbers, columns=("image", "label")):
    features = {columns[0]: datasets.Image(), columns[1]: datasets.ClassLabel(num_classes=3)}
    pictures = {columns[0]: [Image.fromarray(picture(n)) for n in numbers], columns[1]: [n % 3 for n in numbers]}
    return datasets.Dataset.from_dict(pictures, features=datasets.Features(features))


@pytest.fixture
def hub(monkeypatch):
    """What the hub was asked for; `given` is what it has."""

    class Hub:
        asked, given = [], None

    def load_dataset(name, configuration):
        Hub.asked.append((name, configuration))
        if Hub.given is None:
            raise ConnectionError(f"Couldn't reach {name!r} on the Hub\nmore")
        return Hub.given

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    Hub.asked.clear()
    return Hub


@pytest.mark.parametrize("name", [*KNOWN, "org/photos"])
def test_data_sets_of_the_hub(hub, name):
    columns = ("img", "fine_label") if name == "cifar100" else ("image", "label")
    hub.given = {"train": rows(range(20), columns), "test": rows(range(100, 103), columns), "extra": None}
    images = load_images(name)
    known = KNOWN.get(name)
    assert hub.asked == [(known.hub, known.configuration) if known else ("org/photos", None)]
    assert sorted(numbers(images.train) + numbers(images.validation)) == list(range(20))
    assert numbers(images.test) == [100, 101, 102]
    assert (images.name, images.classes) == (name, 3)


def test_what_the_hub_lacks_is_said(hub, monkeypatch):
    with pytest.raises(
        InputError,
        match=r"svhn: no folder /data/svhn or svhn, and ufldl-stanford/svhn cannot be loaded from the hub: Couldn't "
        r"reach .*`hf download ufldl-stanford/svhn --repo-type dataset --local-dir /data/svhn`",
    ):
        load_images("svhn", folder="/data")
    hub.given = {"train": None, "extra": None}
    with pytest.raises(InputError, match="org/photos has no train and test split; its splits are train, extra"):
        load_images("org/photos")
    text = datasets.Dataset.from_dict({"text": ["a"], "id": [1], "label": [0]})
    hub.given = {"train": text, "validation": text}
    with pytest.raises(InputError, match="org/texts has no column image or img; its columns are text, id, label"):
        load_images("org/texts")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"cifar10: no folder cifar10, and .*'neurograft\[experiments\]'"):
        load_images("cifar10")


def test_a_repository_of_the_hub_is_read_as_it_lies_there(tmp_path):
    folder = tmp_path / "repository" / "data"
    folder.mkdir(parents=True)
    for name, wanted in (("train", range(20)), ("test", range(100, 103))):
        rows(wanted, ("img", "label")).to_parquet(folder / f"{name}-00000-of-00001.parquet")
    train, test = sources.find_on_hub(str(tmp_path / "repository"), None, "org/photos").read(None)
    assert train[0][:, 0, 0, 0].tolist() == list(range(20))
    assert test[1].tolist() == [1, 2, 0]


def test_images_are_decoded_once(tmp_path, monkeypatch):
    write_parquet(tmp_path / "train.parquet", range(20))
    write_parquet(tmp_path / "test.parquet", range(3))
    first = load_images(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(datasets.Image, "decode_example", None)
        again = load_images(tmp_path, samples=10)
        assert set(numbers(again.train)) <= set(numbers(first.train) + numbers(first.validation))
    assert load_images(tmp_path, size=3).shape == (3, 3, 3)
    write_parquet(tmp_path / "train.parquet", range(30))
    assert len(load_images(tmp_path).train) == 24


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "classes", "mean"),
    [("mnist", (1, 28, 28), 10, [0.1307]), ("cifar100", (3, 32, 32), 100, [0.5071, 0.4865, 0.4409])],
)
def test_the_data_sets_beside_the_project(shared, name, shape, classes, mean):
    images = load_images(name, folder=shared / "data")
    sizes = (len(images.train), len(images.validation), len(images.test))
    assert sizes == ((48_000, 12_000, 10_000) if name == "mnist" else (40_000, 10_000, 10_000))
    assert (images.name, images.shape, images.classes) == (name, shape, classes)
    torch.testing.assert_close(images.train.normalization.mean.flatten(), torch.tensor(mean), atol=2e-3, rtol=0)
