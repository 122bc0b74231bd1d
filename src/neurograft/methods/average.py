"""Vanilla averaging: every neuron keeps its place, A = B = I and c = w."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import ClassVar

import torch

from neurograft.errors import OptionError, closest
from neurograft.members.members import Members
from neurograft.methods.method import Method
from neurograft.options import patterns_of
from neurograft.plans.plan import Filling


@dataclass(frozen=True, kw_only=True)
class Average(Method):
    """Average the members' weights entry by entry, W = Σ_m w_m W_m.

    It is the right method for members trained from one ancestor (fine-tuned, federated), whose neurons stand in the
    same places. For members that do not look so the plan warns.

    Attributes:
        exclude: fnmatch patterns of tensors that are not averaged but taken from member 0.

    Raises:
        OptionError: `exclude` is no pattern and no list of patterns.

    Source: Singh & Jaggi 2020, arXiv:1910.05653, section 4 ("vanilla averaging").
    """

    name: ClassVar[str] = "average"
    moves: ClassVar[bool] = False
    aligns: ClassVar[bool] = True
    equal_widths: ClassVar[bool] = True
    passes: ClassVar[int] = 1
    finds_bad_numbers: ClassVar[bool] = True

    exclude: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "exclude", patterns_of(self.exclude, "exclude"))

    def fill(self, members: Members, _generator: torch.Generator) -> Filling:
        """Leave every neuron in its place.

        Raises:
            OptionError: a pattern fits no tensor.
        """
        excluded = sorted({name for pattern in self.exclude for name in _named(members, pattern)})
        return Filling(
            maps={},
            weights=members.weights_or(),
            tensor_weights=dict.fromkeys(excluded, (1.0,) + (0.0,) * (len(members) - 1)),
            details={"taken from member 0": excluded} if excluded else {},
        )


def _named(members: Members, pattern: str) -> list[str]:
    names = [name for name in members.states[0] if fnmatch(name, pattern)]
    if not names:
        raise OptionError(f"exclude fits no tensor: {pattern!r}; {closest(pattern, members.states[0])}")
    return names
