"""What networks are beside their tensors: settings of their modules (an activation, a rate, a stride) that differ."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from types import BuiltinFunctionType, FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import nn

MOST_SHOWN = 3
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, Enum)
SAYS_NOTHING = frozenset(  # how a network was loaded and stored, not what it computes
    {"training", "name_or_path", "model_type", "transformers_version", "architectures", "dtype", "torch_dtype"}
)


def differing_settings(models: Sequence[nn.Module]) -> tuple[str, ...]:
    """Warn, by name, of modules and settings in which members differ although their tensors fit.

    The fused network is built like member 0, so another activation function, rate, epsilon or stride of another
    member is lost, and its weights are used where they were not made for. Between members of different widths
    whole numbers are not compared: they are sizes mostly.

    Args:
        models: the members; their values may be on the meta device.

    Example:
        >>> differing_settings([nn.Sequential(nn.Dropout(0.1)), nn.Sequential(nn.Dropout(0.5))])
        ('0.p is 0.1 in models[0] but 0.5 in models[1]: the fused network is built like models[0]',)
    """
    if not models:
        return ()
    notes = []
    shapes = [[tuple(p.shape) for p in model.parameters()] for model in models]
    first = dict(_settings(models[0]))
    for m, model in enumerate(models[1:], 1):
        sized = shapes[m] != shapes[0]
        own = first if model is models[0] else dict(_settings(model))
        pairs = {name: (first.get(name, ABSENT), own.get(name, ABSENT)) for name in first | own}
        found = [
            f"{name} is {_shown(a)} in models[0] but {_shown(b)} in models[{m}]"
            for name, (a, b) in pairs.items()
            if not _alike(a, b, sized)
        ]
        if found:
            more = f" (and {len(found) - MOST_SHOWN} more)" if len(found) > MOST_SHOWN else ""
            notes.append(f"{', '.join(found[:MOST_SHOWN])}{more}: the fused network is built like models[0]")
    return tuple(notes)


class _Absent:
    """Stands for a setting that a network does not have."""


ABSENT = _Absent()


def _settings(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every module's class, and every plain value it or its configuration holds, by dotted path."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        yield path or "the network", _Class(type(module))
        for name, value in vars(module).items():
            if not name.startswith("_") and name not in SAYS_NOTHING:
                yield from _values(f"{path}.{name}".lstrip("."), value, seen)


@dataclasses.dataclass(frozen=True)
class _Class:
    """A module's class by its name: parametrised modules have a class each."""

    kind: type

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Class) and _named(self.kind) == _named(other.kind)

    def __hash__(self) -> int:
        return hash(_named(self.kind))


def _named(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__qualname__


def _values(name: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (*PLAIN, FunctionType, BuiltinFunctionType)):
        yield name, value
    elif isinstance(value, (list, tuple)) and all(isinstance(item, PLAIN) for item in value):
        yield name, tuple(value)
    elif (held := _held(value)) is not None and id(value) not in seen:
        seen.add(id(value))  # the modules of one network often share one configuration
        for key, item in held.items():
            if not str(key).startswith("_") and key not in SAYS_NOTHING:
                yield from _values(f"{name}.{key}", item, seen)


def _held(value: Any) -> Mapping[Any, Any] | None:
    """What a configuration holds; None for anything that is none."""
    if isinstance(value, dict):
        return value
    if isinstance(value, SimpleNamespace) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return vars(value) if hasattr(value, "__dict__") else None
    to_dict: Callable[[], Any] | None = getattr(value, "to_dict", None)
    return vars(value) if callable(to_dict) and hasattr(value, "__dict__") else None


def _alike(one: Any, other: Any, sized: bool) -> bool:
    if sized and _whole(one) and _whole(other):
        return True
    if isinstance(one, FunctionType) and isinstance(other, FunctionType):
        return one.__code__ == other.__code__
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (one != one and other != other)
    return type(one) is type(other) and bool(one == other)


def _whole(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_whole(item) for item in value)
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    if isinstance(value, _Absent):
        return "absent"
    if isinstance(value, _Class):
        return value.kind.__name__
    if isinstance(value, (FunctionType, BuiltinFunctionType)):
        return value.__name__
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
