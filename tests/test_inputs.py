"""Batches: how they are taken apart, and what is said of those that a network cannot take."""

import re

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import neurograft as ng
from neurograft.errors import InputError, OptionError
from neurograft.inputs import split_labels

PAIR = re.escape("a pair is read as (inputs, labels); write ((x, c), labels) or a dict")


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.condition, self.head = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.image(x) + self.condition(c)))
        return out


def test_pairs_are_inputs_and_labels_and_a_tuple_in_a_tuple_is_inputs() -> None:
    assert split_labels((1, 2)) == (1, 2)
    assert split_labels(((1, 2), 3)) == split_labels([[1, 2], 3]) == ((1, 2), 3)
    assert split_labels(((1, 2),)) == split_labels([[1, 2]]) == ((1, 2), None)
    assert split_labels((1,)) == split_labels([1]) == ((1,), None)
    assert split_labels((1, 2, 3)) == ((1, 2, 3), None)


def test_a_pair_for_a_network_of_two_inputs_says_how_to_write_it() -> None:
    nets = [TwoInputs() for _ in "ab"]
    x, c, labels = torch.randn(6, 4), torch.randn(6, 3), torch.randint(2, (6,))
    fused = ng.fuse(nets, (x, c), "average")
    plan = ng.plan(nets, (x, c), "average")
    for use in (
        lambda batches: ng.evaluate(fused, batches),
        lambda batches: ng.finetune(fused, batches, epochs=1),
        lambda batches: ng.distill(fused, nets, batches, epochs=1),
        lambda batches: ng.refit(fused, plan, nets, batches),
    ):
        with pytest.raises(InputError, match=PAIR):
            use([(x, c)])
    loader = DataLoader([((x[i], c[i]), labels[i]) for i in range(6)], batch_size=3)  # makes lists of the tuples
    assert ng.evaluate(fused, loader).samples == 6
    assert isinstance(ng.finetune(fused, loader, epochs=1), TwoInputs)
    assert isinstance(ng.distill(fused, nets, [((x, c),)], epochs=1), TwoInputs)
    assert isinstance(ng.refit(fused, plan, nets, [((x, c),)]), TwoInputs)


def test_what_is_no_network_is_named() -> None:
    nets, x = [nn.Linear(4, 2) for _ in "ab"], torch.randn(3, 4)
    batches = [(x, torch.tensor([0, 1, 1]))]
    for use in (
        lambda: ng.trace(nets, x),  # type: ignore[arg-type]
        lambda: ng.evaluate(nets, batches),  # type: ignore[arg-type]
        lambda: ng.finetune(nets, batches),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError, match=r"model is a list, not a torch.nn.Module"):
            use()
    with pytest.raises(InputError, match=r"student is a list, not a torch.nn.Module"):
        ng.distill(nets, nets, batches)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"models must be a list of networks, not Sequential"):
        ng.Ensemble(nn.Sequential(*nets))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"models\[1\] is a str, not a torch.nn.Module"):
        ng.Ensemble([nets[0], "b"])  # type: ignore[list-item]


@pytest.fixture
def rows():
    """Batches as `datasets` gives them: mappings with keys of their own."""
    return [{"image": torch.rand(6, 4), "label": torch.randint(3, (6,))} for _ in range(3)]


def test_batches_with_keys_of_their_own(rows):
    nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in "ab"]
    pairs = [(row["image"], row["label"]) for row in rows]
    prepared = ng.PreparedBatches(rows, inputs="image", labels="label")
    assert len(prepared) == 3
    assert ng.evaluate(nets[0], prepared).loss == ng.evaluate(nets[0], pairs).loss
    x = pairs[0][0]
    one, other = (ng.fuse(nets, x, "optimal_transport", calibration=batches) for batches in (prepared, pairs))
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
    one, other = (ng.finetune(nets[0], batches, epochs=2) for batches in (prepared, pairs))
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_several_keys_are_keyword_arguments(rows):
    batches = ng.PreparedBatches(rows, inputs=["image"], labels="label")
    assert [list(inputs) for inputs, _ in batches] == [["image"]] * 3
    assert all(labels is row["label"] for (_, labels), row in zip(batches, rows, strict=True))


def test_a_function_prepares_what_a_shuffling_loader_gives():
    images = torch.arange(32, dtype=torch.uint8).reshape(8, 4)
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(images, batch_size=3, shuffle=True, generator=generator)
    before = generator.get_state()
    prepared = ng.PreparedBatches(loader, lambda batch: (batch.float() / 255, batch[:, 0].long() % 3))
    ng.evaluate(nn.Linear(4, 3), prepared)
    assert torch.equal(generator.get_state(), before)
    assert sorted(float(x) for inputs, _ in prepared for x in inputs.flatten()) == [
        float(x) for x in (images.float() / 255).flatten()
    ]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda rows: ng.PreparedBatches(rows), OptionError, "pass either prepare"),
        (lambda rows: ng.PreparedBatches(rows, abs, inputs="image"), OptionError, "pass either prepare"),
        (lambda rows: ng.PreparedBatches(rows, abs, labels="label"), OptionError, "labels= is a key beside inputs="),
        (lambda rows: ng.PreparedBatches(iter(rows), inputs="image"), InputError, "one-shot list_iterator"),
        (lambda rows: list(ng.PreparedBatches(rows, inputs="imag")), InputError, "no 'imag'; did you mean 'image'"),
        (lambda rows: list(ng.PreparedBatches([rows], inputs="image")), InputError, "batch 0 is a list, no mapping"),
        (lambda rows: ng.evaluate(nn.Linear(4, 3), rows), InputError, "its keys are image, label: .*PreparedBatches"),
        (
            lambda rows: ng.finetune(nn.Linear(4, 3), rows, epochs=1),
            InputError,
            "its keys are image, label: .*PreparedBatches",
        ),
    ],
)
def test_wrong_keys_are_named(rows, make, error, message):
    with pytest.raises(error, match=message):
        make(rows)
