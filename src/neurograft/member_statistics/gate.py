"""Whose data an input resembles: a linear discriminant analysis over members, from the moments they sent."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from neurograft.member_statistics.random_features import random_features
from neurograft.member_statistics.statistics import FeatureMoments, Statistics


@dataclass(frozen=True, eq=False, slots=True)
class Gate:
    """The share of every member in an input, p(m | x) ∝ n_m · N(φ(x); μ_m, Σ).

    φ are the fixed random features, μ_m and n_m the member's mean and number of samples, and Σ the covariance within
    members, pooled. If member m knows p_m(y | x) on data that lies like p_m(x), the pooled data has
    p(y | x) = Σ_m p(m | x) p_m(y | x): the members' shares are the weights that make an ensemble of it.

    Attributes:
        matrix: Σ⁻¹ μ, shape `(features, members)`.
        shift: −½ μᵀ Σ⁻¹ μ + log n, shape `(members,)`.

    Source: Fisher 1936; Jacobs et al. 1991, Neural Computation 3 (mixtures of experts).
    """

    matrix: Tensor
    shift: Tensor

    @classmethod
    def of(cls, statistics: Sequence[Statistics]) -> "Gate":
        """The gate of members that sent these statistics."""
        n = torch.tensor([own.samples for own in statistics], dtype=torch.float64)
        means = torch.stack([own.features.mean.double() for own in statistics])
        within = pooled_covariance([own.features for own in statistics], n)
        matrix = torch.linalg.solve(within, means.T)
        shift = n.log() - 0.5 * (means.T * matrix).sum(0)
        return cls(matrix, shift)

    def weights(self, tensors: Sequence[Tensor]) -> Tensor:
        """The members' shares in every sample, float64 of shape `(members, samples)`; they sum to 1."""
        scores: Tensor = random_features(tensors).double() @ self.matrix + self.shift
        shares: Tensor = scores.softmax(1).T
        return shares


def pooled_covariance(features: Sequence[FeatureMoments], samples: Tensor) -> Tensor:
    """Σ_m n_m Σ_m / n, shrunk towards a multiple of the identity as far as so few samples and noise demand.

    With p features and n samples the share of the identity is
    ρ = ((1 − 2/p) tr S² + tr² S) / ((n + 1 − 2/p)(tr S² − tr² S / p)), at most 1.

    Source of the shrinkage: Chen et al. 2010, arXiv:0907.4698, equation 23 (OAS).
    """
    n = float(samples.sum())
    own = zip(features, samples.tolist(), strict=True)
    pooled = sum(
        (count / n * moments.covariance.double() for moments, count in own), torch.zeros((), dtype=torch.float64)
    )
    p = len(pooled)
    trace, square = float(pooled.trace().clamp_min(1e-30)), float(pooled.square().sum())
    spread = max(square - trace**2 / p, 1e-30)
    rho = min(1.0, ((1 - 2 / p) * square + trace**2) / ((n + 1 - 2 / p) * spread))
    variance = sum((count / n * moments.noise) ** 2 for moments, count in zip(features, samples.tolist(), strict=True))
    # a random symmetric matrix has eigenvalues up to 2 √p times the deviation of its entries
    floor = rho * trace / p + 2 * sqrt(variance * p)
    shrunk: Tensor = (1 - rho) * pooled + floor * torch.eye(p, dtype=torch.float64)
    return shrunk
