import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from neurograft.errors import InputError, OptionError, TrainingDiverged
from neurograft.evaluating.evaluation import evaluate
from neurograft.training.finetuning import finetune


def network():
    return nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2)).eval()


def rings(count=128, seed=0):
    """Points inside and outside a circle."""
    points = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(points, (points.norm(dim=1) > 1.2).long())


def loader(seed=0, **options):
    return DataLoader(rings(seed=seed), batch_size=32, shuffle=True, **options)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_one_step_is_gradient_descent(float64):
    model, x, y = nn.Linear(3, 2), torch.randn(5, 3), torch.randint(2, (5,))
    tuned = finetune(model, [(x, y)], epochs=1, lr=0.5)
    nn.functional.cross_entropy(model(x), y).backward()
    torch.testing.assert_close(tuned.weight, model.weight - 0.5 * model.weight.grad)
    torch.testing.assert_close(tuned.bias, model.bias - 0.5 * model.bias.grad)


def test_momentum_repeats_the_last_step(float64):
    x, y = torch.randn(5, 3), torch.randint(2, (5,))
    model = nn.Linear(3, 2)
    reference = copy.deepcopy(model)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.8, weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(x), y).backward()
        optimizer.step()
    tuned = finetune(model, [(x, y)], epochs=3, lr=0.1, momentum=0.8, weight_decay=0.01)
    torch.testing.assert_close(tuned.state_dict(), reference.state_dict())


def test_it_learns():
    model = network()
    before, after = evaluate(model, loader()), evaluate(finetune(model, loader(), epochs=20, lr=0.1), loader())
    assert after.accuracy > 0.9 > before.accuracy


def test_input_and_random_state_are_untouched():
    model, data = network(), loader(generator=torch.Generator().manual_seed(5))
    model[4].weight.grad = torch.ones_like(model[4].weight)
    before, random, drawn = state(model), torch.get_rng_state(), data.generator.get_state()
    tuned = finetune(model, data, epochs=2, validation=loader())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(model[4].weight.grad, torch.ones_like(model[4].weight))
    assert not any(module.training for module in (*model.modules(), *tuned.modules()))
    assert all(parameter.grad is None for parameter in tuned.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(data.generator.get_state(), drawn)


def test_same_seed_same_bytes_other_seed_other_order():
    model = network()
    first, again, other = (state(finetune(model, loader(), epochs=2, seed=seed)) for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_modes_a_caller_chose_while_training_are_kept():
    model = network().train()
    model[1].eval()
    tuned = finetune(model, loader(), epochs=1)
    assert tuned.training
    assert not tuned[1].training
    assert torch.equal(tuned[1].running_mean, model[1].running_mean)


def test_frozen_parameters_stay():
    model = network()
    model[0].requires_grad_(False)
    tuned = finetune(model, loader(), epochs=1)
    assert torch.equal(tuned[0].weight, model[0].weight)
    assert not tuned[0].weight.requires_grad
    assert not torch.equal(tuned[4].weight, model[4].weight)


def test_history_starts_before_the_first_step():
    model, history = network(), []
    finetune(model, loader(), epochs=2, validation=loader(seed=1), on_epoch=history.append)
    assert [epoch.number for epoch in history] == [0, 1, 2]
    assert math.isnan(history[0].train_loss)
    assert history[0].validation.accuracy == evaluate(model, loader(seed=1)).accuracy
    assert history[1].train_loss > 0


def test_the_best_epoch_is_given_back():
    history = []
    tuned = finetune(network(), loader(), epochs=8, lr=0.5, validation=loader(seed=1), on_epoch=history.append)
    best = max(history, key=lambda epoch: (epoch.validation.accuracy, -epoch.validation.loss))
    scores = evaluate(tuned, loader(seed=1))
    assert scores.accuracy == best.validation.accuracy
    assert scores.loss == pytest.approx(best.validation.loss, abs=1e-9)


def test_patience_stops_when_nothing_gets_better():
    swapped = [(x, 1 - y) for x, y in loader()]
    good = finetune(network(), loader(), epochs=20, lr=0.1)
    history = []
    finetune(good, swapped, epochs=50, validation=loader(), patience=3, on_epoch=history.append)
    best = max(history, key=lambda epoch: (epoch.validation.accuracy, -epoch.validation.loss))
    assert history[-1].number == best.number + 3


def test_no_epochs_is_a_copy():
    model = network()
    tuned = finetune(model, loader(), epochs=0)
    assert tuned is not model
    torch.testing.assert_close(tuned.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_regression_and_another_optimizer():
    x = torch.randn(64, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]])
    tuned = finetune(
        nn.Linear(3, 1),
        [(x, y)],
        epochs=300,
        loss=nn.functional.mse_loss,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.1),
        validation=[(x, y)],
    )
    assert evaluate(tuned, [(x, y)], loss=nn.functional.mse_loss).loss < 1e-4


BATCH = (torch.zeros(2, 2), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs=-1: must be an integer, 0 or more"),
        ({"lr": 0.0}, "lr=0.0: must be a number above 0"),
        ({"momentum": 1.0}, "momentum=1.0: must be at least 0 and below 1"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0: must be 0 or more"),
        ({"patience": 0, "validation": [BATCH]}, "patience=0: must be None or at least 1"),
        ({"patience": 2}, "patience stops on the validation score: pass validation="),
    ],
    ids=["epochs", "lr", "momentum", "weight_decay", "patience", "patience alone"],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(OptionError, match=message):
        finetune(nn.Linear(2, 2), [BATCH], **options)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches are empty"),
        (iter([BATCH]), "one-shot list_iterator"),
        ([torch.zeros(2, 2)], "epoch 1, batch 0 has no labels"),
        ([(torch.full((2, 2), torch.nan), BATCH[1])], "epoch 1, batch 0 holds NaN"),
        ([(BATCH[0], torch.tensor([0, 7]))], "labels from 0 to 7, but the outputs have 2 classes"),
        ([(BATCH[0], torch.zeros(2, 2))], "are no classification; pass loss="),
    ],
    ids=["empty", "one-shot", "unlabelled", "nan", "no such class", "not classes"],
)
def test_bad_batches(batches, message):
    with pytest.raises(InputError, match=message):
        finetune(nn.Linear(2, 2), batches, epochs=1)


def test_divergence_names_the_place():
    x, y = torch.randn(8, 2), torch.randn(8, 1)
    with pytest.raises(TrainingDiverged, match=r"epoch \d+, batch 0: the loss is (inf|nan); lower lr"):
        finetune(nn.Linear(2, 1), [(x, y)], epochs=200, lr=100.0, loss=nn.functional.mse_loss)


def test_nothing_to_train():
    with pytest.raises(InputError, match="Identity has no parameter with requires_grad=True"):
        finetune(nn.Identity(), [BATCH])
