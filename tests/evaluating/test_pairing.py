import math

import pytest
import torch
from torch import nn

from neurograft.errors import InputError
from neurograft.evaluating.ensemble import Ensemble
from neurograft.evaluating.evaluation import evaluate
from neurograft.evaluating.pairing import correct_predictions, gap


def test_answers_are_those_that_evaluate_counts():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    batches = [(torch.randn(7, 4), torch.randint(0, 3, (7,))) for _ in range(3)]
    for network in (model, Ensemble([model, model], vote="majority")):
        right = correct_predictions(network, batches)
        assert right.shape == (21,)
        assert float(right.double().mean()) == pytest.approx(evaluate(network, batches).accuracy)
    assert model.training


def test_ignored_labels_and_classes_in_the_second_dimension():
    logits = torch.zeros(1, 2, 3)
    logits[0, 1, :] = 1.0
    assert correct_predictions(nn.Identity(), [(logits, torch.tensor([[1, -100, 0]]))]).tolist() == [True, False]


def test_the_noise_of_a_difference_comes_from_the_samples_they_disagree_on():
    both, one, other, none = 50, 12, 4, 34
    first = torch.tensor([True] * both + [True] * one + [False] * other + [False] * none)
    second = torch.tensor([True] * both + [False] * one + [True] * other + [False] * none)
    found = gap(first, second)
    differences = first.double() - second.double()
    assert found.points == pytest.approx(float(differences.mean()))
    assert found.noise == pytest.approx(2 * float(differences.std(correction=0)) / math.sqrt(len(first)))
    assert (found.sign, gap(second, first).points, gap(first, first).noise) == (1, -0.08, 0)
    assert found.noise == pytest.approx(0.0784, abs=1e-4)


def test_equal_networks_are_never_told_apart():
    right = torch.tensor([True, False])
    assert gap(right, right).sign == 0


def test_labels_that_are_no_classes():
    with pytest.raises(InputError, match="batch 0: its labels are no classes of outputs of shape"):
        correct_predictions(nn.Identity(), [(torch.zeros(2, 3), torch.zeros(2))])
