"""A matrix as two factors of a small rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Factored:
    """B A, and how much of the matrix is missing: the relative error |M − B A| / |M|.

    Shapes: `b (outputs, rank)`, `a (rank, inputs)`.
    """

    b: Tensor
    a: Tensor
    error: float


def joined(factors: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]) -> Factored:
    """Σ_m w_m B_m A_m exactly, as [w_0 B_0 | w_1 B_1 | …] and [A_0; A_1; …].

    Example:
        >>> one, other = (torch.ones(2, 1), torch.ones(1, 3)), (torch.ones(2, 2), torch.ones(2, 3))
        >>> joined([one, other], [1.0, 0.5]).b.shape
        torch.Size([2, 3])
    """
    left = torch.cat([b * weight for (b, _), weight in zip(factors, weights, strict=True)], 1)
    return Factored(left, torch.cat([a for _, a in factors]), 0.0)


def truncated(b: Tensor, a: Tensor, rank: int) -> Factored:
    """The best product of two factors of a rank, U √S and √S Vᵀ of the truncated singular value decomposition of B A.

    It is found without multiplying: B = Q_b R_b and Aᵀ = Q_a R_a, and the core R_b R_aᵀ is decomposed.

    Example:
        >>> found = truncated(torch.eye(3)[:, :2], torch.tensor([[2.0, 0.0], [0.0, 1.0]]), 1)
        >>> round(found.error, 4), (found.b @ found.a).round()
        (0.4472, tensor([[2., 0.],
                [0., 0.],
                [0., 0.]]))

    Source: Eckart & Young 1936, "The approximation of one matrix by another of lower rank".
    """
    if min(b.shape[0], a.shape[1]) > b.shape[1]:
        left, core_b = torch.linalg.qr(b)
        right, core_a = torch.linalg.qr(a.mT)
        u, s, v = torch.linalg.svd(core_b @ core_a.mT, full_matrices=False)
        return _cut(left @ u, s, v @ right.mT, rank)
    return of_matrix(b @ a, rank)


def of_matrix(matrix: Tensor, rank: int) -> Factored:
    """The best product of two factors of a rank."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return _cut(u, s, v, rank)


def padded(found: Factored, rank: int) -> Factored:
    """The same product with a larger rank: the rest is zero."""
    more = rank - found.a.shape[0]
    if more <= 0:
        return found
    return Factored(
        torch.cat([found.b, found.b.new_zeros(len(found.b), more)], 1),
        torch.cat([found.a, found.a.new_zeros(more, found.a.shape[1])]),
        found.error,
    )


def _cut(u: Tensor, s: Tensor, v: Tensor, rank: int) -> Factored:
    powers = s.double().square()
    total = float(powers.sum())
    error = (float(powers[rank:].sum()) / total) ** 0.5 if total else 0.0
    root = s[:rank].sqrt()
    return padded(Factored(u[:, :rank] * root, root[:, None] * v[:rank], error), rank)
