"""Vanilla averaging: every neuron keeps its place, A = B = I and c = w."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import ClassVar

import torch

from neurograft.errors import OptionError, closest
from neurograft.members.checks import check_member_weights
from neurograft.members.members import Members
from neurograft.methods.method import Method
from neurograft.plans.plan import Filling


@dataclass(frozen=True, kw_only=True)
class Average(Method):
    """Average the members' weights entry by entry, W = Σ_m w_m W_m.

    It is the right method for members trained from one ancestor (fine-tuned, federated), whose neurons stand in the
    same places. For members that do not look so the plan warns.

    Attributes:
        tensor_weights: fnmatch patterns of tensor names -> the members' weights for those tensors, normalised to sum
            to 1; where several patterns fit the last one counts.
        exclude: fnmatch patterns of tensors that are not averaged but taken from member 0.

    Raises:
        OptionError: patterns that are no list.

    Source: Singh & Jaggi 2020, arXiv:1910.05653, section 4 ("vanilla averaging").
    """

    name: ClassVar[str] = "average"
    moves: ClassVar[bool] = False
    equal_widths: ClassVar[bool] = True
    passes: ClassVar[int] = 1
    finds_bad_numbers: ClassVar[bool] = True

    tensor_weights: Mapping[str, Sequence[float]] | None = None
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.exclude, str):
            raise OptionError(f"exclude is a list of patterns, got the single string {self.exclude!r}")

    def fill(self, members: Members, _generator: torch.Generator) -> Filling:
        """Leave every neuron in its place.

        Raises:
            OptionError: a pattern fits no tensor.
            BadWeights: weights that make no sense.
        """
        k = len(members.states)
        own: dict[str, tuple[float, ...]] = {}
        for pattern, weights in (self.tensor_weights or {}).items():
            shares = check_member_weights(weights, k, f"tensor_weights[{pattern!r}]") or ()
            own |= dict.fromkeys(_named(members, pattern, "tensor_weights"), shares)
        excluded = [name for pattern in self.exclude for name in _named(members, pattern, "exclude")]
        own |= dict.fromkeys(excluded, (1.0,) + (0.0,) * (k - 1))
        return Filling(
            maps={},
            weights=members.weights_or(),
            owned=False,
            tensor_weights=own,
            details={"taken from member 0": sorted(set(excluded))} if excluded else {},
        )


def _named(members: Members, pattern: str, option: str) -> list[str]:
    names = [name for name in members.states[0] if fnmatch(name, pattern)]
    if not names:
        raise OptionError(f"{option} fits no tensor: {pattern!r}; {closest(pattern, members.states[0])}")
    return names
