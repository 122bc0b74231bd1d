"""Mean and covariance of rows in one pass: exact, or of low rank plus a diagonal where a matrix would be too large."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(eq=False)
class ExactCovariance:
    """Mean and covariance of all rows added so far, float64.

    Example:
        >>> running = ExactCovariance(2)
        >>> running.add(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
        >>> running.add(torch.tensor([[4.0, 2.0]]))
        >>> running.mean, running.covariance()[0]
        (tensor([2., 2.], dtype=torch.float64), tensor([2.6667, 1.3333], dtype=torch.float64))
    """

    size: int
    count: int = 0
    mean: Tensor = field(init=False)
    scatter: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.mean = torch.zeros(self.size, dtype=torch.float64)
        self.scatter = torch.zeros(self.size, self.size, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Add rows, shape `(rows, size)`."""
        rows = rows.double()
        n, mean = len(rows), rows.mean(0)
        away, total = mean - self.mean, self.count + len(rows)
        centred = rows - mean
        self.scatter += centred.T @ centred + torch.outer(away, away) * (self.count * n / total)
        self.mean = self.mean + away * (n / total)
        self.count = total

    def covariance(self) -> Tensor:
        """Σ (x − mean)(x − mean)ᵀ / n, shape `(size, size)`."""
        return self.scatter / max(1, self.count)

    def factors(self) -> tuple[Tensor, Tensor]:
        """The covariance as FᵀF + diag(d): F of shape `(rank, size)`, d of shape `(size,)`, here zero."""
        return factor_of(self.covariance()), torch.zeros_like(self.mean)


@dataclass(eq=False)
class LowRankCovariance:
    """Mean and covariance of wide rows: the leading directions, and the variance of each entry that they leave.

    The directions are those of an incremental singular value decomposition.

    Source: Ross et al. 2008, International Journal of Computer Vision 77, section 2.1.
    """

    size: int
    rank: int
    count: int = 0
    mean: Tensor = field(init=False)
    squares: Tensor = field(init=False)
    sketch: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.mean = torch.zeros(self.size, dtype=torch.float64)
        self.squares = torch.zeros(self.size, dtype=torch.float64)
        self.sketch = torch.zeros(0, self.size)

    def add(self, rows: Tensor) -> None:
        """Add rows, shape `(rows, size)`."""
        for block in torch.split(rows, max(1, self.rank)):
            self._add(block.float())

    def _add(self, rows: Tensor) -> None:
        n, mean = len(rows), rows.double().mean(0)
        away, total = mean - self.mean, self.count + len(rows)
        centred = rows - mean.float()
        jump = (away * (self.count * n / total) ** 0.5).float()
        self.squares += centred.double().square().sum(0) + jump.double().square()
        self.mean = self.mean + away * (n / total)
        self.count = total
        self.sketch = _leading(torch.cat([self.sketch, centred, jump[None]]), self.rank)

    def factors(self) -> tuple[Tensor, Tensor]:
        """The covariance as FᵀF + diag(d): F of shape `(rank, size)`, d of shape `(size,)`."""
        n = max(1, self.count)
        factor = self.sketch.double() / n**0.5
        return factor, (self.squares / n - factor.square().sum(0)).clamp_min(0)


def _leading(rows: Tensor, rank: int) -> Tensor:
    """The leading right singular vectors, each times its singular value; from the Gram matrix of the rows."""
    values, vectors = torch.linalg.eigh(rows.double() @ rows.double().T)
    kept = vectors[:, -rank:][:, values[-rank:] > 1e-10 * values[-1].clamp_min(1e-30)]
    return torch.matmul(kept.T.float(), rows)


def factor_of(covariance: Tensor) -> Tensor:
    """F of shape `(rank, size)` with FᵀF the covariance's positive part.

    Example:
        >>> factor = factor_of(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        >>> torch.allclose(factor.T @ factor, torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        True
    """
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > 1e-10 * values[-1].clamp_min(1e-30)
    factor: Tensor = (vectors[:, kept] * values[kept].sqrt()).T
    return factor
