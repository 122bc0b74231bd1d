"""Meet every op that a network runs, whatever Python it is made of: only ops are looked at, no modules."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors among op arguments, lists of tensors included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            for item in value:
                if isinstance(item, Tensor):
                    yield item


class RunFacts:
    """What is read from an op's schema, once per op."""

    __slots__ = ("composite", "mutable", "name", "overload")

    def __init__(self, func: Any):
        space, _, name = func._schema.name.partition("::")
        self.name = name if space == "aten" else f"{space}::{name}"
        self.overload = func._overloadname
        self.mutable = tuple(
            (i, argument.name)
            for i, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        )
        self.composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


_FACTS: dict[Any, RunFacts] = {}


def facts_of(func: Any) -> RunFacts:
    """What the op's schema holds."""
    facts = _FACTS.get(func)
    if facts is None:
        facts = _FACTS[func] = RunFacts(func)
    return facts


class Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that has `meet` run every op that computes something; composite ops come in parts.

    `meet(func, args, kwargs)` returns what the network goes on with.
    """

    def __init__(self, meet: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.meet = meet

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace in ("prim", "profiler"):
            return func(*args, **kwargs)
        if facts_of(func).composite:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return self.meet(func, args, kwargs)


@contextmanager
def without_fast_paths() -> Iterator[None]:
    """Attention runs op by op: fused kernels for whole layers would hide the weights."""
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


__all__ = ["Dispatch", "facts_of", "tensors_in", "without_fast_paths"]
