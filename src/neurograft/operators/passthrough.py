"""Passthrough: each tensor of one member, as it is or scaled."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from neurograft.errors import OptionError
from neurograft.operators.block import Block
from neurograft.operators.operator import Operator
from neurograft.operators.settings import Range, Setting, shared


@dataclass(frozen=True, kw_only=True)
class Passthrough(Operator):
    """W_fused = s W_m, with the member m of each tensor chosen by pattern.

    Attributes:
        member: the member whose tensors are taken, counted from 0: `member={"*": 0, "head.*": 2}`.
        scale: s.

    Raises:
        OptionError: when members are planned for, a member that there is not.

    Example:
        >>> import torch
        >>> block = Block("head.w", [torch.zeros(1), torch.ones(1)], (0.5, 0.5))
        >>> Passthrough(member={"*": 0, "head.*": 1}).combine(block)
        tensor([1.])

    Source: mergekit 0.1 (Goddard et al. 2024, arXiv:2403.13257), method `passthrough`.
    """

    name: ClassVar[str] = "passthrough"
    unweighted: ClassVar[bool] = True

    member: Setting = shared(0, Range(0))
    scale: Setting = shared(1.0)

    def check_block(self, block: Block) -> None:
        """Refuse a member that there is not."""
        chosen = block.value(self.member, 0)
        if chosen != int(chosen) or chosen >= len(block.members):
            raise OptionError(
                f"{block.name}: member={chosen:g} is no member; there are {len(block.members)}, counted from 0"
            )

    def combine(self, block: Block) -> Tensor:
        """One member's rows."""
        return block.members[int(block.value(self.member, 0))] * block.value(self.scale, 1.0)
