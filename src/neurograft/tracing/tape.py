"""What a network really runs: every ATen op of one forward pass, in order, with its tensors kept alive."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from neurograft.inputs import is_sparse
from neurograft.preserve_state import preserve_state
from neurograft.tracing.dispatch import tensors_in, without_fast_paths

TensorKey: TypeAlias = tuple[int, int, tuple[int, ...], tuple[int, ...]]


@dataclass(slots=True, eq=False)
class Op:
    """One recorded op: `shapes` are those of its tensor results, `module` is the path of the module that ran it."""

    name: str
    overload: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Any, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    module: str
    mutates: tuple[Tensor, ...]
    func: Any

    def __str__(self) -> str:
        return f"{self.name} in {self.module or 'the network itself'}"


@dataclass(slots=True)
class Tape:
    """The ops of one forward pass, the tensors that went in and everything that came out.

    On the meta device `values` holds the values of tensors that depend on no weight, by the tensors' identity.
    """

    ops: list[Op]
    inputs: Any
    outputs: Any
    values: dict[int, Tensor] = field(default_factory=dict)


def op_tensors(op: Op) -> Iterator[Tensor]:
    """Every tensor the op takes."""
    yield from tensors_in(op.args)
    if op.kwargs:
        yield from tensors_in(op.kwargs.values())


@contextmanager
def as_found(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Eval mode (or training mode) in all modules, no gradients, no fused fast paths; see `preserve_state`."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    cudnn = torch.backends.cudnn.enabled
    caching = torch.is_autocast_cache_enabled()
    try:
        with preserve_state(model), torch.no_grad(), without_fast_paths():
            # cuDNN runs a recurrent layer as one op on packed weights, which no rule can look into
            torch.backends.cudnn.enabled = cudnn and not recurrent
            # weights that an autocast around us has cast before are not those the network has now
            torch.clear_autocast_cache()
            torch.set_autocast_cache_enabled(False)
            for module in model.modules():
                module.training = training
            yield
    finally:
        torch.backends.cudnn.enabled = cudnn
        torch.set_autocast_cache_enabled(caching)


@contextmanager
def module_paths(model: nn.Module) -> Iterator[Callable[[], str]]:
    """A function that returns which module is running now, by its dotted path."""
    names = {id(module): name for name, module in model.named_modules()}
    stack: list[str] = [""]

    def enter(module: nn.Module, _: Any) -> None:
        stack.append(names.get(id(module), stack[-1]))

    def leave(*_: Any) -> None:
        stack.pop()

    before = nn.modules.module.register_module_forward_pre_hook(enter)
    after = nn.modules.module.register_module_forward_hook(leave, always_call=True)
    try:
        yield lambda: stack[-1]
    finally:
        before.remove()
        after.remove()


def on_meta(model: nn.Module) -> bool:
    """Whether any of the network's parameters has no values."""
    return any(x.device.type == "meta" for x in model.parameters())


def tensors_of(value: Any, path: str = "", depth: int = 8) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested outputs with its dotted path: mappings, sequences, dataclasses and plain objects."""
    if isinstance(value, Tensor):
        yield path, value
        return
    items: Any
    if depth == 0 or value is None or isinstance(value, (str, bytes, int, float, type, nn.Module)):
        return
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (Sequence, set, frozenset)):
        items = enumerate(value)
    elif is_dataclass(value):
        items = ((f.name, getattr(value, f.name)) for f in fields(value))
    elif hasattr(value, "__dict__"):
        items = vars(value).items()
    else:
        return
    for key, item in items:
        yield from tensors_of(item, f"{path}.{key}" if path else str(key), depth - 1)


def storage_of(tensor: Tensor) -> int:
    """What tensors that share memory have in common."""
    return int(tensor.untyped_storage()._cdata) if tensor.layout == torch.strided else id(tensor)


def storage_key(tensor: Tensor) -> TensorKey:
    """What makes `weight.data` the same weight although it is another Python object."""
    if is_sparse(tensor):
        return (id(tensor), 0, tuple(tensor.shape), ())
    return (
        int(tensor.untyped_storage()._cdata),
        int(tensor.storage_offset()),
        tuple(tensor.shape),
        tuple(tensor.stride()),
    )


def see_through(ops: Sequence[Op], own: Iterable[Tensor]) -> None:
    """Let ops take the results that their operands are, where these are other objects in the same memory.

    No op makes `x.data` or `nn.Parameter(x)`. `own` are tensors that are themselves, a network's parameters.
    """
    made: dict[TensorKey, Tensor] = {}
    known = {id(x) for x in own}
    keys = {storage_key(x) for x in own if x.numel()}
    fresh: list[Tensor] = []

    def itself(x: Tensor) -> Tensor:
        if id(x) in known or not x.numel():
            return x
        for r in fresh:
            made.setdefault(storage_key(r), r)
        fresh.clear()
        key = storage_key(x)
        return x if key in keys else made.get(key, x)

    for op in ops:
        if any(id(x) not in known for x in op_tensors(op)):
            op.args, op.kwargs, op.mutates = tree_map_only(Tensor, itself, (op.args, op.kwargs, op.mutates))
        results = [r for r in op.results if isinstance(r, Tensor)]
        known.update(map(id, results))
        fresh += [r for r in results if r.numel()]


def live(tape: Tape) -> list[Op]:
    """The ops that something returned, or a value read by Python, depends on.

    Code that reads a tensor only for its shape must not fix anything. An in-place op is live if the storage it
    writes is; an op without a tensor result (`item`) is, since the control flow may hang on it.
    """
    needed: set[int] = set()
    storages: set[int] = set()
    for _, tensor in tensors_of(tape.outputs):
        needed.add(id(tensor))
        storages.add(storage_of(tensor))
    kept: list[Op] = []
    for op in reversed(tape.ops):
        results = [r for r in op.results if isinstance(r, Tensor)]
        if (
            results
            and not any(id(r) in needed for r in results)
            and not any(storage_of(x) in storages for x in op.mutates)
        ):
            continue
        kept.append(op)
        for tensor in op_tensors(op):
            needed.add(id(tensor))
            storages.add(storage_of(tensor))
    return kept[::-1]


__all__ = [
    "Op",
    "Tape",
    "as_found",
    "live",
    "module_paths",
    "on_meta",
    "op_tensors",
    "see_through",
    "storage_key",
    "storage_of",
    "tensors_of",
]
