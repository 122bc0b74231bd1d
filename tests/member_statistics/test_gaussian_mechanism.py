"""How much noise, and how little one sample may change what it is added to."""

import math

import pytest
import torch

from neurograft.errors import OptionError
from neurograft.member_statistics.gaussian_mechanism import clipped, noise_scale, noised_moments


@pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-5), (1.0, 1e-6), (8.0, 1e-5)])
def test_the_noise_spends_exactly_delta(epsilon: float, delta: float) -> None:
    sigma = noise_scale(epsilon, delta)

    def normal(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    spent = normal(1 / (2 * sigma) - epsilon * sigma) - math.exp(epsilon) * normal(-1 / (2 * sigma) - epsilon * sigma)
    assert spent == pytest.approx(delta, rel=1e-4)
    if epsilon <= 1:
        assert sigma < math.sqrt(2 * math.log(1.25 / delta)) / epsilon  # the classic bound, which is looser


@pytest.mark.parametrize("noise", [(0.0, 1e-5), (-1.0, 1e-5), (1.0, 0.0), (1.0, 1.0), (float("nan"), 1e-5)])
def test_what_is_no_epsilon_or_delta_is_refused(noise: tuple[float, float]) -> None:
    with pytest.raises(OptionError, match="epsilon, delta"):
        noise_scale(*noise)


def test_one_row_changes_each_sum_by_at_most_one() -> None:
    norm = 3.0
    row = clipped(torch.randn(1, 6, dtype=torch.float64) * 100, norm)
    assert float(row.norm()) == pytest.approx(norm)
    assert float((row / norm).norm()) <= 1 + 1e-12
    assert float((row.T @ row / norm**2).triu().norm()) <= 1 + 1e-12


def test_without_noise_the_moments_are_given_back() -> None:
    x = torch.randn(50, 4, dtype=torch.float64)
    covariance = torch.cov(x.T, correction=0)
    mean, again = noised_moments(50, 50.0, x.mean(0), covariance, 2.0, 0.0, torch.Generator())
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(again, covariance)


def test_noise_has_the_deviation_it_should_have() -> None:
    size, sigma, rows, norm = 60, 2.0, 100, 5.0
    zeros = torch.zeros(size, dtype=torch.float64)
    mean, square = noised_moments(
        rows, float(rows), zeros, torch.zeros(size, size).double(), norm, sigma, torch.Generator().manual_seed(0)
    )
    square = square + torch.outer(mean, mean)
    torch.testing.assert_close(square, square.T)
    assert float(mean.std()) == pytest.approx(sigma * norm / rows, rel=0.25)
    upper = square[torch.triu(torch.ones(size, size)).bool()]
    assert float(upper.std()) == pytest.approx(sigma * norm**2 / rows, rel=0.1)
