"""What every operator is: a rule by which members that share a basis become one tensor."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from neurograft.options import Choice


@dataclass(frozen=True)
class Operator(Choice, ABC):
    """How aligned members are combined, W_fused = operator(A_0 W_0 B_0, A_1 W_1 B_1, …), tensor by tensor.

    A frozen dataclass whose fields are its options. It is asked for a block of rows at a time, so that members on disk
    need not fit into memory; nothing may be carried from one block to the next.

    Attributes:
        name: how it is called.
        sums: whether it is the weighted sum, which is computed without making the aligned blocks.
        whole: whether it must see a tensor at once, for a norm or a rank over all entries; takes the memory of all
            members' tensors of one name.
        needs_base: whether it combines what members have in common with their ancestor, `Members(..., base=)`.
    """

    what: ClassVar[str] = "operator"
    sums: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False

    @abstractmethod
    def combine(self, name: str, aligned: Sequence[Tensor], weights: Sequence[float], base: Tensor | None) -> Tensor:
        """Combine one block.

        Args:
            name: the tensor's name.
            aligned: of every member A_m W_m B_m, all of one shape, in float32 or wider.
            weights: the members' weights in this tensor.
            base: the ancestor's block in the same basis, of the same shape; None unless `needs_base`.

        Returns:
            The fused block, of the same shape.
        """


def weighted_sum(aligned: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ_m w_m x_m."""
    total = aligned[0] * weights[0]
    for block, weight in zip(aligned[1:], weights[1:], strict=True):
        total = total.add(block, alpha=weight)
    return total
