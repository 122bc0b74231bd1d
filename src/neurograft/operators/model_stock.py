"""Model stock: between the ancestor and the mean, by how much the members agree."""

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Literal

import torch
from torch import Tensor

from neurograft.operators.block import Block
from neurograft.operators.operator import Operator

SINGULAR = 1e-6


@dataclass(frozen=True, kw_only=True)
class ModelStock(Operator):
    """W_fused = t · mean_m W_m + (1 − t) W_base, t = k cos θ / (1 + (k − 1) cos θ).

    θ is the angle between two members' task vectors; its cosine is the mean over all pairs of the k members.

    Attributes:
        over: whether there is one angle for a "tensor" (the paper's) or one for each of its "rows".

    Source: Jang et al. 2024, arXiv:2403.19522, section 4.
    """

    name: ClassVar[str] = "model_stock"
    whole: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True
    unweighted: ClassVar[bool] = True

    over: Literal["tensor", "rows"] = "tensor"

    def combine(self, block: Block) -> Tensor:
        """A point between the ancestor and the members' mean."""
        base, count = block.ancestor, len(block.members)
        rows = 1 if self.over == "tensor" or base.dim() < 2 else base.shape[0]
        changes = [change.reshape(rows, -1) for change in block.changes]
        cosines = [_cosines(one, other) for one, other in combinations(changes, 2)]
        cosine = torch.stack(cosines).mean(0)
        divisor = 1 + (count - 1) * cosine
        safe = divisor.abs() >= SINGULAR
        t = torch.where(safe, count * cosine / torch.where(safe, divisor, 1.0), 0.0)
        change = torch.stack(changes).mean(0)
        return base + (t[:, None] * change).reshape(base.shape)


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    norms: Tensor = (one.norm(dim=1) * other.norm(dim=1)).clamp_min(SINGULAR)
    return ((one * other).sum(1) / norms).clamp(-1, 1)
