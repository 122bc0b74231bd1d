"""What an operator is given: one block of rows of one tensor, of all members."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from neurograft.operators.settings import EachSetting, Setting, value_at, values_at


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of one tensor as all members have them, in one basis.

    Attributes:
        name: the tensor's name.
        members: of every member its rows of A_m W_m B_m, all of one shape, in float32 or wider.
        weights: the members' weights in this tensor, which sum to 1 unless the members are made together.
        base: the ancestor's rows in the same basis, of the same shape; None for operators that do without.
        statistics: of every member what the operator measured on batches for this tensor; empty if it measures nothing.
        depth: how deep in the network the tensor lies, from 0 to 1.
        start: the first row's place in the tensor.
        seed: of everything random.
    """

    name: str
    members: Sequence[Tensor]
    weights: Sequence[float]
    base: Tensor | None = None
    statistics: Sequence[Tensor] = ()
    depth: float = 0.0
    start: int = 0
    seed: int = 0

    def value(self, setting: Setting, default: float) -> float:
        """The number that an option has in this tensor, `default` where no pattern fits."""
        found = value_at(setting, self.name, self.depth)
        return default if found is None else found

    def values(self, setting: EachSetting | None, default: float) -> tuple[float, ...]:
        """The members' numbers of an option in this tensor, `default` where no pattern fits."""
        found = values_at(setting, self.name, self.depth, len(self.members))
        return tuple(default if value is None else value for value in found)

    @property
    def ancestor(self) -> Tensor:
        """The ancestor's rows, for operators that need them."""
        assert self.base is not None
        return self.base

    @property
    def changes(self) -> list[Tensor]:
        """The task vectors τ_m = x_m − base."""
        return [member - self.ancestor for member in self.members]

    @property
    def first_entry(self) -> int:
        """The place of the block's first entry in the flattened tensor."""
        return self.start * prod(self.members[0].shape[1:])
