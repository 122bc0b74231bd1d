"""NuSLERP: SLERP by weights, of whole tensors or of rows or columns, of weights or of task vectors."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from neurograft.operators.block import Block
from neurograft.operators.operator import Operator
from neurograft.operators.settings import EachSetting, per_member
from neurograft.operators.spherical import great_circle


@dataclass(frozen=True, kw_only=True)
class NuSlerp(Operator):
    """SLERP with t = w_1 / (w_0 + w_1); with an ancestor of the task vectors, W_base + slerp(τ_0, τ_1, t).

    Attributes:
        weights: one number per member; default the members' weights.
        over: what counts as one vector: the whole "tensor", what lies along its "last" dimension (the weights of one
            neuron), or along its "first" one.

    Raises:
        OptionError: not two members.

    Source: mergekit 0.1 (Goddard et al. 2024, arXiv:2403.13257), method `nuslerp`.
    """

    name: ClassVar[str] = "nuslerp"
    whole: ClassVar[bool] = True
    takes_base: ClassVar[bool] = True
    count: ClassVar[int | None] = 2

    weights: EachSetting | None = per_member(None)
    over: Literal["tensor", "last", "first"] = "tensor"

    def combine(self, block: Block) -> Tensor:
        """Points on arcs between the two."""
        first, second = block.members if block.base is None else block.changes
        weights = block.values(self.weights, 1.0)
        total = sum(weights)
        t = weights[1] / total if abs(total) >= 1e-6 else 0.5
        shape = first.shape
        if self.over == "tensor" or not shape:
            first, second = first.reshape(-1), second.reshape(-1)
        elif self.over == "first":
            first, second = first.transpose(0, -1), second.transpose(0, -1)
        found = great_circle(first, second, t, 1 - 1e-16)
        found = found.transpose(0, -1) if self.over == "first" and shape else found
        found = found.reshape(shape)
        return found if block.base is None else block.base + found
