"""Checks of single options that several methods share."""

from collections.abc import Sequence

from neurograft.errors import OptionError, closest


def check_choice(option: str, value: object, known: Sequence[str]) -> None:
    """Refuse a word that an option does not know.

    Raises:
        OptionError: with the closest known words.

    Example:
        >>> check_choice("solver", "exakt", ("exact", "sinkhorn"))
        Traceback (most recent call last):
        neurograft.errors.OptionError: solver='exakt' is not known; did you mean 'exact'? known: exact, sinkhorn
    """
    if value not in known:
        raise OptionError(f"{option}={value!r} is not known; {closest(str(value), known)}")


def check_count(option: str, value: object) -> None:
    """Refuse what is not a whole number above 0.

    Raises:
        OptionError: with the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{option} is a whole number of at least 1, got {value!r}")
