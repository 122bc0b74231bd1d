"""Watch a running network use its weights, whatever Python it is made of: only ops are looked at, no modules.

A weight is recognised by identity, through everything that is computed from parameters alone (`t()`, a chunk of a
fused projection, a weight-norm product), just as tracing does it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from neurograft.tracing.dispatch import Dispatch, facts_of, tensors_in, without_fast_paths
from neurograft.tracing.graph import NeuronGraph, Use
from neurograft.tracing.labelling import by_size, consumes, tensors_of_model
from neurograft.tracing.tape import module_paths, storage_key

# op -> positions of its activation, its weight and its bias; the operands of a plain product may come in any order
OPERANDS: dict[str, tuple[int | None, int, int | None]] = {
    "mm": (0, 1, None),
    "addmm": (1, 2, 0),
    "_sparse_addmm": (1, 2, 0),
    "bmm": (0, 1, None),
    "baddbmm": (1, 2, 0),
    "mv": (0, 1, None),
    "addmv": (1, 2, 0),
    "dot": (0, 1, None),
    "linear": (0, 1, 2),
    "convolution": (0, 1, 2),
    "cudnn_convolution": (0, 1, None),
    "mkldnn_convolution": (0, 1, 2),
    "embedding": (None, 0, None),
    "_embedding_bag": (None, 0, None),
    "_embedding_bag_forward_only": (None, 0, None),
    "native_batch_norm": (0, 1, 2),
    "cudnn_batch_norm": (0, 1, 2),
    "miopen_batch_norm": (0, 1, 2),
    "_native_batch_norm_legit_no_training": (0, 1, 2),
    "_native_batch_norm_legit": (0, 1, 2),
    "_batch_norm_with_update": (0, 1, 2),
    "_batch_norm_no_update": (0, 1, 2),
    "native_layer_norm": (0, 2, 3),
    "_fused_rms_norm": (0, 2, None),
    "native_group_norm": (0, 1, 2),
    "_grouped_mm": (0, 1, None),
    "mkldnn_rnn_layer": (0, 1, 3),
}
_EITHER_ORDER = {"mm", "bmm", "mv", "dot", "addmm", "_sparse_addmm", "baddbmm", "addmv"}


class Operands(NamedTuple):
    """The weight that an op uses, the activation beside it, the bias; `turned` if the weight stands in its place."""

    weight: Tensor
    input: Tensor | None
    bias: Tensor | None
    turned: bool


def operands(op: str, args: tuple[Any, ...], is_weight: Callable[[Tensor], bool]) -> Operands | None:
    """Which operand of an op is a weight; None if none is, or the op uses no weights."""
    places = OPERANDS.get(op)
    if places is None:
        return None
    given, weight, bias = (None if place is None or place >= len(args) else args[place] for place in places)
    if isinstance(weight, Tensor) and is_weight(weight):
        return Operands(weight, given, bias, False)
    if op in _EITHER_ORDER and isinstance(given, Tensor) and is_weight(given):
        return Operands(given, weight, bias, True)
    if "norm" in op and isinstance(bias, Tensor) and is_weight(bias):
        return Operands(bias, given, None, False)
    if "batch_norm" in op and len(args) > 3 and isinstance(args[3], Tensor) and is_weight(args[3]):
        return Operands(args[3], given, None, False)
    return None


@dataclass(frozen=True, slots=True, eq=False)
class WeightRead:
    """A weight that an op reads.

    Attributes:
        tensor: the parameter (of several that the weight is made from, the largest).
        nth: how many ops the forward pass had before that read it.
        use: the graph's own record of this use, None if tracing has not seen it.
        operands: the weight as the op sees it, what stands beside it, the bias.
        active: whether what stands beside it is an activation, or at least no weight.
    """

    tensor: str
    nth: int
    use: Use | None
    operands: Operands
    active: bool

    @property
    def key(self) -> tuple[str, int]:
        """What names this use in every run."""
        return self.tensor, self.nth


@dataclass(frozen=True, slots=True, eq=False)
class ObservedOp:
    """An op that is about to run, or has just run; `reading` is None if it reads no weight."""

    op: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reading: WeightRead | None

    def run(self) -> Any:
        """Run the op (once more), with its operands as they are now."""
        return self.func(*self.args, **self.kwargs)

    def argument(self, name: str) -> Any:
        """The op's positional argument of that name; None if it has none."""
        return next((x for a, x in zip(self.func._schema.arguments, self.args, strict=False) if a.name == name), None)


class Observer(Protocol):
    """What is called at every op of a forward pass.

    Tensors are the network's own: read them at once, or clone them. A weight changed in place (`copy_`) in `before`
    is what the op then reads, as long as it reaches the op through views alone (`TensorInfo.curved` is False).
    """

    def before(self, step: ObservedOp) -> None:
        """The op is about to run."""

    def after(self, step: ObservedOp, result: Any) -> Any:
        """The op has run; what is returned takes the place of its result, None keeps it."""


class _WeightWatcher:
    """Follows which tensors are parameters, made from parameters, or activations, and calls the observer."""

    def __init__(self, model: nn.Module, graph: NeuronGraph, observer: Observer, path: Callable[[], str]):
        self.observer = observer
        self.path = path
        self.graph = graph
        self.products = frozenset(graph.products)
        self.own = tensors_of_model(model).by_name
        self.by_storage: dict[Any, str] = {}
        self.begin(())

    def begin(self, inputs: Any) -> None:
        """A new forward pass on `inputs`."""
        self.active: Any = WeakIdKeyDictionary()
        self.derived: Any = WeakIdKeyDictionary()
        self.counts: dict[str, int] = {}
        self.by_storage = {storage_key(x): name for name, x in self.own.items() if x.numel()}
        for name, x in self.own.items():
            self.derived[x] = (name,)
        for x in tree_leaves(inputs):
            if isinstance(x, Tensor):
                self.active[x] = True

    def names(self, x: Any) -> tuple[str, ...]:
        """The parameters a tensor is made from, the largest first; empty for anything else."""
        if not isinstance(x, Tensor) or x in self.active:
            return ()
        found: tuple[str, ...] | None = self.derived.get(x)
        if found is None and x.numel():
            name = self.by_storage.get(storage_key(x))
            found = (name,) if name else ()
        return found or ()

    def meet(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an op between the two calls of the observer."""
        op = facts_of(func).name
        taken = [*tensors_in(args), *tensors_in(kwargs.values())]
        own = sum(1 for x in taken if self.names(x))
        names = [n for x in taken for n in self.names(x)]
        active = any(x in self.active for x in taken)
        product = tuple(sorted(set(names))) in self.products
        alone = bool(names) and not active and (product or not consumes(op, self.path(), own))
        step = ObservedOp(op, func, args, kwargs, None if alone or not names else self._reading(op, args))
        self.observer.before(step)
        result = step.run()
        replaced = self.observer.after(step, result)
        result = result if replaced is None else replaced
        results = [r for r in (result if isinstance(result, (tuple, list)) else (result,)) if isinstance(r, Tensor)]
        if alone:
            ordered = by_size(names, self.own)
            for r in results:
                self.derived.setdefault(r, ordered)
        elif active or names:
            for r in results:
                self.active[r] = True
        return result

    def _reading(self, op: str, args: tuple[Any, ...]) -> WeightRead | None:
        found = operands(op, args, lambda x: bool(self.names(x)))
        if found is None:
            return None
        tensor = self.names(found.weight)[0]
        nth = self.counts.get(tensor, 0)
        self.counts[tensor] = nth + 1
        active = found.input is not None and not self.names(found.input)
        return WeightRead(tensor, nth, self.graph.use(tensor, nth), found, active)


@contextmanager
def observe(model: nn.Module, graph: NeuronGraph, observer: Observer) -> Iterator[None]:
    """While the caller runs `model`, call `observer` before and after every op, with the weight that it reads.

    The batch may have any size. Uses of weights are those of `graph.uses`, found again by tensor and by how often the
    forward pass has used it; every call of `model` starts the count anew.

    Example:
        >>> import neurograft
        >>> class Shapes:
        ...     def before(self, step):
        ...         if step.reading:
        ...             print(step.reading.tensor, "reads", tuple(step.reading.operands.input.shape))
        ...     def after(self, step, result):
        ...         if step.reading:
        ...             print("  and makes", tuple(result.shape))
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> graph = neurograft.trace(net, torch.randn(4, 3))
        >>> with torch.no_grad(), observe(net, graph, Shapes()):
        ...     _ = net(torch.randn(7, 3))
        0.weight reads (7, 3)
          and makes (7, 8)
        2.weight reads (7, 8)
          and makes (7, 2)
    """
    with module_paths(model) as path, without_fast_paths():
        watch = _WeightWatcher(model, graph, observer, path)
        hook = model.register_forward_pre_hook(lambda _, *given: watch.begin(given), with_kwargs=True)
        try:
            with Dispatch(watch.meet):
                yield
        finally:
            hook.remove()


__all__ = ["OPERANDS", "ObservedOp", "Observer", "Operands", "WeightRead", "observe", "operands"]
