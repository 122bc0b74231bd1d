"""The weighted mean of members in one basis."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from neurograft.operators.block import Block
from neurograft.operators.operator import Operator, weighted_sum


@dataclass(frozen=True)
class Mean(Operator):
    """W_fused = Σ_m w_m A_m W_m B_m; every A_m alone makes whole neurons.

    The weights are the members', for single tensors those of their pattern: `weights={"head.*": [0.9, 0.1]}`.

    Example:
        >>> import torch
        >>> Mean().combine(Block("bias", [torch.zeros(2), torch.ones(2)], (0.25, 0.75)))
        tensor([0.7500, 0.7500])
    """

    name: ClassVar[str] = "mean"
    sums: ClassVar[bool] = True

    def combine(self, block: Block) -> Tensor:
        """Σ_m w_m x_m."""
        return weighted_sum(block.members, block.weights)
