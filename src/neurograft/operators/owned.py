"""The sum of members that make each fused neuron together."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from neurograft.operators.block import Block
from neurograft.operators.operator import Operator, weighted_sum


@dataclass(frozen=True)
class Owned(Operator):
    """W_fused = Σ_m c_m A_m W_m B_m for neurons that all members make together.

    The rows of [A_1 … A_k] sum to 1 jointly: a fused neuron has one owner (transplant), or is the mean of a cluster of
    neurons of several members (zip), so it is normalised already and enters with c_m = 1. Where nothing is made along
    such a group (the layer that makes outputs from them) c_m is the member's weight. A single A_m makes no whole
    neurons, so no other operator can combine such members.

    Example:
        >>> import torch
        >>> Owned().combine(Block("bias", [torch.tensor([3.0, 0.0]), torch.tensor([0.0, 5.0])], (1.0, 1.0)))
        tensor([3., 5.])
    """

    name: ClassVar[str] = "owned"
    sums: ClassVar[bool] = True

    def combine(self, block: Block) -> Tensor:
        """Σ_m c_m x_m, with the coefficients as weights."""
        return weighted_sum(block.members, block.weights)
