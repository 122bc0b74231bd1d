"""Parts of the training images: disjoint, complete, seeded."""

import pytest
import torch

from neurograft.errors import InputError, OptionError
from neurograft_experiments.data import Split, label_groups, load_images, shards, special_class


def numbers(split):
    return split.pixels.flatten().long().tolist()


@pytest.fixture
def split():
    return Split(torch.arange(200.0).view(200, 1, 1, 1), torch.arange(200) % 10)


def test_a_class_that_only_one_member_sees(split):
    a, b = special_class(split, 4, share=0.1)
    assert sorted(numbers(a) + numbers(b)) == list(range(200))
    assert a.labels.eq(4).sum() == 20
    assert b.labels.eq(4).sum() == 0
    assert (len(a), len(b)) == (20 + 18, 162)
    assert len(a.labels[a.labels != 4].unique()) > 5
    again, other = special_class(split, 4)[1], special_class(split, 4, seed=1)[1]
    assert numbers(b) == numbers(again)
    assert set(numbers(b)) != set(numbers(other))


def test_the_papers_split_of_digits():
    train = load_images("digits").train
    a, b = special_class(train, 4)
    assert set(b.labels.tolist()) == set(range(10)) - {4}
    assert len(b) == round(0.9 * train.labels.ne(4).sum().item())
    torch.testing.assert_close(a.normalization.mean, train.normalization.mean)


def test_equal_shards(split):
    parts = shards(split, 3, seed=5)
    assert [len(part) for part in parts] == [67, 67, 66]
    assert sorted(number for part in parts for number in numbers(part)) == list(range(200))
    assert [numbers(part) for part in shards(split, 3, seed=5)] == [numbers(part) for part in parts]


@pytest.mark.parametrize("concentration", [0.1, 100.0])
def test_shards_of_other_classes(split, concentration):
    parts = shards(split, 2, concentration=concentration)
    assert sorted(number for part in parts for number in numbers(part)) == list(range(200))
    counts = torch.stack([part.labels.bincount(minlength=10) for part in parts])
    unequal = (counts[0] - counts[1]).abs().float().mean() / 20
    assert unequal > 0.5 if concentration < 1 else unequal < 0.3


@pytest.mark.parametrize(("count", "width"), [(2, 5), (3, 4), (5, 2), (10, 2), (20, 2)])
def test_members_have_few_classes_of_their_own(count, width):
    split = Split(torch.arange(2000.0).view(2000, 1, 1, 1), torch.arange(2000) % 10)
    parts = label_groups(split, count, seed=1)
    assert sorted(number for part in parts for number in numbers(part)) == list(range(2000))
    for member, part in enumerate(parts):
        own = {(member * width + offset) % 10 for offset in range(width)}
        share = sum(part.labels.eq(label).sum().item() for label in own) / len(part)
        assert share > 0.85
        assert share < 1
    assert all(label_groups(split, count, others=0, seed=1)[0].labels.bincount()[width:] == 0)
    assert [numbers(part) for part in label_groups(split, count, seed=1)] == [numbers(part) for part in parts]
    assert [numbers(part) for part in label_groups(split, count, seed=2)] != [numbers(part) for part in parts]


def test_parts_that_make_no_sense(split):
    for call, error, message in (
        (lambda: special_class(split, 10), InputError, "0 of 200 images have label 10"),
        (lambda: special_class(split, 1, share=0.0), OptionError, "share is between 0 and 1, got 0.0"),
        (lambda: shards(split, 0), OptionError, "count is a whole number of at least 1, got 0"),
        (lambda: shards(split, 201), InputError, "part 200 of 201 would hold none of the 200 images"),
        (lambda: label_groups(split, 1), OptionError, "count is a whole number of at least 2, got 1"),
        (lambda: label_groups(split, 2, others=1.5), OptionError, "others is between 0 and 1, got 1.5"),
        (lambda: label_groups(split, 900), InputError, "of 900 would hold none of the 200 images"),
        (lambda: shards(split, 2, concentration=0.0), OptionError, "concentration is above 0, got 0.0"),
    ):
        with pytest.raises(error, match=message):
            call()
