"""Options of operators that may differ from tensor to tensor and from member to member: patterns, and depth."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from fnmatch import fnmatch
from math import inf
from typing import Any, TypeAlias

from neurograft.errors import BadWeights, OptionError, closest

LARGEST = 1e30
"""Numbers beyond it are refused: their sums may overflow, and what is divided by them is 0."""


@dataclass(frozen=True)
class Gradient:
    """A value that changes over the depth of the network, in straight lines between evenly spread points.

    The first number holds in the first block, the last in the last one, `Gradient([0, 1, 0.5])(d)` in between; tensors
    outside of blocks (an embedding, a head) have depth 0.

    Raises:
        OptionError: no numbers, or fewer than one.

    Example:
        >>> Gradient([0, 1, 0.5])(0.25), Gradient([0, 1, 0.5])(1)
        (0.5, 0.5)
    """

    values: tuple[float, ...]

    def __init__(self, values: Sequence[float]) -> None:
        listed = tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else ()
        if not listed or not all(map(_is_number, listed)):
            raise OptionError(f"a gradient is a list of numbers, from the first block to the last, got {values!r}")
        object.__setattr__(self, "values", tuple(map(float, listed)))

    def __call__(self, depth: float) -> float:
        """The value at a depth from 0 (the first block) to 1 (the last)."""
        place = min(max(depth, 0.0), 1.0) * (len(self.values) - 1)
        left = int(place)
        right = min(left + 1, len(self.values) - 1)
        return (1 - (place - left)) * self.values[left] + (place - left) * self.values[right]

    def __repr__(self) -> str:
        return f"Gradient({list(self.values)})"


Setting: TypeAlias = float | Gradient | Mapping[str, Any]
"""A number; or one per depth; or fnmatch patterns of tensor names -> either, of which the last that fits counts."""

EachSetting: TypeAlias = Setting | Sequence[Any]
"""One `Setting` for all members, a list with one for each, or patterns -> either."""


@dataclass(frozen=True)
class Range:
    """The values an option may have: from `least` to `most`, without `least` itself if it is `open`."""

    least: float = -inf
    most: float = inf
    open: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.least < value if self.open else self.least <= value) and value <= self.most

    def __str__(self) -> str:
        low = f"above {self.least:g}" if self.open else f"at least {self.least:g}"
        if self.most == inf:
            return "a number" if self.least == -inf else f"a number {low}"
        return f"{low} and at most {self.most:g}"


SHARE = Range(0, 1, open=True)
"""Shares of entries that are kept."""


def shared(default: float, allowed: Range = Range()) -> Any:
    """The field of an option that all members share, a `Setting`."""
    return field(default=default, metadata={"each": False, "range": allowed})


def per_member(default: float | None, allowed: Range = Range()) -> Any:
    """The field of an option that each member has its own of, an `EachSetting`."""
    return field(default=default, metadata={"each": True, "range": allowed})


def setting_fields(made: Any) -> Iterator[tuple[Field[Any], Any]]:
    """The fields of an operator that hold settings, with their values."""
    for own in fields(made):
        if "range" in own.metadata and getattr(made, own.name) is not None:
            yield own, getattr(made, own.name)


def value_at(setting: Setting | None, name: str, depth: float) -> float | None:
    """The number that holds in one tensor; None where no pattern fits.

    Example:
        >>> value_at({"*": 0.5, "*.attn.*": Gradient([0, 1])}, "h.3.attn.weight", 0.75)
        0.75
    """
    if isinstance(setting, Mapping):
        found = (
            value_at(own, name, depth) for pattern, own in reversed(list(setting.items())) if fnmatch(name, pattern)
        )
        return next((value for value in found if value is not None), None)
    return setting(depth) if isinstance(setting, Gradient) else setting


def values_at(setting: EachSetting | None, name: str, depth: float, members: int) -> tuple[float | None, ...]:
    """The members' numbers in one tensor; None where no pattern fits.

    Example:
        >>> values_at({"*": 1.0, "head.*": [0.25, 0.75]}, "head.bias", 0.0, 2)
        (0.25, 0.75)
    """
    if isinstance(setting, Mapping):
        found: list[float | None] = [None] * members
        for pattern, own in setting.items():
            if fnmatch(name, pattern):
                new = values_at(own, name, depth, members)
                found = [old if value is None else value for old, value in zip(found, new, strict=True)]
        return tuple(found)
    if isinstance(setting, Sequence):
        return tuple(value_at(own, name, depth) for own in setting)
    return (value_at(setting, name, depth),) * members


def check_setting(option: str, setting: Any, allowed: Range, each: bool) -> None:
    """Refuse a setting that holds something else than numbers in their range.

    Raises:
        OptionError: with the value.
    """
    if isinstance(setting, Mapping):
        for pattern, own in setting.items():
            if not isinstance(pattern, str):
                raise OptionError(f"{option}: patterns of tensor names are texts, got {pattern!r}")
            check_setting(f"{option}[{pattern!r}]", own, allowed, each)
    elif isinstance(setting, Gradient):
        for value in setting.values:
            check_setting(option, value, allowed, each)
    elif isinstance(setting, Sequence) and not isinstance(setting, str):
        if not each:
            raise OptionError(
                f"{option} is one number for all members, got {list(setting)}; Gradient({list(setting)}) spreads "
                "numbers over the depth"
            )
        for own in setting:
            check_setting(option, own, allowed, False)
    elif not _is_number(setting):
        raise OptionError(f"{option} is a number, a Gradient, or patterns of tensor names with such, got {setting!r}")
    elif setting not in allowed:
        raise OptionError(f"{option} is {allowed}, got {setting!r}")


def check_fits(option: str, setting: Any, members: int, names: Sequence[str]) -> None:
    """Refuse a list that has another length than there are members, and a pattern that fits no tensor.

    Raises:
        BadWeights: weights of another length.
        OptionError: another list of another length; a pattern that fits nothing, with the closest names.
    """
    if isinstance(setting, Mapping):
        for pattern, own in setting.items():
            if not any(fnmatch(name, pattern) for name in names):
                raise OptionError(f"{option} fits no tensor: {pattern!r}; {closest(pattern, names)}")
            check_fits(f"{option}[{pattern!r}]", own, members, names)
    elif isinstance(setting, Sequence):
        if len(setting) != members:
            kind = BadWeights if option.startswith("weights") else OptionError
            raise kind(f"{option} has {len(setting)} entries for {members} members")
        for m, own in enumerate(setting):
            check_fits(f"{option}[{m}]", own, members, names)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST
