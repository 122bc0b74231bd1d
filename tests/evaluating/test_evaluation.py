import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from neurograft.errors import InputError
from neurograft.evaluating.ensemble import Ensemble
from neurograft.evaluating.evaluation import evaluate


class Logits(nn.Module):
    """Answers with its input, as a mapping, the way Hugging Face models do."""

    def forward(self, logits):
        return {"loss": torch.zeros(()), "logits": logits}


def batches(outputs, labels, size):
    return list(zip(outputs.split(size), labels.split(size), strict=True))


def test_scores_match_their_definitions():
    outputs, labels = torch.randn(100, 7), torch.randint(7, (100,))
    scores = evaluate(nn.Identity(), batches(outputs, labels, 100))
    confidence, output = outputs.double().softmax(-1).max(-1)
    right = (output == labels).double()
    error = sum(
        float((right[inside] - confidence[inside]).sum().abs())
        for b in range(15)
        if (inside := (confidence >= b / 15) & (confidence < (b + 1) / 15)).any()
    )
    assert scores.samples == 100
    assert scores.accuracy == pytest.approx(float(right.mean()), abs=1e-12)
    assert scores.loss == pytest.approx(float(nn.functional.cross_entropy(outputs.double(), labels)), abs=1e-9)
    assert scores.calibration_error == pytest.approx(error / 100, abs=1e-9)
    assert math.isnan(scores.metric)


@pytest.mark.parametrize("size", [1, 7, 33])
def test_batch_size_does_not_change_scores(size):
    outputs, labels = torch.randn(50, 3), torch.randint(3, (50,))
    whole = evaluate(nn.Identity(), batches(outputs, labels, 50))
    parts = evaluate(nn.Identity(), batches(outputs, labels, size))
    assert (parts.accuracy, parts.samples) == (whole.accuracy, whole.samples)
    assert parts.loss == pytest.approx(whole.loss, abs=1e-12)
    assert parts.calibration_error == pytest.approx(whole.calibration_error, abs=1e-12)


@pytest.mark.parametrize(
    ("shape", "labels"),
    [((6, 4), (6,)), ((6, 4, 5, 3), (6, 5, 3)), ((6, 5, 4), (6, 5))],
    ids=["images", "pixels", "tokens"],
)
def test_classes_are_found_in_the_second_or_last_dimension(shape, labels):
    output = torch.randint(4, labels)
    dim = 1 if len(shape) == 4 else -1
    outputs = nn.functional.one_hot(output, 4).movedim(-1, dim).float()
    assert outputs.shape == shape
    scores = evaluate(nn.Identity(), [(outputs, output)])
    assert (scores.accuracy, scores.samples) == (1.0, output.numel())


def test_ignored_labels_do_not_count():
    outputs = torch.tensor([[[5.0, 0.0], [0.0, 5.0], [5.0, 0.0]]])
    scores = evaluate(nn.Identity(), [(outputs, torch.tensor([[0, 1, -100]]))])
    assert (scores.accuracy, scores.samples) == (1.0, 2)


def test_mappings_in_and_out():
    outputs, labels = torch.randn(8, 3), torch.randint(3, (8,))
    plain = evaluate(nn.Identity(), [(outputs, labels)])
    mapping = evaluate(Logits(), [{"logits": outputs, "labels": labels}])
    assert (mapping.accuracy, mapping.loss) == (plain.accuracy, plain.loss)


def test_regression_with_loss_and_metric():
    x = torch.randn(10, 2)
    scores = evaluate(
        nn.Identity(),
        batches(x, x + 2, 4),
        loss=nn.functional.mse_loss,
        metric=lambda output, label: (output - label).abs().mean(),
    )
    assert scores.loss == pytest.approx(4.0, abs=1e-5)
    assert scores.metric == pytest.approx(2.0, abs=1e-5)
    assert scores.samples == 10
    assert math.isnan(scores.accuracy)
    assert math.isnan(scores.calibration_error)


def test_probabilities_of_an_ensemble_are_not_softened_again():
    outputs, labels = torch.randn(40, 5), torch.randint(5, (40,))
    one = evaluate(nn.Identity(), [(outputs, labels)])
    same = evaluate(Ensemble([nn.Identity(), nn.Identity()], vote="probabilities"), [(outputs, labels)])
    assert same.loss == pytest.approx(one.loss, abs=1e-6)
    assert same.calibration_error == pytest.approx(one.calibration_error, abs=1e-6)


def test_majority_vote_has_no_loss():
    scores = evaluate(
        Ensemble([nn.Identity(), nn.Identity()], vote="majority"), [(torch.eye(3), torch.tensor([0, 1, 1]))]
    )
    assert scores.accuracy == pytest.approx(2 / 3)
    assert math.isnan(scores.loss)
    assert math.isnan(scores.calibration_error)


class Counting(nn.Module):
    """Counts its calls in a buffer and draws random numbers, even in eval mode."""

    def __init__(self, note):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Dropout().eval()
        self.register_buffer("calls", torch.zeros(()))
        self.note = note

    def forward(self, x):
        self.calls += 1
        self.note(self.training or self.norm.training)
        return self.norm(x) + 0 * torch.rand(3)


def test_model_and_random_state_come_back_as_they_were():
    modes = []
    model = Counting(modes.append).train()
    model.frozen.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calls = model.calls
    random = torch.get_rng_state()
    loader = DataLoader(
        TensorDataset(torch.randn(20, 3), torch.randint(3, (20,))),
        batch_size=8,
        shuffle=True,
        generator=torch.Generator().manual_seed(3),
    )
    drawn = loader.generator.get_state()
    random = torch.get_rng_state()
    evaluate(model, loader)
    assert modes == [False] * 3
    assert model.training
    assert model.norm.training
    assert not model.frozen.training
    assert model.calls is calls
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(loader.generator.get_state(), drawn)


def test_mode_is_restored_after_an_error():
    model = nn.Linear(2, 2).train()
    with pytest.raises(InputError, match="batch 1 holds NaN"):
        evaluate(model, [(torch.ones(1, 2), torch.tensor([0])), (torch.full((1, 2), torch.nan), torch.tensor([0]))])
    assert model.training


ONE = (torch.zeros(2, 3), torch.tensor([0, 2]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "batches are empty"),
        ((batch for batch in [ONE]), "one-shot generator"),
        ([torch.zeros(2, 3)], "batch 0 has no labels"),
        ([ONE, (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))], "batch 1 holds no samples"),
        ([(torch.zeros(2, 3), torch.tensor([0, 3]))], "labels from 0 to 3, but the outputs have 3 classes"),
        ([(torch.zeros(2, 3), torch.zeros(2, 3))], "are no classification; pass loss= or metric="),
        ([(torch.zeros(2, 3), torch.tensor([-100, -100]))], "every label is -100"),
    ],
    ids=["empty", "generator", "unlabelled", "no samples", "no such class", "not classes", "all ignored"],
)
def test_bad_batches(bad, message):
    with pytest.raises(InputError, match=message):
        evaluate(nn.Identity(), bad)


def test_nan_outputs_are_refused():
    model = nn.Linear(3, 3)
    nn.init.constant_(model.bias, torch.nan)
    with pytest.raises(InputError, match="batch 0: the network's outputs hold NaN"):
        evaluate(model, [ONE])
