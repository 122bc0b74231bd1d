"""The fusion methods: one file and one frozen dataclass each, and the table of their names."""

from collections.abc import Mapping
from typing import Any

from neurograft.errors import OptionError, closest
from neurograft.methods.average import Average
from neurograft.methods.method import Method
from neurograft.methods.optimal_transport import OptimalTransport
from neurograft.methods.permutation import Permutation
from neurograft.methods.symmetric import Symmetric
from neurograft.methods.transplant import Transplant
from neurograft.methods.zip import Zip
from neurograft.operators import OPERATORS, VARIANTS
from neurograft.operators.operator import Operator

METHODS: dict[str, type[Method]] = {
    kind.name: kind for kind in (Average, Permutation, Symmetric, OptimalTransport, Transplant, Zip)
}
"""A new method is one file, and its class in this line."""


def method_of(method: str | Method, options: Mapping[str, Any]) -> Method:
    """The method that a name and options stand for, or the object itself.

    Raises:
        OptionError: an unknown name or option, with the closest ones, or a value out of range.

    Example:
        >>> method_of("transplant", {"balance": True}).options
        {'balance': True}
    """
    if isinstance(method, Method):
        if options:
            raise OptionError(f"{', '.join(options)}: options of a method object are given to {type(method).__name__}")
        return method
    if not isinstance(method, str) or method not in METHODS:
        raise OptionError(f"unknown method {method!r}; {closest(str(method), METHODS)}")
    return METHODS[method](**options)


def choice_of(
    method: str | Method | Operator, options: Mapping[str, Any], align: str | Method | None = None
) -> tuple[Method, Operator | None]:
    """A method with the operator it brings along, or the alignment and the operator that were asked for.

    Raises:
        OptionError: an unknown name or option, with the closest ones; `align` beside a method that is no operator, or
            one that aligns nothing.

    Example:
        >>> choice_of("ties", {"density": 0.5}, "permutation")[1]
        Ties(weights=None, scale=1.0, normalize=True, density=0.5, consensus='sum')
    """
    operator = method if isinstance(method, Operator) else None
    if isinstance(method, str) and method not in METHODS:
        operator, options = operator_of(method, options), {}
    if operator is None:
        assert not isinstance(method, Operator)
        if align is not None:
            raise OptionError(
                f"align= chooses the basis in which an operator combines members; {method} decides it itself"
            )
        return method_of(method, options), None
    if options:
        raise OptionError(f"{', '.join(options)}: options of an operator are given to {type(operator).__name__}")
    alignment = Average() if align is None else method_of(align, {})
    if not alignment.aligns:
        known = [name for name, kind in METHODS.items() if kind.aligns and kind.moves]
        raise OptionError(
            f"align={alignment.name!r} chooses among all members' neurons, which leaves no operator anything to "
            f"combine; it is one of {', '.join(known)}"
        )
    return alignment, operator


def operator_of(name: str, options: Mapping[str, Any]) -> Operator:
    """The operator that a name and options stand for.

    Raises:
        OptionError: an unknown name or option, with the closest ones, or a value out of range.

    Example:
        >>> print(operator_of("dare_ties", {"density": 0.3}))
        dare(density=0.3, consensus='sum')
    """
    kind, given = VARIANTS.get(name) or (OPERATORS.get(name), {})
    if kind is None:
        raise OptionError(f"unknown method {name!r}; {closest(name, [*METHODS, *OPERATORS, *VARIANTS])}")
    return kind(**{**given, **options})
