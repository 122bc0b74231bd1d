"""Gram matrices summed batch by batch give the ridge solution, and λ is chosen on held-out samples."""

import math

import pytest
import torch
from torch import Tensor

from neurograft.recovery.ridge import RIDGES, Regression


def rows(count: int, inputs: int, seed: int = 0) -> Tensor:
    return torch.randn(1, count, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def regression(x: Tensor, target: Tensor, weights: Tensor, bias: Tensor | None = None, parts: int = 1) -> Regression:
    found = Regression(x.shape[0], x.shape[2], target.shape[2], bias is not None, x.device)
    samples = torch.arange(x.shape[1])
    for part in samples.chunk(parts):
        found.add(x[:, part], weights, bias, target[:, part], part)
    return found


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_the_solution_is_that_of_the_normal_equations(parts: int) -> None:
    x, weights, target = rows(40, 5), rows(5, 3, 1), rows(40, 3, 2)
    ridge = 0.3
    found = regression(x, target, weights, parts=parts).solve(ridge)
    gram = x[0].T @ x[0]
    penalty = ridge * gram.diagonal().mean() * torch.eye(5, dtype=torch.float64)
    expected = torch.linalg.solve(gram + penalty, x[0].T @ target[0] + penalty @ weights[0])
    torch.testing.assert_close(weights[0] + found.delta[0, :5], expected)
    assert not found.delta[0, 5].any()


def test_the_bias_is_one_more_column() -> None:
    x, weights, bias, target = rows(40, 5), rows(5, 3, 1), rows(1, 3, 3)[0], rows(40, 3, 2)
    found = regression(x, target, weights, bias).solve(0.0)
    wide = torch.cat([x[0], torch.ones(40, 1, dtype=torch.float64)], 1)
    expected = torch.linalg.lstsq(wide, target[0]).solution
    torch.testing.assert_close(torch.cat([weights[0], bias]) + found.delta[0], expected)


def test_groups_are_solved_apart() -> None:
    x, weights = torch.cat([rows(30, 4), rows(30, 4, 5)]), torch.cat([rows(4, 2, 1), rows(4, 2, 6)])
    target = torch.cat([rows(30, 2, 2), rows(30, 2, 7)])
    together = regression(x, target, weights).solve(0.1).delta
    for g in range(2):
        alone = regression(x[g : g + 1], target[g : g + 1], weights[g : g + 1]).solve(0.1).delta
        torch.testing.assert_close(together[g : g + 1], alone)


def test_the_errors_are_those_of_the_rows() -> None:
    x, weights, target = rows(40, 5), rows(5, 3, 1), rows(40, 3, 2)
    found = regression(x, target, weights, parts=4).solve(0.01)
    new = weights + found.delta[:, :5]
    assert found.before == pytest.approx(float((x @ weights - target).norm() / target.norm()))
    assert found.after == pytest.approx(float((x @ new - target).norm() / target.norm()))


def test_a_target_that_is_met_keeps_the_weights() -> None:
    x, weights = rows(40, 5), rows(5, 3, 1)
    found = regression(x, x @ weights, weights).solve()
    assert found.ridge == math.inf
    assert not found.delta.any()


def test_a_target_of_pure_noise_keeps_the_weights_or_nearly() -> None:
    x, weights = rows(200, 50), torch.zeros(1, 50, 3, dtype=torch.float64)
    found = regression(x, rows(200, 3, 9), weights).solve()
    assert found.ridge >= 0.1


def test_a_linear_target_is_found() -> None:
    x, truth = rows(100, 10), rows(10, 3, 4)
    found = regression(x, x @ truth, torch.zeros_like(truth)).solve()
    torch.testing.assert_close(found.delta[:, :10], truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_fewer_samples_than_inputs_and_dead_inputs_are_fine(count: int) -> None:
    x, weights, target = rows(count, 20), rows(20, 3, 1), rows(count, 3, 2)
    x[..., 5:8] = 0
    found = regression(x, target, weights).solve()
    assert bool(torch.isfinite(found.delta).all())
    assert found.after <= found.before
    assert not found.delta[0, 5:8].any()


def test_inputs_that_are_all_zero_change_nothing_but_the_bias() -> None:
    x, weights, bias = torch.zeros(1, 40, 5, dtype=torch.float64), rows(5, 3, 1), rows(1, 3, 3)[0]
    found = regression(x, torch.ones(1, 40, 3, dtype=torch.float64), weights, bias).solve()
    assert not found.delta[0, :5].any()
    torch.testing.assert_close(bias[0] + found.delta[0, 5], torch.ones(3, dtype=torch.float64), rtol=1e-4, atol=1e-4)


def test_a_change_that_is_not_allowed_is_not_made() -> None:
    x, truth = rows(100, 10), rows(10, 3, 4)
    found = regression(x, x @ truth, torch.zeros_like(truth)).solve(None, lambda delta: float(delta.norm()) < 1)
    assert float(found.delta.norm()) < 1


def alike(centres: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ten samples around every centre, one group each: inputs, targets (noise of the group, none of the sample)."""
    groups = torch.arange(10 * centres.shape[1]) % centres.shape[1]
    x = centres[:, groups] + 0.01 * rows(len(groups), centres.shape[2], 11)
    return x, x[..., :3] + noise[:, groups], groups


def test_a_ridge_chosen_on_held_out_groups_is_right_for_new_groups() -> None:
    """Of 40 groups with 60 inputs, samples held out of known groups favour a fit of the groups' own noise."""
    x, target, groups = alike(rows(40, 60, 1), rows(40, 3, 2))
    new, wanted, _ = alike(rows(400, 60, 3), torch.zeros(1, 400, 3, dtype=torch.float64))
    start = torch.zeros(1, 60, 3, dtype=torch.float64)
    found = {}
    shuffled = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    for name, folds in (("samples", shuffled), ("groups", groups)):
        regression = Regression(1, 60, 3, False, x.device)
        regression.add(x, start, None, target, folds)
        found[name] = regression.solve()
    by_error = {}
    for ridge in RIDGES:
        regression = Regression(1, 60, 3, False, x.device)
        regression.add(x, start, None, target, groups)
        by_error[float((new @ regression.solve(ridge).delta[:, :60] - wanted).norm())] = ridge
    assert found["groups"].ridge >= min(by_error.items())[1] == 1.0
    assert found["samples"].ridge <= 1e-3
    errors = {name: float((new @ s.delta[:, :60] - wanted).norm()) for name, s in found.items()}
    assert errors["groups"] < 0.8 * errors["samples"]
