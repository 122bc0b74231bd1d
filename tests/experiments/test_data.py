import pytest
import torch

from neurograft.errors import InputError, OptionError
from neurograft_experiments.data import Augmentation, Images, Split, load_images
from neurograft_experiments.data.pixels import Normalization


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


@pytest.fixture
def photos():
    """Bytes whose every pixel is another, as far as there are bytes."""
    return Split(torch.arange(10 * 3 * 4 * 5).remainder(251).to(torch.uint8).view(10, 3, 4, 5), torch.arange(10) % 2)


def test_bytes_are_normalised_batch_by_batch(photos):
    normalization = Normalization(*(torch.tensor(n).view(1, 3, 1, 1) for n in ((0.5, 0.25, 0.0), (0.5, 1.0, 2.0))))
    split = Split(photos.pixels, photos.labels, normalization)
    expected = photos.pixels.float() / 255
    for channel, (mean, deviation) in enumerate(((0.5, 0.5), (0.25, 1.0), (0.0, 2.0))):
        expected[:, channel] = (expected[:, channel] - mean) / deviation
    torch.testing.assert_close(split.images, expected)
    torch.testing.assert_close(split.examples(3), expected[:3])
    images, labels = zip(*split.batches(4), strict=True)
    torch.testing.assert_close(torch.cat(images), expected)
    assert torch.equal(torch.cat(labels), photos.labels)


def test_statistics_of_the_training_images(photos):
    scaled = photos.pixels.double() / 255
    for pixels in (photos.pixels, scaled.float()):
        found = Normalization.of(pixels)
        torch.testing.assert_close(found.mean.double(), scaled.mean((0, 2, 3), keepdim=True), rtol=1e-6, atol=0)
        torch.testing.assert_close(found.deviation.double(), scaled.std((0, 2, 3), keepdim=True), rtol=1e-6, atol=0)
    flat = Normalization.of(torch.full((2, 1, 2, 2), 7, dtype=torch.uint8))
    assert flat(torch.full((1, 1, 1, 1), 7, dtype=torch.uint8)).abs().item() < 1e-6


def test_subsets_keep_order_and_normalisation(photos):
    split = Split(photos.pixels, photos.labels, Normalization.of(photos.pixels), held_out=True)
    part = split.subset([7, 2])
    torch.testing.assert_close(part.images, split.images[[7, 2]])
    assert part.labels.tolist() == [1, 0]
    assert part.held_out
    with pytest.raises(InputError, match="a subset of 10 images needs at least one index"):
        split.subset([])


def test_crops_and_flips_are_those_of_a_loop(photos):
    augmentation = Augmentation(padding=2)
    draws = augmentation.draws(10)
    border = torch.nn.functional.pad(photos.pixels, (2, 2, 2, 2))
    for image, result, (row, column, flip) in zip(
        border, augmentation.apply(photos.pixels, draws), draws.tolist(), strict=True
    ):
        crop = image[:, row : row + 4, column : column + 5]
        assert torch.equal(result, crop.flip(2) if flip else crop)
    assert len(draws.unique(dim=0)) > 5


def test_draws_reach_every_crop_and_half_of_the_flips():
    draws = Augmentation(padding=1).draws(2000)
    assert [sorted(set(draws[:, i].tolist())) for i in range(3)] == [[0, 1, 2], [0, 1, 2], [0, 1]]
    assert 900 < draws[:, 2].sum() < 1100
    assert Augmentation(padding=0, flip=False).draws(5).sum() == 0


def test_augmented_batches_are_drawn_from_torchs_random_state(photos):
    batches = photos.batches(4, shuffle=True, augment=True)
    passes = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        passes.append([torch.cat([images for images, _ in batches]) for _ in range(2)])
    assert torch.equal(passes[0][0], passes[1][0])
    assert torch.equal(passes[0][1], passes[1][1])
    assert not torch.equal(passes[0][0], passes[0][1])
    assert not torch.equal(passes[0][0], passes[2][0])
    for (plain, labels), (moved, same) in zip(
        photos.batches(4), photos.batches(4, augment=Augmentation(0, False)), strict=True
    ):
        assert torch.equal(plain, moved)
        assert torch.equal(labels, same)


def test_only_training_images_are_augmented(photos):
    held = Split(photos.pixels, photos.labels, held_out=True)
    with pytest.raises(OptionError, match="only training images are augmented"):
        held.batches(4, augment=True)
    with pytest.raises(OptionError, match="at least 1 image, got size=0"):
        held.batches(0)
    images = load_images("digits")
    for split in (images.validation, images.test):
        assert split.held_out
    assert not images.train.held_out
    for wrong, message in (({"padding": -1}, "padding is a whole number"), ({"flip": 1}, "flip is True or False")):
        with pytest.raises(OptionError, match=message):
            Augmentation(**wrong)


def test_images_move_to_a_device_as_a_whole(photos):
    split = Split(photos.pixels, photos.labels, Normalization.of(photos.pixels))
    moved = Images("photos", 2, split, split, split).to("meta")
    for part in (moved.train, moved.validation, moved.test):
        assert {part.pixels.device.type, part.labels.device.type, part.normalization.mean.device.type} == {"meta"}
    assert (moved.shape, moved.name) == ((3, 4, 5), "photos")


@pytest.mark.parametrize(("samples", "sizes"), [(500, (250, 250)), (None, (400, 400))])
def test_samples_are_drawn_by_the_seed(samples, sizes):
    images, other = load_images("digits", samples=samples), load_images("digits", samples=samples, seed=1)
    assert (len(images.train), len(images.validation), len(images.test)) == (*sizes, 997)
    assert not torch.equal(images.train.labels, other.train.labels)


def test_the_share_that_validates():
    images = load_images("digits", validation=0.1)
    assert (len(images.train), len(images.validation)) == (720, 80)
    with pytest.raises(OptionError, match="validation is a share between 0 and 1, got 1"):
        load_images("digits", validation=1)
    with pytest.raises(InputError, match="digits has 2 images to train and validate on, which is too few"):
        load_images("digits", samples=2)
