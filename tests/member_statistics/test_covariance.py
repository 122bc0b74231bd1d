"""Moments in one pass are those of all rows at once."""

import torch

from neurograft.member_statistics.covariance import ExactCovariance, LowRankCovariance, factor_of


def rows(n: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64) * torch.linspace(2, 0.01, size)[:, None]
    return torch.randn(n, size, generator=generator, dtype=torch.float64) @ mixing + 3


def test_exact_moments_are_those_of_all_rows() -> None:
    x = rows(101, 7)
    running = ExactCovariance(7)
    for part in torch.split(x, 13):
        running.add(part)
    torch.testing.assert_close(running.mean, x.mean(0))
    torch.testing.assert_close(running.covariance(), torch.cov(x.T, correction=0))
    factor, rest = running.factors()
    torch.testing.assert_close(factor.T @ factor, torch.cov(x.T, correction=0))
    assert not rest.any()


def test_a_low_rank_keeps_the_leading_directions_and_every_variance() -> None:
    x = rows(400, 12)
    running = LowRankCovariance(12, 6)
    for part in torch.split(x, 37):
        running.add(part)
    factor, rest = running.factors()
    covariance = torch.cov(x.T, correction=0)
    assert factor.shape == (6, 12)
    torch.testing.assert_close(running.mean, x.mean(0))
    torch.testing.assert_close((factor.T @ factor).diagonal() + rest, covariance.diagonal(), rtol=1e-5, atol=1e-6)
    best = torch.linalg.eigvalsh(covariance)[:-6].square().sum().sqrt()
    assert (factor.T @ factor - covariance).norm() < 1.2 * best


def test_of_fewer_rows_than_the_rank_nothing_is_lost() -> None:
    x = rows(5, 12)
    running = LowRankCovariance(12, 6)
    running.add(x)
    factor, rest = running.factors()
    torch.testing.assert_close(factor.T @ factor, torch.cov(x.T, correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rest, torch.zeros_like(rest), rtol=0, atol=1e-5)


def test_the_factor_leaves_out_negative_directions() -> None:
    factor = factor_of(torch.diag(torch.tensor([4.0, -1.0])))
    torch.testing.assert_close(factor.T @ factor, torch.diag(torch.tensor([4.0, 0.0])))
