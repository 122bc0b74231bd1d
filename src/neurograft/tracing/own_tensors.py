"""A copy of a network must compute with the tensors that it holds: only those are written when networks are fused."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from neurograft.errors import TraceError
from neurograft.inputs import Inputs, call
from neurograft.tracing.dispatch import Dispatch
from neurograft.tracing.tape import as_found, storage_of


class Reading:
    """Which tensors the ops of a run read: those of a copy, those of the networks it was made from, and others.

    Args:
        copy: the network that runs.
        originals: the networks whose tensors it must not read.
    """

    def __init__(self, copy: nn.Module, originals: Sequence[nn.Module]) -> None:
        self.copy, self.kind = copy, type(copy).__name__
        self.own = {storage_of(x): name for name, x in _named(copy)}
        theirs = {storage_of(x): name for original in originals for name, x in _named(original)}
        self.theirs = {storage: name for storage, name in theirs.items() if storage not in self.own}
        self.attributes = {storage_of(x): name for name, x in _attributes(copy) if storage_of(x) not in self.own}
        self.registered = {id(x) for _, x in _named(copy)}
        self.made: set[int] = set()
        self.read: dict[int, str] = {}
        self.foreign: dict[str, None] = {}
        self.unregistered: dict[int, nn.Parameter] = {}

    def take(self, tensors: Sequence[Tensor]) -> None:
        """An op reads these tensors."""
        for x in tensors:
            storage = storage_of(x)
            if storage in self.own or storage in self.attributes:
                self.read[storage] = self.own.get(storage) or self.attributes[storage]
            elif storage in self.theirs:
                self.foreign[self.theirs[storage]] = None
            elif isinstance(x, nn.Parameter) and id(x) not in self.registered and storage not in self.made:
                self.unregistered[storage] = x

    def give(self, result: Any) -> None:
        """An op has made this."""
        self.made.update(storage_of(x) for x in tree_leaves(result) if isinstance(x, Tensor))

    def check(self, unreached: Sequence[str] = ()) -> None:
        """Refuse a network whose copies do not compute with their own tensors; warn of parameters nobody registers.

        Args:
            unreached: parameters that the graph knows to be read by no run.

        Raises:
            TraceError: names the tensors that are read instead.
        """
        if self.foreign:
            names = list(self.foreign)
            raise TraceError(
                f"a copy of {self.kind} computes with {names[0]}{_more(len(names))} of the network it was copied from: "
                "a function that a module holds calls that network itself, so that what is written to a copy has no "
                "effect; make it a method of a class, or take it off"
            )
        named = dict(_named(self.copy))
        if named and not any(storage in self.own for storage in self.read):
            raise TraceError(
                f"{self.kind} computes with none of the {len(named)} tensors that it holds ({next(iter(named))}, …), "
                "so that writing to them has no effect: it is packed, compiled to constants, or keeps results of before"
            )
        for name in unreached:
            cached = self._cached(name, named)
            if cached:
                raise TraceError(
                    f"{self.kind} computes with {cached}, which was made before, and not with {name}: what is written "
                    "to it would have no effect; clear what the module keeps"
                )
        if self.unregistered:
            shapes = ", ".join(str(tuple(x.shape)) for x in list(self.unregistered.values())[:3])
            warnings.warn(
                f"{self.kind} computes with {len(self.unregistered)} parameters that no module registers (of shape "
                f"{shapes}): they stay as they are; keep layers in an nn.ModuleList, not in a list",
                stacklevel=4,
            )

    def _cached(self, name: str, named: dict[str, Tensor]) -> str | None:
        # a tensor of as many entries that the parameter's module holds and the run reads
        if name not in named:
            return None
        module = name.rpartition(".")[0]
        beside = {kept: storage for storage, kept in self.attributes.items() if storage in self.read}
        kept = {key: x for key, x in _attributes(self.copy) if key in beside and key.rpartition(".")[0] == module}
        fits = (key for key, x in kept.items() if x.is_floating_point() and x.numel() == named[name].numel() > 1)
        return next(fits, None)


@contextmanager
def reads_noted(reading: Reading) -> Iterator[None]:
    """Note what the ops that run meanwhile read."""

    def meet(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        reading.take([x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)])
        result = func(*args, **kwargs)
        reading.give(result)
        return result

    with Dispatch(meet):
        yield


def check_own_tensors(made: nn.Module, originals: Sequence[nn.Module], examples: Sequence[Inputs]) -> None:
    """Run a network that was made of others once: it must compute with its own tensors, as far as it runs.

    Raises:
        TraceError: it computes with those of the others, or with none.
    """
    reading = Reading(made, originals)
    ran = False
    with suppress(Exception), as_found(made), reads_noted(reading):
        for example in examples:
            call(made, example)
        ran = True
    with warnings.catch_warnings(action="ignore"):  # tracing has warned
        if ran or reading.foreign:
            reading.check()


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        if not x.is_meta and x.numel():
            yield name, x


def _attributes(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    # tensors that modules hold beside parameters and buffers
    for path, module in model.named_modules():
        for name, x in vars(module).items():
            if isinstance(x, Tensor) and not x.is_meta:
                yield (f"{path}.{name}" if path else name), x


def _more(count: int) -> str:
    return f" and {count - 1} more tensor{'s' if count > 2 else ''}" if count > 1 else ""


__all__ = ["Reading", "check_own_tensors", "reads_noted"]
