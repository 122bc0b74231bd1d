"""What every operator is: a rule by which members that share a basis become one tensor."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from neurograft.errors import OptionError
from neurograft.inputs import Batches
from neurograft.operators.block import Block
from neurograft.operators.settings import check_fits, check_setting, setting_fields
from neurograft.options import Choice


@dataclass(frozen=True)
class Operator(Choice, ABC):
    """How aligned members are combined, W_fused = operator(A_0 W_0 B_0, A_1 W_1 B_1, …), tensor by tensor.

    A frozen dataclass whose fields are its options. It is called for a block of rows at a time, so that members on disk
    need not fit into memory; nothing may be carried from one block to the next. Options that are made by `shared` or
    `per_member` are settings: numbers, gradients over the depth, or patterns of tensor names with such.

    Attributes:
        name: how it is called.
        sums: whether it is the weighted sum, which is computed without making the aligned blocks.
        whole: whether it must see a tensor at once, for a norm or a rank over all entries; takes the memory of all
            members' tensors of one name.
        needs_base: whether it combines what members have in common with their ancestor, `Members(..., base=)`.
        takes_base: whether it does so where members have an ancestor.
        needs_data: whether it measures the members on calibration batches.
        unweighted: whether members' weights mean nothing to it.
        count: how many members it combines; None for any number of them.
    """

    what: ClassVar[str] = "operator"
    sums: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    takes_base: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False
    unweighted: ClassVar[bool] = False
    count: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for own, value in setting_fields(self):
            check_setting(own.name, value, own.metadata["range"], own.metadata["each"])

    @property
    def sees_whole(self) -> bool:
        """Whether it must see a tensor at once, with the options it has."""
        return self.whole

    @abstractmethod
    def combine(self, block: Block) -> Tensor:
        """Combine one block.

        Args:
            block: the members' rows of one tensor in one basis, their weights, and the ancestor's rows.

        Returns:
            The fused rows, of the same shape.
        """

    def check(self, members: int, names: Sequence[str], deep: Mapping[str, float]) -> None:
        """Refuse members that the operator cannot combine, before any work.

        Args:
            members: how many there are.
            names: of all tensors.
            deep: how deep those of them lie that lie in blocks.

        Raises:
            OptionError: too many members, a list of another length, or a pattern that fits no tensor.
            BadWeights: weights of another length, or weights that cannot be normalised.
        """
        if self.count is not None and members != self.count:
            raise OptionError(f"{self.name} combines {self.count} members, got {members}")
        for own, value in setting_fields(self):
            check_fits(own.name, value, members, names)
        for name in names:
            self.check_block(Block(name, (torch.empty(0),) * members, (), depth=deep.get(name, 0.0)))

    def check_block(self, _block: Block) -> None:
        """Refuse what options are in one tensor, which `check` gives without entries."""

    def measured(self, networks: Sequence[nn.Module], batches: Batches, seed: int) -> list[Mapping[str, Tensor]]:
        """What `needs_data` measures: for every network, which has the members' weights in one basis, by tensor name.

        Args:
            networks: the members, aligned.
            batches: the calibration batches.
            seed: of everything random.
        """
        raise NotImplementedError(f"{self.name} measures nothing")


def weighted_sum(aligned: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ_m w_m x_m."""
    total = aligned[0] * weights[0]
    for block, weight in zip(aligned[1:], weights[1:], strict=True):
        total = total.add(block, alpha=weight)
    return total
