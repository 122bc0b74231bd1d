"""Functions that are named as `package.module:function`, on the command line and in study files."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neurograft.errors import InputError, closest
from neurograft.paths import is_there


def factory_parts(text: str) -> tuple[str, str]:
    """Module and function of `package.module:function`, of which nothing is imported.

    Raises:
        InputError: if the text does not read so.
    """
    module_name, separator, name = text.partition(":")
    if not separator or not module_name or not name:
        there = (
            "; this is a file or folder of weights, what is needed is the function that builds the network "
            "(`neurograft plan` takes Hugging Face folders and shows their groups)"
        )
        raise InputError(
            f"factory {text!r} must read package.module:function, such as torchvision.models:resnet18"
            + (there if is_there(Path(text)) else "")
        )
    return module_name, name


def find_factory(text: str) -> Callable[[], Any]:
    """The function that `package.module:function` names.

    Raises:
        InputError: if the text, the module or the function is not right.

    Example:
        >>> find_factory("neurograft_experiments.networks:digits_mpl")
        Traceback (most recent call last):
        neurograft.errors.InputError: neurograft_experiments.networks has no 'digits_mpl'; did you mean ...
    """
    module_name, name = factory_parts(text)
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does when it is imported
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        raise InputError(f"factory {text!r}: {module_name} cannot be imported: {kind}{error}") from error
    if not hasattr(module, name):
        public = [known for known, value in vars(module).items() if _is_of(value, module_name)]
        raise InputError(f"{module_name} has no {name!r}; {closest(name, public)}")
    function = getattr(module, name)
    if not callable(function):
        raise InputError(f"factory {text!r} is a {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]


def _is_of(value: object, module_name: str) -> bool:
    """Whether a function or class comes from a module, or from a file of the package that it stands for."""
    return f"{getattr(value, '__module__', '')}.".startswith(f"{module_name}.")
