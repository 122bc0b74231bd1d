import pytest
import torch

from neurograft.errors import InputError, OptionError
from neurograft.experimenting.data import load_images


def test_digits_are_split_once_and_for_all():
    images, again = load_images("digits"), load_images("digits")
    assert (len(images.train), len(images.validation), len(images.test)) == (400, 400, 997)
    assert (images.shape, images.classes) == ((1, 8, 8), 10)
    assert torch.equal(images.test.images, again.test.images)
    rows = torch.cat([images.train.images, images.validation.images, images.test.images]).flatten(1)
    assert len(rows.unique(dim=0)) == 1797


def test_pixels_are_standardised_on_the_training_images():
    images = load_images("digits").train.images
    torch.testing.assert_close(images.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.std(), torch.tensor(1.0), atol=1e-5, rtol=0)


def test_a_split_has_a_name():
    images = load_images("digits")
    assert images.split("test") is images.test
    with pytest.raises(OptionError, match="unknown split 'tset'; known: train, validation, test"):
        images.split("tset")


def test_shuffled_batches_have_no_single_image_at_the_end():
    train = load_images("digits").train
    shuffled, ordered = train.batches(19, shuffle=True), train.batches(19)
    sizes = [len(labels) for _, labels in shuffled]
    assert (sum(sizes), len(sizes), min(sizes)) == (399, len(shuffled), 19)
    assert [len(labels) for _, labels in ordered] == [19] * 21 + [1]
    assert len(ordered) == 22


def test_every_pass_has_a_new_order_and_every_image_once():
    train = load_images("digits").train
    batches = train.batches(32, shuffle=True)
    first, second = (torch.cat([images for images, _ in batches]) for _ in range(2))
    assert not torch.equal(first, second)
    for images in (first, second):
        torch.testing.assert_close(images.flatten(1).unique(dim=0), train.images.flatten(1).unique(dim=0))
    torch.testing.assert_close(torch.cat([images for images, _ in train.batches(32)]), train.images)


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("mnist", (1, 28, 28), 10), pytest.param("cifar10", (3, 32, 32), 10, marks=pytest.mark.slow)],
)
def test_parquet_folders(shared, name, shape, classes):
    images = load_images(str(shared / "data" / name), samples=500)
    assert (len(images.train), len(images.validation), len(images.test)) == (400, 100, 10000)
    assert (images.name, images.shape, images.classes) == (name, shape, classes)
    torch.testing.assert_close(images.train.images.mean((0, 2, 3)), torch.zeros(shape[0]), atol=1e-4, rtol=0)


def test_missing_folder_and_files(tmp_path):
    with pytest.raises(InputError, match="no such folder; --data takes 'digits' or a folder"):
        load_images(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"holds no train\*.parquet"):
        load_images(str(tmp_path))
    (tmp_path / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match="train.parquet is no parquet file with columns image and label"):
        load_images(str(tmp_path))
