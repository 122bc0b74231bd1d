"""The weighted sum with weights that need not sum to 1."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from neurograft.errors import BadWeights
from neurograft.operators.block import Block
from neurograft.operators.operator import Operator, weighted_sum
from neurograft.operators.settings import EachSetting, per_member


@dataclass(frozen=True, kw_only=True)
class Linear(Operator):
    """W_fused = Σ_m w_m W_m, divided by Σ_m w_m if they are to be normalised.

    Attributes:
        weights: one number per member, of any sign; default the members' weights.
        normalize: whether the weights of each tensor are made to sum to 1.

    Raises:
        BadWeights: when members are planned for, weights that sum to 0 and are to be normalised.

    Example:
        >>> import torch
        >>> Linear(weights=[2, 1], normalize=False).combine(Block("w", [torch.ones(2), torch.zeros(2)], (0.5, 0.5)))
        tensor([2., 2.])

    Source: Wortsman et al. 2022, arXiv:2203.05482, section 2 (the uniform soup).
    """

    name: ClassVar[str] = "linear"

    weights: EachSetting | None = per_member(None)
    normalize: bool = True

    def check_block(self, block: Block) -> None:
        """Refuse weights that cannot be normalised."""
        weights = block.values(self.weights, 1.0)
        if self.normalize and abs(sum(weights)) < 1e-8:
            raise BadWeights(f"{block.name}: the weights {list(weights)} sum to 0 and cannot be normalised")

    def combine(self, block: Block) -> Tensor:
        """Σ_m w_m x_m."""
        weights = block.values(self.weights, 1.0)
        total = sum(weights) if self.normalize else 1.0
        return weighted_sum(block.members, [weight / total for weight in weights])
