"""What every fusion method is: an object whose fields are its options and whose attributes state what it needs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from neurograft.errors import OptionError
from neurograft.members.members import Members
from neurograft.options import Choice
from neurograft.plans.plan import Filling


@dataclass(frozen=True)
class Method(Choice, ABC):
    """A fusion method: a frozen dataclass whose fields are its options; `fill` chooses the matrices of every group.

    Attributes:
        name: how it is called as a string.
        moves: whether neurons may leave their places.
        aligns: whether it brings every member into one basis, in which any operator may combine them.
        equal_widths: whether members must be of one width.
        dense: whether it holds matrices of all neurons by all neurons of a group.
        passes: how often the members' weights are read, applying the plan included.
        finds_bad_numbers: whether NaN and infinity end it, or pass through to where they are found when the plan is
            applied; otherwise they are searched for beforehand, which is another pass.
        canonical: whether it aligns members in canonical form.
        needs_data: whether it looks at calibration batches, with the options it has.
    """

    moves: ClassVar[bool] = True
    aligns: ClassVar[bool] = False
    equal_widths: ClassVar[bool] = False
    dense: ClassVar[bool] = False
    passes: ClassVar[int] = 4
    finds_bad_numbers: ClassVar[bool] = False
    canonical: ClassVar[bool] = False

    @property
    def needs_data(self) -> bool:
        """Whether calibration batches are looked at."""
        return False

    @abstractmethod
    def fill(self, members: Members, generator: torch.Generator) -> Filling:
        """Decide how the members' neurons become the fused ones.

        Args:
            members: the networks, checked; they are only read.
            generator: the only source of randomness.

        Raises:
            OptionError: an option that does not suit these members.
            PlanError: members that the method cannot fuse.
        """


def check_reference(reference: int | None, members: Members) -> None:
    """Refuse a reference that is no member.

    Raises:
        OptionError: with the number of members.
    """
    if reference is not None and not 0 <= reference < len(members):
        raise OptionError(f"reference={reference} is no member; there are {len(members)}, counted from 0")
