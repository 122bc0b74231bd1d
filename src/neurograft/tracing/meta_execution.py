"""Record a network on the meta device, where tensors have no values, although its code reads some.

Masks and positions depend on no weight, so their values can be known: such tensors have a shadow on the CPU that every
op is run on too, and a value that is read (`bool(mask.all())`) is that of the shadow. Numbers that Python
writes out as an index (`x[:, [-2]]`) or gives `torch.tensor` have values before they come to the meta device: they are
made on the CPU first.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from neurograft.tracing.dispatch import tensors_in
from neurograft.tracing.tape import storage_of

_META = torch.device("meta")
# a shadow that would be large is dropped: nothing reads its values
_LARGEST = 1 << 24


class MetaExecution:
    """Runs ops with all tensors on the meta device, and with CPU shadows of those that depend on no weight."""

    def __init__(self) -> None:
        self.shadows: dict[int, Tensor] = {}
        self.kept: list[Tensor] = []

    def enter(self, x: Tensor) -> Tensor:
        """A real tensor as one on the meta device with a shadow."""
        if x.device.type == "meta":
            return x
        meta = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=_META)
        return self._shadowed(meta, x)

    def _shadowed(self, meta: Tensor, value: Tensor) -> Tensor:
        if value.numel() <= _LARGEST and value.device.type == "cpu":
            self.shadows[id(meta)] = value
            self.kept.append(meta)
        return meta

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Run the op on the meta device, and on the shadows if all its tensors have one."""
        args, kwargs = pytree.tree_map_only(Tensor, self.enter, (args, kwargs))
        taken = [*tensors_in(args), *tensors_in(kwargs.values())]
        known = all(id(x) in self.shadows for x in taken)
        value = self._value(func, args, kwargs) if known else None
        try:
            result = _run(func, args, _on_meta(func, taken, kwargs))
        except (RuntimeError, NotImplementedError):
            if value is None:
                raise
            # a question for a value, or a result whose shape depends on one
            return args, kwargs, pytree.tree_map_only(Tensor, self.enter, value)
        if value is not None:
            self._follow(result, value)
        else:
            self._forget(func, args)
        return args, kwargs, result

    def _value(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        real_args, real_kwargs = pytree.tree_map_only(Tensor, lambda x: self.shadows[id(x)], (args, dict(kwargs)))
        if "device" in real_kwargs:
            real_kwargs["device"] = torch.device("cpu")
        return func(*real_args, **real_kwargs)

    def _follow(self, result: Any, value: Any) -> None:
        pairs = zip(pytree.tree_leaves(result), pytree.tree_leaves(value), strict=True)
        for meta, real in pairs:
            if isinstance(meta, Tensor) and isinstance(real, Tensor):
                self._shadowed(meta, real)

    def _forget(self, func: Any, args: tuple[Any, ...]) -> None:
        # what has been written to with an unknown value is unknown, and so is all that shares its memory
        if not func._schema.is_mutable:
            return
        for argument, x in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for target in tensors_in((x,)):
                    storage = storage_of(target)
                    for meta in self.kept:
                        if id(meta) in self.shadows and storage_of(meta) == storage:
                            del self.shadows[id(meta)]


class Literals(TorchFunctionMode):
    """Passes numbers that Python writes out into tensors on the CPU before torch puts them on the meta device itself.

    Torch makes such tensors out of sight of any dispatch mode; only their way to the meta device is seen.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            args = (args[0], _index(args[1]), *args[2:])
        elif func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == _META:
            made: Tensor = func(*args, **{**kwargs, "device": "cpu"})
            return made.to(_META)
        return func(*args, **kwargs)


def _index(index: Any) -> Any:
    # an index with its lists of numbers as tensors
    if isinstance(index, tuple):
        return tuple(_index(part) for part in index)
    if isinstance(index, list) and index and all(isinstance(n, (int, list)) for n in index):
        return torch.tensor(index, device="cpu")
    return index


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return func(*args, **kwargs)
    except RuntimeError as error:
        # some kernels are described on the meta device for one dtype only; the shape is the same for all
        if "BF16" not in str(error):
            raise
        narrow = pytree.tree_map_only(Tensor, lambda x: x.bfloat16() if x.is_floating_point() else x, args)
        return pytree.tree_map_only(Tensor, lambda x: x.to(args[0].dtype), func(*narrow, **kwargs))


def _on_meta(func: Any, taken: list[Tensor], kwargs: dict[str, Any]) -> dict[str, Any]:
    has_device = any(argument.name == "device" for argument in func._schema.arguments)
    if has_device and (not taken or kwargs.get("device") is not None):
        return {**kwargs, "device": _META}
    return kwargs


__all__ = ["Literals", "MetaExecution"]
