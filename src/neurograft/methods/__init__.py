"""The fusion methods: one file and one frozen dataclass each, and the table of their names."""

from collections.abc import Mapping
from typing import Any

from neurograft.errors import OptionError, closest
from neurograft.methods.average import Average
from neurograft.methods.method import Method
from neurograft.methods.optimal_transport import OptimalTransport
from neurograft.methods.permutation import Permutation
from neurograft.methods.transplant import Transplant
from neurograft.methods.zip import Zip

METHODS: dict[str, type[Method]] = {
    kind.name: kind for kind in (Average, Permutation, OptimalTransport, Transplant, Zip)
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
