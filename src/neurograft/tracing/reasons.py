"""Why positions along an axis cannot move."""

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias


class FixedReason(Enum):
    """The kinds of reasons; code compares the kind, people read the text beside it."""

    INPUT = "input"
    """It is an axis of an input."""
    OUTPUT = "output"
    """It is an axis of a returned tensor."""
    CONSTANT = "constant"
    """A constant, or a buffer that is not saved, has different values along it."""
    POSITIONS = "positions"
    """An op gives its positions a meaning: looked up by index, sliced, ordered in time."""
    KERNEL = "kernel"
    """Positions of a convolution's kernel."""
    ORDER = "order"
    """Its units are numbered, read one by one or put in order in a way that is not followed."""
    CONFLICT = "conflict"
    """Two ops see different factors of it."""
    NO_RULE = "no rule"
    """An op without a rule reads or makes it."""
    UNREACHED = "unreached"
    """No example input reached it."""
    PROOF = "proof"
    """The rules left it free, but the proof found that moving it moves the outputs."""
    ASKED = "asked"
    """The caller fixed it."""
    SINGLE = "single"
    """It has one position."""


@dataclass(frozen=True, slots=True)
class Why:
    """A kind of reason and the same in words, with the op and module path where there are any."""

    reason: FixedReason
    text: str

    def __str__(self) -> str:
        return self.text


Because: TypeAlias = Why | str
"""A reason; plain text stands for an op that gives positions a meaning."""

SINGLE = Why(FixedReason.SINGLE, "a single position")


def why(because: Because) -> Why:
    """The reason of this text.

    Example:
        >>> why("topk in gate").reason, str(why(SINGLE))
        (<FixedReason.POSITIONS: 'positions'>, 'a single position')
    """
    return because if isinstance(because, Why) else Why(FixedReason.POSITIONS, because)


__all__ = ["SINGLE", "Because", "FixedReason", "Why", "why"]
