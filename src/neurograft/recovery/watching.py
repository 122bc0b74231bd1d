"""Watch a network run: every weight at the moment it is used, every norm, every addition of two activations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from neurograft.inputs import Inputs, call_on_batch
from neurograft.recovery.patches import Geometry
from neurograft.tracing.dispatch import Dispatch, facts_of, without_fast_paths
from neurograft.tracing.observing import operands

Key: TypeAlias = tuple[str, int]
CONTRACTIONS = frozenset({"convolution", "mm", "addmm", "bmm", "baddbmm", "mv", "_grouped_mm"})
BATCH_NORMS = frozenset(
    {
        "aten::native_batch_norm",
        "aten::_native_batch_norm_legit",
        "aten::_native_batch_norm_legit_no_training",
        "aten::_batch_norm_no_update",
        "aten::cudnn_batch_norm",
        "aten::miopen_batch_norm",
    }
)


@dataclass(slots=True, eq=False)
class Contraction:
    """A weight about to be multiplied with an activation.

    Attributes:
        tensor: the parameter's name.
        nth: how many contractions with this parameter the run had before.
        weight: the part of the parameter that the op sees, `(inputs, outputs)` or a convolution's weight; a view.
        bias: the bias the op adds, None without.
        input: the activation, `(rows, inputs)` or `(samples, channels, *spatial)`.
        geometry: of a convolution, None for a matrix.
        again: runs the op again, with the weights as they are then.
        skipped: why such an op cannot be solved for, "" if it can.
    """

    tensor: str
    nth: int
    weight: Tensor
    bias: Tensor | None
    input: Tensor
    geometry: Geometry | None
    again: Callable[[], Tensor]
    skipped: str = ""

    @property
    def key(self) -> Key:
        """What names this contraction in every run."""
        return self.tensor, self.nth


@dataclass(slots=True, eq=False)
class Norm:
    """A BatchNorm about to run in eval mode: its input, and the parameters and buffers themselves."""

    name: str
    input: Tensor
    scale: Tensor | None
    shift: Tensor | None
    mean: Tensor
    variance: Tensor
    eps: float


class Stop(Exception):
    """Ends a run early: everything that was wanted has been seen."""


class Watcher:
    """Changes nothing by itself; what it meets is offered to the methods below."""

    def __init__(self, model: nn.Module) -> None:
        self.uses: dict[str, int] = {}
        self.owners = {_storage(p): name for name, p in model.named_parameters(remove_duplicate=True)}
        self.buffers = {_storage(b): name for name, b in model.named_buffers(remove_duplicate=True)}

    def before(self, contraction: Contraction) -> None:
        """A contraction is about to run."""

    def after(self, contraction: Contraction, output: Tensor) -> Tensor | None:
        """A contraction has run; a tensor that is returned takes the place of its output."""

    def normalising(self, norm: Norm) -> None:
        """A BatchNorm is about to run."""

    def about(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Any op is about to run."""

    def done(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Any op has run."""

    def is_parameter(self, value: Any) -> bool:
        """Whether the tensor is a parameter or a view of one."""
        return isinstance(value, Tensor) and _storage(value) in self.owners

    def meet(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an op, and offer what it is."""
        contraction = self._contraction(func, args, kwargs)
        if contraction is not None:
            self.before(contraction)
            output = func(*args, **kwargs)
            replaced = self.after(contraction, output)
            return output if replaced is None else replaced
        norm = self.norm(func, args)
        if norm is not None:
            self.normalising(norm)
        self.about(func, args, kwargs)
        result = func(*args, **kwargs)
        self.done(func, args, kwargs, result)
        return result

    def norm(self, func: Any, args: tuple[Any, ...]) -> Norm | None:
        """What a BatchNorm op works on, None if it is no BatchNorm with running statistics."""
        if func._schema.name not in BATCH_NORMS:
            return None
        values = dict(zip((a.name for a in func._schema.arguments), args, strict=False))
        mean, variance = values.get("running_mean"), values.get("running_var")
        if mean is None or variance is None or _storage(mean) not in self.buffers:
            return None
        eps = float(values["eps"] if "eps" in values else values["epsilon"])
        name = self.buffers[_storage(mean)].rpartition(".")[0]
        return Norm(name, values["input"], values.get("weight"), values.get("bias"), mean, variance, eps)

    def _contraction(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Contraction | None:
        op = facts_of(func).name
        found = operands(op, args, self.is_parameter) if op in CONTRACTIONS else None
        if found is None or found.input is None:
            return None
        weight, x, bias, turned = found.weight, found.input, found.bias, found.turned
        if self.is_parameter(x) or _storage(x) in self.buffers:
            return None
        geometry, why = None, ""
        if op == "convolution":
            stride, padding, dilation, transposed, extra, groups = args[3:]
            kernel, step, around, apart = (tuple(value) for value in (weight.shape[2:], stride, padding, dilation))
            geometry = Geometry(kernel, step, around, apart, groups, transposed, tuple(extra))
        elif op in ("mm", "addmm"):
            if turned:
                x, weight, why = x.t(), weight.t(), "its activation stands to the right of it"
            if kwargs.get("beta", 1) != 1 or kwargs.get("alpha", 1) != 1 or (bias is not None and bias.dim() != 1):
                why = "its op adds something else than a bias"
        else:
            why = f"it is used by {op}, many matrices or a vector at once"
        if bias is not None and not self.is_parameter(bias):
            why = "the bias its op adds is no parameter"
        owner = self.owners[_storage(weight)]
        nth = self.uses.get(owner, 0)
        self.uses[owner] = nth + 1
        return Contraction(owner, nth, weight, bias, x, geometry, lambda: func(*args, **kwargs), why)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Run ops under the watcher, without gradients and without fused fast paths that would hide the weights."""
    with torch.no_grad(), without_fast_paths(), Dispatch(watcher.meet):
        yield


def run(model: nn.Module, inputs: Inputs, make: Callable[[nn.Module], Watcher] | Watcher, *, what: str) -> Watcher:
    """Run the model once under a watcher; a `Stop` ends it early.

    Raises:
        InputError: if the network cannot take the inputs; `what` says which batch and whose network it was.
    """
    watcher = make if isinstance(make, Watcher) else make(model)
    try:
        with watched(watcher):
            call_on_batch(model, inputs, what)
    except Stop:
        pass
    return watcher
