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
