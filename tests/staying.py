"""What a call must leave as it was: networks down to their bits, their hooks, and all random states."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import neurograft as ng


def look(value: Any, depth: int = 3) -> Any:
    """What a value is: objects by identity, tensors by identity, strides and bits, containers by what they hold."""
    if isinstance(value, Tensor):
        dense = value.layout == torch.strided
        bits = value.detach().clone() if dense else value.detach().to_dense()
        strides = value.stride() if dense else ()
        return (
            id(value),
            value.shape,
            value.dtype,
            value.device,
            strides,
            value.requires_grad,
            value.is_leaf and value.grad is None,
            bits,
        )
    if isinstance(value, dict) and depth:
        return [type(value), [(key, look(item, depth - 1)) for key, item in value.items()]]
    if isinstance(value, (list, tuple, set)) and depth:
        return [type(value), [look(item, depth - 1) for item in value]]
    if isinstance(value, torch.Generator):
        return id(value), value.get_state()
    if isinstance(value, numpy.random.Generator):
        return id(value), copy.deepcopy(value.bit_generator.state)
    if isinstance(value, random.Random):
        return id(value), value.getstate()
    return value if isinstance(value, (int, float, str, bool)) else id(value)


def look_of(model: nn.Module) -> list[Any]:
    """Everything that a network holds: every attribute of every module, in order."""
    return [(name, id(module), look(vars(module))) for name, module in model.named_modules()]


def random_states() -> list[Any]:
    """Of torch, numpy and Python."""
    arrays = numpy.random.get_state()  # noqa: NPY002 - networks draw from the global state
    return [torch.get_rng_state(), list(arrays), random.getstate()]


def same(one: Any, other: Any) -> bool:
    """Whether two looks are equal, to the bit."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and one.equal(other)
    if isinstance(one, numpy.ndarray):
        return bool(numpy.array_equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other or (one != one and other != other))


@contextmanager
def stays(*models: nn.Module) -> Iterator[None]:
    """Fail if networks or random states are others at the end, also where what is done fails."""
    before, states = [look_of(model) for model in models], random_states()
    try:
        yield
    finally:
        for number, (model, was) in enumerate(zip(models, before, strict=True)):
            now = look_of(model)
            changed = [name for (name, *_), a, b in zip(was, was, now, strict=False) if not same(a, b)]
            assert same(was, now), f"network {number} has changed in {changed or 'its modules'}"
        drawn = [
            name
            for name, a, b in zip(("torch", "numpy", "python"), states, random_states(), strict=True)
            if not same(a, b)
        ]
        assert not drawn, f"the random states of {drawn} have changed"


def networks_in(value: Any) -> list[nn.Module]:
    """The networks among arguments: as they are, in lists, as members, with their plan and members."""
    if isinstance(value, nn.Module):
        return [value]
    if isinstance(value, ng.Members):
        return list(value.networks)
    if isinstance(value, ng.Fusion):
        return [value.model, *value.members.networks]
    return [found for item in value for found in networks_in(item)] if isinstance(value, (list, tuple)) else []


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, failing where networks that it takes, or random states, do not stay."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        making = [arg for arg in args if not (isinstance(arg, ng.Members) and not vars(arg))]
        with stays(*networks_in([*making, *kwargs.values()])):
            return function(*args, **kwargs)

    return call


FUNCTIONS = tuple(name for name in ng.__all__ if name[0].islower())


@pytest.fixture
def everything_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard every public call: all functions, `Members`, and the methods of `Fusion`."""
    for name in FUNCTIONS:
        monkeypatch.setattr(ng, name, guarded(getattr(ng, name)))
    monkeypatch.setattr(ng.Members, "__init__", guarded(ng.Members.__init__))
    for name in ("refit", "repair", "reestimate_batch_norm", "recovered"):
        monkeypatch.setattr(ng.Fusion, name, guarded(getattr(ng.Fusion, name)))
    of = guarded(ng.Fusion.of)
    monkeypatch.setattr(ng.Fusion, "of", staticmethod(of))
