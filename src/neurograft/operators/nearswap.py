"""Nearswap: the other member's entries where the two are near each other."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from neurograft.operators.block import Block
from neurograft.operators.operator import Operator
from neurograft.operators.settings import Range, Setting, shared


@dataclass(frozen=True, kw_only=True)
class NearSwap(Operator):
    """W_fused = s W_1 + (1 − s) W_0 entry by entry, s = min(1, t / |W_0 − W_1|).

    Attributes:
        t: the distance up to which entries of member 1 are taken as they are.

    Raises:
        OptionError: not two members, or a t that is not above 0.

    Example:
        >>> import torch
        >>> NearSwap(t=0.1).combine(Block("w", [torch.zeros(2), torch.tensor([0.05, 1.0])], (0.5, 0.5)))
        tensor([0.0500, 0.1000])

    Source: alchemonaut 2024, the model card of QuartetAnemoi-70B-t0.0001; mergekit 0.1, method `nearswap`.
    """

    name: ClassVar[str] = "nearswap"
    count: ClassVar[int | None] = 2
    unweighted: ClassVar[bool] = True

    t: Setting = shared(1e-3, Range(0, open=True))

    def combine(self, block: Block) -> Tensor:
        """Entries of the second member where they are near."""
        first, second = block.members
        share = (block.value(self.t, 1e-3) / (first - second).abs().clamp_min(1e-6)).clamp(max=1)
        return share * second + (1 - share) * first
