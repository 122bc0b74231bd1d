"""What one input of a network looks like on a client: moments of real numbers, counts of whole ones."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True)
class RealInput:
    """Mean, covariance and range of an input of real numbers; D entries per sample.

    Attributes:
        shape: of one sample.
        dtype: of the input.
        mean: shape `(D,)`.
        factor: F of shape `(rank, D)`; the covariance is FᵀF + diag(d).
        diagonal: d, shape `(D,)`.
        low: the least value seen of every entry, shape `(D,)`; minus infinity where it is not given away.
        high: the largest one likewise.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    mean: Tensor
    factor: Tensor
    diagonal: Tensor
    low: Tensor
    high: Tensor
    TENSORS: ClassVar[tuple[str, ...]] = ("mean", "factor", "diagonal", "low", "high")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Samples from the normal distribution with these moments, clipped to the range, `(count, *shape)`."""
        spread = torch.randn(count, len(self.factor), generator=generator) @ self.factor
        rest = torch.randn(count, len(self.mean), generator=generator) * self.diagonal.sqrt()
        drawn = torch.minimum(torch.maximum(self.mean + spread + rest, self.low), self.high)
        return drawn.reshape(count, *self.shape).to(self.dtype)

    def faults(self) -> str:
        """What cannot be right about it, "" if nothing."""
        size = len(self.mean) if self.mean.dim() == 1 else -1
        flat = (self.diagonal, self.low, self.high)
        if size != prod(self.shape) or self.factor.dim() != 2 or self.factor.shape[1] != size:
            return "its mean and covariance do not have the sample's size"
        if any(tensor.shape != (size,) for tensor in flat):
            return "its variances and ranges do not have the sample's size"
        if not all(bool(torch.isfinite(t).all()) for t in (self.mean, self.factor, self.diagonal)):
            return "its moments hold NaN or infinity"
        if bool((self.diagonal < 0).any()) or not bool((self.low <= self.high).all()):
            return "its variances or ranges are negative"
        return "" if self.dtype.is_floating_point else f"its dtype is {self.dtype}"

    def fits(self, tensor: Tensor) -> bool:
        """Whether a batch of this input may look so."""
        return tensor.is_floating_point() and tuple(tensor.shape[1:]) == self.shape

    def described(self) -> str:
        """One sample in words."""
        return f"{'x'.join(map(str, self.shape))} real numbers" if self.shape else "a real number"


@dataclass(frozen=True, eq=False, slots=True)
class IntegerInput:
    """How often each value of an input of whole numbers (tokens, masks) was seen, at any position.

    Attributes:
        shape: of one sample.
        dtype: of the input.
        values: the values seen, int64 of shape `(values,)`.
        counts: how often, int64 of shape `(values,)`.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    values: Tensor
    counts: Tensor
    TENSORS: ClassVar[tuple[str, ...]] = ("values", "counts")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Values with these frequencies, each position for itself, `(count, *shape)`."""
        ends = self.counts.double().cumsum(0)
        at = torch.rand(count, *self.shape, generator=generator, dtype=torch.float64) * ends[-1]
        return self.values[torch.searchsorted(ends, at, right=True).clamp(max=len(ends) - 1)].to(self.dtype)

    def faults(self) -> str:
        """What cannot be right about it, "" if nothing."""
        whole = self.values.dtype == self.counts.dtype == torch.int64
        if not whole or self.values.dim() != 1 or self.values.shape != self.counts.shape or not len(self.values):
            return "its values and counts are no two rows of whole numbers"
        if bool((self.counts < 1).any()):
            return "it counts a value less than once"
        return f"its dtype is {self.dtype}" if self.dtype.is_floating_point or self.dtype.is_complex else ""

    def fits(self, tensor: Tensor) -> bool:
        """Whether a batch of this input may look so; sequences may be longer or shorter."""
        return not tensor.is_floating_point() and not tensor.is_complex() and tensor.dim() == len(self.shape) + 1

    def described(self) -> str:
        """One sample in words."""
        return f"{'x'.join(map(str, self.shape))} whole numbers" if self.shape else "a whole number"


InputMoments: TypeAlias = RealInput | IntegerInput
