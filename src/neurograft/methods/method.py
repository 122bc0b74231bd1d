"""What every fusion method is: an object whose fields are its options and whose attributes tell what it needs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

import torch

from neurograft.errors import OptionError, closest
from neurograft.members.members import Members
from neurograft.options import check_choice
from neurograft.plans.plan import Filling


@dataclass(frozen=True)
class Method(ABC):
    """A fusion method: a frozen dataclass whose fields are its options; `fill` chooses the matrices of every group.

    Values of declared kinds (switches, numbers, words) are checked when an object is made; a subclass checks ranges in
    its own `__post_init__`, after `super().__post_init__()`.

    Attributes:
        name: how it is called as a string.
        moves: whether neurons may leave their places.
        equal_widths: whether members must be of one width.
        dense: whether it holds matrices of all neurons by all neurons of a group.
        passes: how often the members' weights are read, applying the plan included.
        finds_bad_numbers: whether NaN and infinity end it, or pass through to where they are found when the plan is
            applied; otherwise they are searched for beforehand, which is another pass.
        needs_data: whether it looks at calibration batches, with the options it has.
    """

    name: ClassVar[str]
    moves: ClassVar[bool] = True
    equal_widths: ClassVar[bool] = False
    dense: ClassVar[bool] = False
    passes: ClassVar[int] = 4
    finds_bad_numbers: ClassVar[bool] = False

    def __new__(cls, **options: object) -> Self:
        """Refuse an option that the method does not have, with the closest names."""
        known = cls.option_names()
        for option in options:
            if option not in known:
                hint = closest(option, known) if known else "it has none"
                raise OptionError(f"method {cls.name!r} has no option {option!r}; {hint}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for field in fields(self):
            _check_kind(field.name, kinds[field.name], getattr(self, field.name))

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """The names of all its options."""
        return tuple(field.name for field in fields(cls))

    @property
    def needs_data(self) -> bool:
        """Whether calibration batches are looked at."""
        return False

    @property
    def options(self) -> dict[str, Any]:
        """The options that are not at their defaults."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def __str__(self) -> str:
        given = ", ".join(f"{option}={value!r}" for option, value in self.options.items())
        return f"{self.name}({given})" if given else self.name

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


def _check_kind(name: str, kind: Any, value: object) -> None:
    """Refuse what is no switch, number or known word where an option is declared as one."""
    if get_origin(kind) is Literal:
        check_choice(name, value, get_args(kind))
    if kind is bool and not isinstance(value, bool):
        raise OptionError(f"{name} is True or False, got {value!r}")
    declared = set(get_args(kind) or (kind,))
    if value is None or declared not in ({float}, {float, NoneType}, {int, NoneType}):
        return
    whole = float not in declared
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise OptionError(f"{name} is a {'whole ' if whole else ''}number, got {value!r}")
