"""Noise that hides single samples: the Gaussian mechanism."""

from math import sqrt

import torch
from torch import Tensor

from neurograft.errors import OptionError


def noise_scale(epsilon: float, delta: float) -> float:
    """The least σ for which adding N(0, σ²) to a query of sensitivity 1 is (ε, δ)-differentially private.

    It solves Φ(1/(2σ) − εσ) − exp(ε) · Φ(−1/(2σ) − εσ) = δ, with Φ the normal distribution function.

    Raises:
        OptionError: for an ε that is not above 0, or a δ that is not between 0 and 1.

    Example:
        >>> round(noise_scale(1.0, 1e-5), 2)
        3.73

    Source: Balle & Wang 2018, arXiv:1805.06530, theorem 8.
    """
    if not 0 < epsilon < float("inf") or not 0 < delta < 1:
        raise OptionError(f"noise is ({epsilon}, {delta}); it is (epsilon, delta), above 0, and delta below 1")

    def spent(sigma: float) -> float:
        a, b = torch.tensor([1 / (2 * sigma) - epsilon * sigma, -1 / (2 * sigma) - epsilon * sigma]).double()
        return float(torch.special.ndtr(a) - torch.exp(epsilon + torch.special.log_ndtr(b)))

    low = high = 1.0
    while spent(low) < delta:
        low /= 2
    while spent(high) > delta:
        high *= 2
    for _ in range(80):
        middle = sqrt(low * high)
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return high


def clipped(rows: Tensor, norm: float) -> Tensor:
    """Rows whose norm is larger scaled down to it.

    Example:
        >>> clipped(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    size = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    scaled: Tensor = rows * (norm / size.clamp_min(torch.finfo(rows.dtype).tiny)).clamp(max=1)
    return scaled


def noised_moments(
    rows: int, count: float, mean: Tensor, covariance: Tensor, norm: float, sigma: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mean and covariance from noisy sums of rows that were clipped to a norm.

    The sums Σ x / norm and Σ x xᵀ / norm² change by at most 1 each when one row is added or left out; N(0, σ²) is
    added to every entry of the first and of the upper triangle of the second. What is computed from noisy sums loses
    no further privacy.

    Args:
        rows: how many there are, which is not given away.
        count: how many there are with noise.
        mean: of the clipped rows, shape `(size,)`.
        covariance: of the clipped rows, shape `(size, size)`.
        norm: what they were clipped to.
        sigma: the noise's deviation.
        generator: the noise's.
    """
    square = (covariance + torch.outer(mean, mean)) * (rows / norm**2)
    noise = torch.randn(square.shape, generator=generator, dtype=square.dtype).triu()
    square = (square + sigma * (noise + noise.triu(1).T)) * (norm**2 / count)
    first = mean * (rows / norm) + sigma * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
    first = first * (norm / count)
    return first, square - torch.outer(first, first)
