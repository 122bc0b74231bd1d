"""Run networks in eval mode and give everything back exactly as it was; copy them."""

import copy
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from types import CellType, FunctionType, MethodType
from typing import Any, ParamSpec, TypeVar

import numpy
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from neurograft.errors import InputError

Network = TypeVar("Network", bound=nn.Module)
Given = ParamSpec("Given")
Returned = TypeVar("Returned")

CONTAINERS = frozenset((dict, OrderedDict, list, set, deque))
"""What a module may hold several things in; other objects are the network's own affair."""
_GENERATORS: dict[type, Callable[[Any], Callable[[], object]]] = {
    torch.Generator: lambda own: _again(own.set_state, own.get_state()),
    numpy.random.RandomState: lambda own: _again(own.set_state, own.get_state()),
    numpy.random.Generator: lambda own: _again(
        lambda state: setattr(own.bit_generator, "state", state), own.bit_generator.state
    ),
    random.Random: lambda own: _again(own.setstate, own.getstate()),
}


@contextmanager
def preserve_state(*models: nn.Module) -> Iterator[None]:
    """Run `models` in eval mode; afterwards they, and all random states, are as before.

    Networks may write while they run: moving averages, steps, caches, the vectors of a spectral norm. Given back are
    modes; the attributes of every module, buffers, hooks and submodules among them, whether they were set, made,
    removed or kept in a list or dict that the module holds; the entries of buffers, and those of parameters and other
    tensors that `eval()` or the first call of a network writes to; and the state of generators that modules own.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> with preserve_state(net):
        ...     net.training
        False
        >>> net.training, net[1].training
        (True, True)
    """
    with forked_random_state(*models):
        before = _State(models)
        try:
            with before.written:
                for model in models:
                    model.eval()
            with _first_calls(models, before.written):
                yield
        finally:
            before.restore()


class _State:
    """What networks hold: their attributes, where each tensor lies, and the entries of those that are written to."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        modules = list(dict.fromkeys(module for model in models for module in model.modules()))
        self.modes = [(module, module.training) for module in modules]
        self.held: list[tuple[Any, Any]] = []
        self.generators: list[Callable[[], object]] = []
        tensors: dict[int, Tensor] = {}
        for module in modules:
            own = vars(module)
            tensors |= {id(x): x for x in _tensors_in(own)}
            self.held.append((own, dict(own)))
            for value in own.values():
                if type(value) in CONTAINERS:
                    self.held.append((value, type(value)(value)))
                elif type(value) in _GENERATORS:
                    self.generators.append(_GENERATORS[type(value)](value))
        buffers = {id(x): x for module in modules for x in module._buffers.values() if x is not None}
        self.buffers = [(x, x.detach().clone()) for x in buffers.values() if not x.is_meta]
        dense = [x for x in tensors.values() if x.layout == torch.strided and type(x) in (Tensor, nn.Parameter)]
        self.places = [(x, x.detach()) for x in dense]
        self.written = _Written([x for x in dense if id(x) not in buffers])

    def restore(self) -> None:
        """Give everything back, the objects before what they hold."""
        for own, kept in self.held:
            _refill(own, kept)
        for module, mode in self.modes:
            if module.training != mode:
                module.training = mode
        for x, place in self.places:
            if _place(x) != _place(place):
                with torch.inference_mode(x.is_inference()):
                    x.data = place
        for x, entries in (*self.buffers, *self.written.before):
            restore(x, entries)
        for again in self.generators:
            again()


class _Written(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, keeps the entries of tensors before an op writes to their memory.

    Parameters are mostly not written to, and a copy of all of them is a second network.
    """

    supports_higher_order_operators = True

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.before: list[tuple[Tensor, Tensor]] = []
        self.sharing: dict[int, list[Tensor]] = {}
        for x in tensors:
            if not x.is_meta:
                self.sharing.setdefault(x.untyped_storage()._cdata, []).append(x)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = getattr(func, "_schema", None)
        if schema is not None and schema.is_mutable:
            for argument, value in zip(schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    for x in value if isinstance(value, (list, tuple)) else (value,):
                        self._keep(x)
            for value in (kwargs or {}).values():
                self._keep(value)
        return func(*args, **(kwargs or {}))

    def _keep(self, target: Any) -> None:
        if isinstance(target, Tensor) and target.layout == torch.strided:
            found = self.sharing.pop(target.untyped_storage()._cdata, ())
            self.before += [(x, x.detach().clone()) for x in found]


@contextmanager
def _first_calls(models: Sequence[nn.Module], entered: TorchDispatchMode) -> Iterator[None]:
    """Enter a mode for the first call of each network: later calls write to the same tensors, and run at full speed."""
    waiting, running = {id(model) for model in models}, list[int]()

    def enter(module: nn.Module, _: Any) -> None:
        if id(module) in waiting:
            waiting.remove(id(module))
            running.append(id(module))
            entered.__enter__()  # type: ignore[no-untyped-call]

    def leave(module: nn.Module, *_: Any) -> None:
        if running and running[-1] == id(module):
            running.pop()
            entered.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    before = register_module_forward_pre_hook(enter)
    after = register_module_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()
        for _ in running:  # of calls that were interrupted
            entered.__exit__(None, None, None)  # type: ignore[no-untyped-call]


def _again(give: Callable[[Any], object], state: Any) -> Callable[[], object]:
    return lambda: give(state)


def _refill(own: Any, kept: Any) -> None:
    """Give a container its former contents, if it has others."""
    if len(own) == len(kept) and all(map(_is_same, _entries(own), _entries(kept))):
        return
    own.clear()
    own.extend(kept) if isinstance(own, (list, deque)) else own.update(kept)


def _entries(container: Any) -> Iterable[Any]:
    return container.items() if isinstance(container, dict) else container


def _is_same(one: Any, other: Any) -> bool:
    # a pair of key and value is made anew every time
    if type(one) is tuple and type(other) is tuple and len(one) == len(other) == 2:
        return one[0] is other[0] and one[1] is other[1]
    return one is other


def _place(x: Tensor) -> tuple[Any, ...]:
    return x.untyped_storage()._cdata, x.storage_offset(), x.shape, x.stride(), x.dtype


def copy_of(model: Network, memo: Mapping[int, Any] | None = None) -> Network:
    """A deep copy of a network, its sparse buffers included.

    Args:
        model: the network.
        memo: what stands for an object in the copy, by the object's id.

    Raises:
        InputError: the copy would run parts of the network itself; see `check_copied`.
    """
    check_copied(model)
    # copy.deepcopy asks compressed sparse tensors for a storage, which they have not, and copies no computed tensor
    apart = [x for x in model.buffers() if x.layout != torch.strided]
    apart += [x for module in model.modules() for x in _tensors_in(vars(module)) if not x.is_leaf]
    return copy.deepcopy(model, {**{id(x): x.detach().clone() for x in apart}, **(memo or {})})


def _tensors_in(attributes: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors among a module's attributes, as they are or in a container."""
    for value in attributes.values():
        if isinstance(value, Tensor):
            yield value
        elif type(value) in CONTAINERS:
            items: Iterable[Any] = value.values() if isinstance(value, dict) else value
            yield from (item for item in items if isinstance(item, Tensor))


def check_copied(model: nn.Module) -> None:
    """Refuse a network whose copies would run the network itself: Python copies no function, nor what it closes over.

    Raises:
        InputError: names the function and what it holds.
    """
    own = {id(x) for x in (*model.modules(), *model.parameters(), *model.buffers())}
    for path, module in model.named_modules():
        if any(name in vars(kind) for kind in type(module).__mro__[:-2] for name in ("__getstate__", "__deepcopy__")):
            continue  # copies itself as it likes; what it then reads is seen when it runs
        for name, value in vars(module).items():
            for function in value.values() if name in ("_forward_hooks", "_forward_pre_hooks") else (value,):
                if name != "_compiled_call_impl" and _closes_over(function, own):
                    raise InputError(
                        f"{f'{path}.' if path else ''}{name} of {type(model).__name__} is a function that holds a part "
                        "of the network it was made for, so that a copy would run this network and not itself: make it "
                        "a method of a class, or a functools.partial of it, or take it off"
                    )


def _closes_over(function: Any, own: set[int], depth: int = 4) -> bool:
    if isinstance(function, partial):
        return _closes_over(function.func, own, depth)
    if not isinstance(function, FunctionType) or not depth:
        return False
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
    held = [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return any(
        id(x) in own
        or (isinstance(x, MethodType) and id(x.__self__) in own)
        or (isinstance(x, partial) and any(id(a) in own for a in (*x.args, getattr(x.func, "__self__", None))))
        or _closes_over(x, own, depth - 1)
        for x in held
    )


def restore(buffer: Tensor, kept: Tensor) -> None:
    """Write a tensor's former entries, if it has others now."""
    if not same_entries(buffer, kept):
        with torch.inference_mode(buffer.is_inference()), torch.no_grad():
            buffer.copy_(kept)


def same_entries(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape hold the same, sparse ones in the same places."""
    if a.layout != b.layout or a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.layout == torch.strided:
        return bool(torch.equal(a, b))
    if a.layout == torch.sparse_coo:
        a, b = a.coalesce(), b.coalesce()
        return torch.equal(a.indices(), b.indices()) and torch.equal(a.values(), b.values())
    rows = a.layout in (torch.sparse_csr, torch.sparse_bsr)
    bounds, places = ("crow_indices", "col_indices") if rows else ("ccol_indices", "row_indices")
    return all(torch.equal(getattr(a, part)(), getattr(b, part)()) for part in (bounds, places, "values"))


@contextmanager
def forked_random_state(*models: nn.Module, batches: Any = None, seed: int | None = None) -> Iterator[None]:
    """Give the random states of torch, on the CPU and on the models' devices, of numpy and of Python back at the end.

    Args:
        models: networks whose CUDA devices count.
        batches: what is read inside, if anything: the generators that a DataLoader and its samplers own count too.
        seed: where all that is random starts inside; None goes on from the caller's state.

    Example:
        >>> before = torch.get_rng_state()
        >>> with forked_random_state(seed=1):
        ...     _ = torch.rand(3)
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    devices = sorted({p.device.index for model in models for p in model.parameters() if p.is_cuda})
    generators = [(generator, generator.get_state()) for generator in _generators(batches)]
    python, arrays = random.getstate(), numpy.random.get_state()  # noqa: NPY002 - networks and data sets draw from it
    try:
        with torch.random.fork_rng(devices=devices):
            if seed is not None:
                seed_all(seed, devices)
            yield
    finally:
        for generator, state in generators:
            generator.set_state(state)
        random.setstate(python)
        numpy.random.set_state(arrays)  # noqa: NPY002


def keeps_random_state(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """A public call that leaves all random states as they were, whatever it, or a module that it imports, draws.

    Example:
        >>> before = random.getstate()
        >>> _ = keeps_random_state(random.random)()
        >>> random.getstate() == before
        True
    """

    @wraps(function)
    def kept(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
        with forked_random_state():
            return function(*args, **kwargs)

    return kept


def random_state(devices: Sequence[int] = (), batches: Any = None) -> dict[str, Any]:
    """What decides all random numbers to come: tensors, numbers and strings only, so that it can be stored.

    Args:
        devices: indices of CUDA devices that count.
        batches: a DataLoader whose generators count.
    """
    numpy_state = numpy.random.get_state(legacy=False)  # noqa: NPY002 - data sets draw from the global state
    assert isinstance(numpy_state, dict)
    return {
        "torch": torch.get_rng_state(),
        "cuda": {index: torch.cuda.get_rng_state(index) for index in devices},
        "numpy": {
            **numpy_state,
            "state": {
                "key": torch.from_numpy(numpy_state["state"]["key"].astype(numpy.int64)),
                "pos": numpy_state["state"]["pos"],
            },
        },
        "python": random.getstate(),
        "batches": [generator.get_state() for generator in _generators(batches)],
    }


def set_random_state(state: Mapping[str, Any], batches: Any = None) -> None:
    """Go on from a state that `random_state` gave."""
    torch.set_rng_state(state["torch"])
    for index, kept in state["cuda"].items():
        torch.cuda.set_rng_state(kept, index)
    words = state["numpy"]["state"]
    key = words["key"].numpy().astype(numpy.uint32)
    numpy.random.set_state({**state["numpy"], "state": {"key": key, "pos": words["pos"]}})  # noqa: NPY002
    random.setstate(state["python"])
    for generator, kept in zip(_generators(batches), state["batches"], strict=True):
        generator.set_state(kept)


def seed_all(seed: int, devices: Sequence[int] = ()) -> None:
    """Start the random state of torch, on the CPU and on CUDA devices, numpy and Python from a seed."""
    torch.default_generator.manual_seed(seed)
    for index in devices:
        with torch.cuda.device(index):
            torch.cuda.manual_seed(seed)
    numpy.random.seed(seed % 2**32)  # noqa: NPY002 - data sets draw from the global state
    random.seed(seed)


def _generators(batches: Any) -> list[torch.Generator]:
    """The generators that a DataLoader and its samplers own, each once."""
    batch_sampler = getattr(batches, "batch_sampler", None)
    owners = (batches, getattr(batches, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [g for owner in owners if isinstance(g := getattr(owner, "generator", None), torch.Generator)]
    return list({id(generator): generator for generator in found}.values())
