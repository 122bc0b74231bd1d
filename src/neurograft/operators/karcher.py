"""The Karcher mean: the point of a sphere that is nearest to all members' directions."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from neurograft.operators.block import Block
from neurograft.operators.operator import Operator, weighted_sum
from neurograft.operators.settings import EachSetting, per_member
from neurograft.options import check_count

TINY = 1e-5


@dataclass(frozen=True, kw_only=True)
class Karcher(Operator):
    """W_fused = (Σ_m w_m |W_m|) argmin over unit μ of Σ_m w_m angle(μ, W_m)².

    Newton's steps on the sphere, from the mean direction: μ ← exp_μ(Σ_m w_m log_μ(W_m/|W_m|)).

    Attributes:
        weights: one number per member, made to sum to 1; default the members' weights.
        iterations: the most steps.
        tolerance: a step of a smaller angle is the last; members of a smaller norm have no direction.

    Raises:
        OptionError: a number of iterations below 1.

    Source: Karcher 1977, "Riemannian center of mass and mollifier smoothing"; mergekit 0.1, method `karcher`.
    """

    name: ClassVar[str] = "karcher"
    whole: ClassVar[bool] = True

    weights: EachSetting | None = per_member(None)
    iterations: int = 10
    tolerance: float = TINY

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("iterations", self.iterations)

    def combine(self, block: Block) -> Tensor:
        """Steps towards the mean until nothing moves."""
        given = block.values(self.weights, 1.0)
        weights = [weight / sum(given) for weight in given]
        norms = [member.norm() for member in block.members]
        length = torch.stack([n * w for n, w in zip(norms, weights, strict=True)]).sum()
        found = [
            (member / norm, weight)
            for member, norm, weight in zip(block.members, norms, weights, strict=True)
            if float(norm) > self.tolerance
        ]
        if not found:
            return torch.zeros_like(block.members[0])
        total = sum(weight for _, weight in found)
        units, shares = [unit for unit, _ in found], [weight / total for _, weight in found]
        return length * self._mean(units, shares)

    def _mean(self, units: list[Tensor], shares: list[float]) -> Tensor:
        mean = weighted_sum(units, shares)
        mean = units[0] if float(mean.norm()) < self.tolerance else mean / mean.norm()
        for _ in range(self.iterations):
            step = torch.zeros_like(mean)
            for unit, share in zip(units, shares, strict=True):
                cosine = (unit * mean).sum().clamp(-1, 1)
                angle = torch.acos(cosine)
                if float(angle) >= self.tolerance:
                    step = step + share * (angle / angle.sin()) * (unit - cosine * mean)
            size = step.norm()
            if float(size) < self.tolerance:
                break
            mean = size.cos() * mean + size.sin() * (step / size)
            mean = mean / mean.norm()
        return mean
