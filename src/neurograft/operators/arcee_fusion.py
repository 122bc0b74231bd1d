"""Arcee fusion: of the second member only the changes that stand out."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from neurograft.operators.block import Block
from neurograft.operators.operator import Operator


@dataclass(frozen=True)
class ArceeFusion(Operator):
    """W_fused = W_0 + (W_1 − W_0) where an entry's importance reaches the median and 1.5 times the quartiles' distance.

    The importance of an entry is |W_1 − W_0| times the Kullback-Leibler divergence of the softmaxes of its row (along
    the last dimension) in the two members. Quartiles are of all entries; mergekit draws a million of larger tensors.

    Raises:
        OptionError: not two members.

    Source: mergekit 0.1 (Goddard et al. 2024, arXiv:2403.13257), method `arcee_fusion`.
    """

    name: ClassVar[str] = "arcee_fusion"
    whole: ClassVar[bool] = True
    count: ClassVar[int | None] = 2
    unweighted: ClassVar[bool] = True

    def combine(self, block: Block) -> Tensor:
        """The first member with the second's important entries."""
        first, second = block.members
        change = second - first
        if not change.dim() or not change.numel():  # no row to compare
            return first
        p, q = second.softmax(-1) + 1e-8, first.softmax(-1) + 1e-8
        importance = change.abs() * (p * (p / q).log()).sum(-1, keepdim=True)
        ordered = importance.reshape(-1).sort().values
        low, middle, high = (ordered[int(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75))
        return torch.where(importance >= middle + 1.5 * (high - low), second, first)
