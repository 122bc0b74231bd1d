"""What becomes of the learning rate from epoch to epoch."""

import math
from collections.abc import Callable
from typing import TypeAlias

from neurograft.errors import OptionError, closest

Schedule: TypeAlias = str | Callable[[int], float]
KINDS = ("constant", "cosine", "step", "halve")
TENTH = 0.1


def factor_of(schedule: Schedule, epochs: int) -> Callable[[int], float]:
    """The factor of the learning rate, as a function of the number t of epochs done out of E.

    | schedule | factor |
    | --- | --- |
    | `"constant"` | 1 |
    | `"cosine"` | (1 + cos(π t / E)) / 2 |
    | `"step:50,80"` | 0.1 to the number of those milestones that are not above t |
    | `"halve:30"` | 0.5^⌊t / 30⌋ |
    | a function f | f(t) |

    Raises:
        OptionError: for an unknown schedule, or milestones that are no increasing whole numbers above 0.

    Example:
        >>> [factor_of("step:2,3", 5)(done) for done in range(5)]
        [1.0, 1.0, 0.1, 0.010000000000000002, 0.010000000000000002]
        >>> [round(factor_of("cosine", 4)(done), 3) for done in range(4)]
        [1.0, 0.854, 0.5, 0.146]
    """
    if callable(schedule):
        return _checked(schedule)
    if not isinstance(schedule, str):
        raise OptionError(f"schedule={schedule!r}: must be a string, such as 'cosine', or a function")
    kind, colon, numbers = schedule.partition(":")
    if kind not in KINDS:
        raise OptionError(f"schedule={schedule!r} is not known; {closest(kind, KINDS)}")
    if kind in ("constant", "cosine") and colon:
        raise OptionError(f"schedule={schedule!r}: {kind!r} takes no numbers")
    if kind == "constant":
        return lambda _: 1.0
    if kind == "cosine":
        return lambda done: (1 + math.cos(math.pi * done / max(epochs, 1))) / 2
    milestones = _whole_numbers(schedule, numbers)
    if kind == "step":
        return lambda done: TENTH ** sum(milestone <= done for milestone in milestones)
    if len(milestones) != 1:
        raise OptionError(f"schedule={schedule!r}: 'halve' takes one number of epochs, as in 'halve:30'")
    return lambda done: 0.5 ** (done // milestones[0])


def _whole_numbers(schedule: str, numbers: str) -> list[int]:
    try:
        found = [int(number) for number in numbers.split(",")]
    except ValueError:
        found = []
    if not found or found[0] < 1 or sorted(set(found)) != found:
        raise OptionError(
            f"schedule={schedule!r}: needs increasing numbers of epochs, as in 'step:50,80' or 'halve:30'"
        )
    return found


def _checked(schedule: Callable[[int], float]) -> Callable[[int], float]:
    def factor(done: int) -> float:
        value = schedule(done)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise OptionError(f"schedule gave {value!r} after {done} epochs: must be a number, 0 or more")
        return value

    return factor
