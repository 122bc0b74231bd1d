"""Options of methods and operators: fields of frozen dataclasses, checked when an object is made."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from neurograft.errors import OptionError, closest


def patterns_of(patterns: str | Sequence[str], option: str) -> tuple[str, ...]:
    """Patterns that an option takes; a string is one pattern.

    Raises:
        OptionError: for anything else than a string or several.

    Example:
        >>> patterns_of("head.*", "fixed"), patterns_of(["a", "b"], "fixed")
        (('head.*',), ('a', 'b'))
    """
    if isinstance(patterns, str):
        return (patterns,)
    found = tuple(patterns) if isinstance(patterns, Iterable) else (patterns,)
    if not all(isinstance(pattern, str) for pattern in found):
        raise OptionError(f"{option} is a pattern or a list of patterns, got {patterns!r}")
    return found


def check_choice(option: str, value: object, known: Sequence[str]) -> None:
    """Refuse a word that an option does not take.

    Raises:
        OptionError: with the closest known words.

    Example:
        >>> check_choice("solver", "exakt", ("exact", "sinkhorn"))
        Traceback (most recent call last):
        neurograft.errors.OptionError: solver='exakt' is not known; did you mean 'exact'? known: exact, sinkhorn
    """
    if value not in known:
        raise OptionError(f"{option}={value!r} is not known; {closest(str(value), known)}")


def check_seed(seed: object, option: str = "seed") -> None:
    """Refuse what random numbers cannot start from.

    Raises:
        OptionError: with the value.

    Example:
        >>> check_seed(2**64)
        Traceback (most recent call last):
        neurograft.errors.OptionError: seed is a whole number from 0 to 2^63 - 1, got 18446744073709551616
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise OptionError(f"{option} is a whole number from 0 to 2^63 - 1, got {seed!r:.80}")


def check_count(option: str, value: object) -> None:
    """Refuse what is not a whole number above 0.

    Raises:
        OptionError: with the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{option} is a whole number of at least 1, got {value!r}")


@dataclass(frozen=True)
class Choice:
    """A method or an operator: a frozen dataclass whose fields are its options, with its name as a class attribute.

    Unknown options are refused with the closest names, and values of declared kinds (switches, numbers, words) are
    checked when an object is made. A subclass checks ranges in its own `__post_init__`, after
    `super().__post_init__()`.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Scaled(Choice):
        ...     name: ClassVar[str] = "scaled"
        ...     factor: float = 1.0
        >>> print(Scaled(factor=2.0), Scaled(factor=2.0).options, Scaled())
        scaled(factor=2.0) {'factor': 2.0} scaled
    """

    name: ClassVar[str]
    what: ClassVar[str] = "method"

    def __new__(cls, **options: object) -> Self:
        """Refuse an option that there is not, with the closest names."""
        known = cls.option_names()
        for option in options:
            if option not in known:
                hint = closest(option, known) if known else "it has none"
                raise OptionError(f"{cls.what} {cls.name!r} has no option {option!r}; {hint}")
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
    def options(self) -> dict[str, Any]:
        """The options that are not at their defaults."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def __str__(self) -> str:
        given = ", ".join(f"{option}={value!r}" for option, value in self.options.items())
        return f"{self.name}({given})" if given else self.name


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
