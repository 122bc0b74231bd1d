"""Where images come from: parquet files, folders per class, the hub; and that they are decoded once."""

import io
import subprocess
import sys
import threading
from types import ModuleType, SimpleNamespace

import numpy
import pytest
import torch
from PIL import Image

from neurograft.errors import InputError, MissingExtra, OptionError
from neurograft_experiments.data import KNOWN, keeping, load_images
from neurograft_experiments.data.decoding import Found, decode
from neurograft_experiments.data.hub import find_on_hub


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROGRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def picture(number, shape=(4, 5, 3)):
    """Pixels that tell their number."""
    return numpy.full(shape, number % 251, dtype=numpy.uint8)


def encoded(pixels, kind="PNG", **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def write_parquet(path, numbers, columns=("image", "label"), shape=(4, 5, 3)):
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": encoded(picture(number, shape)), "path": f"{number}.png"} for number in numbers]
    table = pyarrow.table({columns[0]: cells, columns[1]: [number % 3 for number in numbers]})
    parquet.write_table(table, path)


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
    with pytest.raises(InputError, match="train.parquet is no parquet file"):
        load_images(tmp_path)
    write_parquet(tmp_path / "train.parquet", range(3), ("picture", "label"))
    with pytest.raises(InputError, match="has no column image or img; its columns are picture, label"):
        load_images(tmp_path)
    write_classes(tmp_path / "animals" / "train", ("cat", "dog"), 2)
    write_classes(tmp_path / "animals" / "test", ("cat", "mouse"), 2)
    with pytest.raises(InputError, match="mouse is a class that the training images do not have: cat, dog"):
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


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "1", "LA"])
def test_pictures_of_every_kind(mode):
    grey = mode in ("L", "1", "LA")
    pixels = decode([encoded(numpy.asarray(Image.new("RGB", (5, 4), "white").convert(mode)))], "test")
    assert pixels.shape == (1, 1 if grey or mode == "P" else 3, 4, 5)
    assert pixels.unique().tolist() == [255] if mode != "P" else pixels.dtype == torch.uint8


def test_grey_among_colour_has_three_channels():
    pixels = decode([encoded(picture(3, (4, 5))), encoded(picture(7))], "test")
    assert pixels.shape == (2, 3, 4, 5)
    assert pixels[:, :, 0, 0].tolist() == [[3, 3, 3], [7, 7, 7]]


def test_sizes_and_files_that_do_not_fit(tmp_path):
    small, large = encoded(picture(1)), encoded(picture(2, (8, 8, 3)))
    with pytest.raises(InputError, match="different sizes: image 0 4 x 5 pixels, image 1 8 x 8; give size="):
        decode([small, large], "test")
    assert decode([small, large], "test", size=6).shape == (2, 3, 6, 6)
    with pytest.raises(InputError, match="test: image 1 cannot be decoded"):
        decode([small, small[:40]], "test")
    (tmp_path / "broken.png").write_bytes(b"broken")
    with pytest.raises(InputError, match="test: .*broken.png cannot be decoded"):
        decode([tmp_path / "broken.png"], "test")
    deep = encoded(numpy.full((4, 5), 40_000, dtype=numpy.uint16))
    with pytest.raises(InputError, match="more than 8 bits per pixel"):
        decode([deep], "test")
    found = Found("test", (), lambda: (([small], [0]), ([small, small], [0, -1])))
    with pytest.raises(InputError, match="test image 1 has label -1, no class"):
        found.decoded(None)


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


class FakeSplit:
    """As much of `datasets.Dataset` as is used."""

    def __init__(self, numbers, columns, image):
        self.features = {columns[0]: image(), "id": None, columns[1]: None}
        self.cache_files, self.decoding = [], True
        self.rows = {columns[1]: [number % 3 for number in numbers]}
        self.rows[columns[0]] = [{"bytes": encoded(picture(number)), "path": None} for number in numbers]

    def select_columns(self, names):
        return self

    def cast_column(self, name, feature):
        assert not feature.decode
        self.decoding = False
        return self

    def __getitem__(self, name):
        assert not self.decoding
        return self.rows[name]


@pytest.fixture
def hub(monkeypatch):
    """A hub in memory: `hub.asked` holds what was asked for, `hub.splits` what it gives."""
    module = ModuleType("datasets")
    module.Image = type("Image", (), {"__init__": lambda self, decode=True: setattr(self, "decode", decode)})
    state = SimpleNamespace(asked=[], splits=None, image=module.Image)

    def load_dataset(name, configuration=None):
        state.asked.append((name, configuration))
        if state.splits is None:
            raise ConnectionError(f"Couldn't reach {name!r} on the Hub\nmore")
        return state.splits

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return state


@pytest.mark.parametrize("name", [*KNOWN, "org/photos"])
def test_data_sets_of_the_hub(hub, name):
    columns = ("img", "fine_label") if name == "cifar100" else ("image", "label")
    hub.splits = {
        "train": FakeSplit(range(20), columns, hub.image),
        "test": FakeSplit(range(100, 103), columns, hub.image),
        "extra": None,
    }
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
    hub.splits = {"train": None, "extra": None}
    with pytest.raises(InputError, match="org/photos has no train and test split; its splits are train, extra"):
        load_images("org/photos")
    text = FakeSplit(range(3), ("text", "label"), lambda: None)
    hub.splits = {"train": text, "validation": text}
    with pytest.raises(InputError, match="org/texts has no column of images; its columns are text, id, label"):
        load_images("org/texts")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"cifar10: no folder cifar10, and .*pip install 'neurograft\[data\]'"):
        load_images("cifar10")


@pytest.mark.slow
def test_the_real_library_reads_a_repository_of_the_hub(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "arrow"))
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=3)})
    folder = tmp_path / "repository" / "data"
    folder.mkdir(parents=True)
    for name, wanted in (("train", range(20)), ("test", range(100, 103))):
        rows = {"img": [Image.fromarray(picture(n)) for n in wanted], "label": [n % 3 for n in wanted]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{name}-00000-of-00001.parquet")
    found = find_on_hub(str(tmp_path / "repository"), None, "org/photos")
    assert found.files
    assert all(file.suffix == ".arrow" for file in found.files)
    decoded = keeping.kept(found, None, 0)
    assert decoded.train_pixels[:, 0, 0, 0].tolist() == list(range(20))
    assert decoded.test_labels.tolist() == [1, 2, 0]
    assert len(list(keeping.kept_folder().glob("org-photos-*.safetensors"))) == 1


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """A small data set, and how often it was decoded."""
    write_parquet(tmp_path / "own" / "train.parquet", range(20))
    write_parquet(tmp_path / "own" / "test.parquet", range(3))
    calls, decoded = [], Found.decoded

    def counting(self, size):
        calls.append(size)
        return decoded(self, size)

    monkeypatch.setattr(Found, "decoded", counting)
    return tmp_path / "own", calls


def test_images_are_decoded_once(counted, cache):
    folder, calls = counted
    first, again = load_images(folder), load_images(folder, samples=10)
    assert len(calls) == 1
    assert [file.name.partition("-")[0] for file in cache.glob("*.safetensors")] == ["own"]
    assert set(numbers(again.train)) <= set(numbers(first.train) + numbers(first.validation))
    load_images(folder, size=3)
    assert calls == [None, 3]
    write_parquet(folder / "train.parquet", range(30))
    assert len(load_images(folder).train) == 24
    assert len(calls) == 3


def test_a_broken_file_is_written_again(counted, cache):
    folder, calls = counted
    load_images(folder)
    (file,) = cache.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    assert len(load_images(folder).train) == 16
    assert len(load_images(folder).train) == 16
    assert len(calls) == 2


def test_many_at_once_decode_once(counted, cache):
    folder, calls = counted
    found = []
    threads = [threading.Thread(target=lambda: found.append(numbers(load_images(folder).train))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(found) == 6
    assert all(one == found[0] for one in found)
    assert not list(cache.glob(".*part"))


@pytest.mark.slow
def test_many_processes_decode_once(counted, tmp_path):
    folder, _ = counted
    program = (
        "import sys; from neurograft_experiments.data import load_images; "
        "from neurograft_experiments.data.decoding import Found; decoded = Found.decoded\n"
        "def counting(self, size):\n"
        "    open(sys.argv[2], 'a').write('decoded ')\n"
        "    return decoded(self, size)\n"
        "Found.decoded = counting; print(len(load_images(sys.argv[1]).train))"
    )
    command = [sys.executable, "-c", program, str(folder), str(tmp_path / "log")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0].strip() for process in running] == ["16"] * 4
    assert (tmp_path / "log").read_text().split() == ["decoded"]


def test_without_a_place_to_keep_them_images_are_decoded_again(counted, tmp_path, monkeypatch):
    folder, calls = counted
    (tmp_path / "file").touch()
    monkeypatch.setenv("NEUROGRAFT_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        with pytest.warns(UserWarning, match="decoded images cannot be kept in .*set NEUROGRAFT_CACHE"):
            assert len(load_images(folder).train) == 16
    assert len(calls) == 2


def test_a_full_disk_costs_a_warning(counted, cache, monkeypatch):
    folder, _ = counted

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keeping, "save_file", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert len(load_images(folder).train) == 16
    assert not [file for file in cache.iterdir() if file.suffix != ".lock"]


def test_where_decoded_images_are_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("NEUROGRAFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert keeping.kept_folder() == tmp_path / "neurograft" / "images"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert keeping.kept_folder() == tmp_path / "home" / ".cache" / "neurograft" / "images"


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
