"""SLERP: from one member to the other along a great circle."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from neurograft.operators.block import Block
from neurograft.operators.operator import Operator
from neurograft.operators.settings import Range, Setting, shared
from neurograft.operators.spherical import great_circle


@dataclass(frozen=True, kw_only=True)
class Slerp(Operator):
    """W_fused = sin((1−t)ω)/sin ω · W_0 + sin(tω)/sin ω · W_1, ω the angle between the two tensors as vectors.

    Tensors whose cosine is 0.9995 or more in size are interpolated in a straight line.

    Attributes:
        t: how far from member 0 to member 1; by pattern and over depth, `t={"*attn*": Gradient([0, 1]), "*": 0.5}`.

    Raises:
        OptionError: not two members.

    Example:
        >>> import torch
        >>> Slerp(t=0.5).combine(Block("w", [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])], (0.5, 0.5)))
        tensor([0.7071, 0.7071])

    Source: Shoemake 1985, "Animating rotation with quaternion curves".
    """

    name: ClassVar[str] = "slerp"
    whole: ClassVar[bool] = True
    count: ClassVar[int | None] = 2
    unweighted: ClassVar[bool] = True

    t: Setting = shared(0.5, Range(0, 1))

    def combine(self, block: Block) -> Tensor:
        """A point on the arc between the two."""
        first, second = (member.reshape(-1) for member in block.members)
        found = great_circle(first, second, block.value(self.t, 0.5), 0.9995)
        return found.reshape(block.members[0].shape)
