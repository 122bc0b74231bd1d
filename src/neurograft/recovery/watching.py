"""Watch a network run: every weight at the moment it is multiplied, every BatchNorm, and all ops between."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from neurograft.inputs import Inputs, call_on_batch, is_sparse
from neurograft.recovery.patches import Geometry
from neurograft.tracing.graph import NeuronGraph
from neurograft.tracing.observing import ObservedOp, observe

UseKey: TypeAlias = tuple[str, int]
CONTRACTIONS = frozenset({"convolution", "mm", "addmm", "bmm", "baddbmm", "mv", "_grouped_mm"})
BATCH_NORMS = frozenset(
    {
        "native_batch_norm",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "_batch_norm_no_update",
        "cudnn_batch_norm",
        "miopen_batch_norm",
    }
)


@dataclass(slots=True, eq=False)
class Contraction:
    """A weight about to be multiplied with an activation.

    Attributes:
        key: the parameter's name, and how many ops the run had before that read it.
        weight: the part of the parameter that the op sees, `(inputs, outputs)` or a convolution's weight; a view.
        bias: the bias the op adds, None without.
        input: the activation, `(rows, inputs)` or `(samples, channels, *spatial)`.
        geometry: of a convolution, None for a matrix.
        again: runs the op again, with the weights as they are then.
        skipped: why such an op cannot be solved for, "" if it can.
    """

    key: UseKey
    weight: Tensor
    bias: Tensor | None
    input: Tensor
    geometry: Geometry | None
    again: Callable[[], Tensor]
    skipped: str = ""

    @property
    def tensor(self) -> str:
        """The parameter's name."""
        return self.key[0]


@dataclass(slots=True, eq=False)
class Norm:
    """A BatchNorm about to run in eval mode: its input, and the parameters and buffers themselves.

    `name` is that of the running mean: two BatchNorms of one module are two.
    """

    name: str
    input: Tensor
    scale: Tensor | None
    shift: Tensor | None
    mean: Tensor
    variance: Tensor
    eps: float


class Stop(Exception):
    """Ends a run early: everything that was wanted has been seen."""


class Owner:
    """Which parameter or buffer of a network a tensor is, or is a view of."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = {_storage(p): name for name, p in model.named_parameters(remove_duplicate=True)}
        self.buffers = {_storage(b): name for name, b in model.named_buffers(remove_duplicate=True)}

    def is_parameter(self, value: Any) -> bool:
        """Whether the tensor is a parameter or a view of one."""
        return isinstance(value, Tensor) and _storage(value) in self.parameters

    def norm(self, step: ObservedOp) -> Norm | None:
        """What a BatchNorm op works on, None if it is no BatchNorm with running statistics."""
        if step.op not in BATCH_NORMS:
            return None
        mean, variance = step.argument("running_mean"), step.argument("running_var")
        if mean is None or variance is None or _storage(mean) not in self.buffers:
            return None
        eps = step.argument("eps")
        eps = float(step.argument("epsilon") if eps is None else eps)
        name = self.buffers[_storage(mean)]
        return Norm(name, step.args[0], step.argument("weight"), step.argument("bias"), mean, variance, eps)

    def contraction(self, step: ObservedOp) -> Contraction | None:
        """What a contraction of a parameter with an activation works on, None for any other op."""
        reading = step.reading
        if reading is None or step.op not in CONTRACTIONS or not reading.active:
            return None
        weight, x, bias, turned = reading.operands
        if (
            x is None
            or is_sparse(x)
            or _storage(x) in self.buffers
            or self.parameters.get(_storage(weight)) != reading.tensor
        ):
            return None
        geometry, why = None, ""
        if step.op == "convolution":
            stride, padding, dilation, transposed, extra, groups = step.args[3:]
            kernel, steps, around, apart = (tuple(value) for value in (weight.shape[2:], stride, padding, dilation))
            geometry = Geometry(kernel, steps, around, apart, groups, transposed, tuple(extra))
        elif step.op in ("mm", "addmm"):
            if turned:
                x, weight, why = x.t(), weight.t(), "its activation stands to the right of it"
            scaled = step.kwargs.get("beta", 1) != 1 or step.kwargs.get("alpha", 1) != 1
            if scaled or (bias is not None and bias.dim() != 1):
                why = "its op adds something else than a bias"
        else:
            why = f"it is used by {step.op}, many matrices or a vector at once"
        if bias is not None and not self.is_parameter(bias):
            why = "the bias its op adds is no parameter"
        return Contraction(reading.key, weight, bias, x, geometry, step.run, why)


def shown(norm: str) -> str:
    """What a report calls a BatchNorm: its module's path, where the running mean has its usual name."""
    return norm.removesuffix(".running_mean")


def _storage(tensor: Tensor) -> int:
    return id(tensor) if is_sparse(tensor) else int(tensor.untyped_storage()._cdata)


@dataclass(frozen=True)
class Watcher:
    """What is called as a network runs; every part may be left out.

    Attributes:
        before: a contraction is about to run.
        after: a contraction has run; a tensor that is returned takes the place of its output.
        norm: a BatchNorm is about to run.
        about: an op that is no contraction is about to run.
        done: an op that is no contraction has run.
    """

    before: Callable[[Contraction], None] | None = None
    after: Callable[[Contraction, Tensor], Tensor | None] | None = None
    norm: Callable[[Norm], None] | None = None
    about: Callable[[ObservedOp], None] | None = None
    done: Callable[[ObservedOp, Any], None] | None = None


class _Calls:
    """Reports to a watcher what the observed ops are."""

    def __init__(self, watcher: Watcher, owner: Owner) -> None:
        self.watcher, self.owner = watcher, owner
        self.contraction: Contraction | None = None

    def before(self, step: ObservedOp) -> None:
        watcher = self.watcher
        self.contraction = self.owner.contraction(step)
        if self.contraction is not None:
            if watcher.before is not None:
                watcher.before(self.contraction)
            return
        norm = self.owner.norm(step) if watcher.norm is not None else None
        if watcher.norm is not None and norm is not None:
            watcher.norm(norm)
        if watcher.about is not None:
            watcher.about(step)

    def after(self, step: ObservedOp, result: Any) -> Tensor | None:
        if self.contraction is not None:
            return None if self.watcher.after is None else self.watcher.after(self.contraction, result)
        if self.watcher.done is not None:
            self.watcher.done(step, result)
        return None


def run(model: nn.Module, graph: NeuronGraph, inputs: Inputs, watcher: Watcher, *, what: str) -> None:
    """Run the model once under a watcher, without gradients; a `Stop` ends it early.

    Raises:
        InputError: if the network cannot take the inputs; `what` names which batch and whose network it was.
    """
    try:
        with torch.no_grad(), observe(model, graph, _Calls(watcher, Owner(model))):
            call_on_batch(model, inputs, what)
    except Stop:
        pass
