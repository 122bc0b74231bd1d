"""Read tapes op by op with the table of rules, until every tensor's axes are known."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from neurograft.inputs import check_model, is_sparse
from neurograft.tracing.algebra import Axis, Var, canon, fix, fixed, free, leaves
from neurograft.tracing.blocks import Axes, Blank, Label, sizes_of, written
from neurograft.tracing.flow_builder import FlowBuilder
from neurograft.tracing.labels import Labels
from neurograft.tracing.reasons import FixedReason, Why
from neurograft.tracing.rules import RULES, Rule
from neurograft.tracing.rules.blockwise import blockwise
from neurograft.tracing.rules.constants import UNIFORM
from neurograft.tracing.rules.pointwise import mark, pointwise
from neurograft.tracing.tape import Op, Tape, live, op_tensors, storage_of, tensors_of

# ops whose first operand is an activation even if it is computed from parameters alone (learned queries)
CONSUMING = {
    *("mm", "addmm", "_sparse_addmm", "bmm", "baddbmm", "linear", "convolution", "_grouped_mm", "mkldnn_rnn_layer"),
    *("native_layer_norm", "native_batch_norm", "native_group_norm", "_fused_rms_norm"),
}
# contractions that may make a weight of two parameters; so may norms (a standardised weight and its gain)
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear", "mv", "addmv", "dot"}
# contractions in which an activation's every position meets the same weight, and where that weight stands
_READING = {
    "mm": (0, 1),
    "addmm": (1, 2),
    "_sparse_addmm": (1, 2),
    "linear": (0, 1),
    "mv": (0,),
    "addmv": (1,),
    "convolution": (1,),
}
# ops whose result is linear in the parameter, so that what the result's readers share can be moved in the parameter
_LINEAR = {
    *("view", "_unsafe_view", "reshape", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand", "alias"),
    *("slice", "select", "split", "split_with_sizes", "chunk", "unbind", "cat", "stack", "clone", "detach", "_to_copy"),
    *("embedding", "index", "index_select", "copy_", "repeat", "unsafe_split", "lift_fresh", "contiguous", "neg"),
}
# ops that change a tensor's dims in place: their result's axes replace the old ones
_RESHAPING = {"t_", "transpose_", "squeeze_", "unsqueeze_", "as_strided_", "swapaxes_", "resize_", "set_", "detach_"}


@dataclass(slots=True)
class NetworkTensors:
    """A network's parameters and persistent float buffers by name, the parameters first."""

    by_name: dict[str, Tensor]
    parameters: frozenset[str]
    others: dict[int, str] = field(default_factory=dict)


def tensors_of_model(model: nn.Module) -> NetworkTensors:
    """Every tensor that a checkpoint holds and that may lie along neurons; tied ones once, under their first name."""
    check_model(model)
    by_name: dict[str, Tensor] = dict(model.named_parameters())
    parameters = frozenset(by_name)
    seen = {id(x) for x in by_name.values()}
    others: dict[int, str] = {}
    for prefix, module in model.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is None or id(buffer) in seen:
                continue
            name = f"{prefix}.{key}" if prefix else key
            seen.add(id(buffer))
            if key in module._non_persistent_buffers_set:
                others[id(buffer)] = f"the buffer {name}, which is not saved"
            elif is_sparse(buffer):
                others[id(buffer)] = f"the buffer {name}, which is sparse"
            elif buffer.is_floating_point() or buffer.is_complex():
                by_name[name] = buffer
            else:
                others[id(buffer)] = f"the buffer {name}, which holds whole numbers"
    return NetworkTensors(by_name, parameters, others)


def consumes(name: str, module: str, parameters: int) -> bool:
    """Whether an op that sees parameters alone puts them to use, rather than making a weight of them.

    Learned queries enter layers as activations do; a parametrisation, or a norm that has no scale of its own and
    standardises a weight, makes a weight. So may a product of parameters, or a norm with a scale: see `makes_weight`.
    """
    return name in CONSUMING and "parametrizations" not in module and not ("norm" in name and parameters < 2)


def makes_weight(op: Op, later: Sequence[Op], is_active: Callable[[Tensor], bool]) -> bool:
    """Whether an op makes a weight of parameters alone: all that meets it first are activations that it multiplies.

    `linear(h, U @ V)` reads h with a weight of low rank, `conv2d(h, batch_norm(w, gain))` with a standardised one; a
    learned query that goes through a layer is added to
    activations, or compared with them head by head, and is one itself.
    """
    made = {id(r) for r in op.results if isinstance(r, Tensor)}
    active: set[int] = set()
    met = False
    for other in later:
        taken = list(op_tensors(other))
        entering = any(id(x) in active or is_active(x) for x in taken)
        if any(id(x) in made for x in taken):
            if entering:
                if not any(i < len(other.args) and id(other.args[i]) in made for i in _READING.get(other.name, ())):
                    return False
                met = True
            elif "norm" in other.name and other.name in CONSUMING:
                return False
            else:
                made.update(id(r) for r in other.results)
        if entering:
            active.update(id(r) for r in other.results)
    return met


def _is_linear(op: Op, derived: Sequence[Tensor]) -> bool:
    # sums of parameters and their multiples too: zeros stay zeros
    taken = sum(1 for _ in op_tensors(op))
    if op.name in ("add", "sub"):
        return taken == len(derived) == 2
    return op.name in _LINEAR or (op.name in ("mul", "div") and taken == 1)


def by_size(names: Iterable[str], tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The parameters that a weight is made from, the largest first."""
    return tuple(sorted(set(names), key=lambda n: (-tensors[n].numel(), n)))


class Labelling:
    """The axes of one network, learnt from any number of tapes."""

    def __init__(self, model: nn.Module):
        self.tensors = tensors_of_model(model)
        self.private = Labels()
        self.main = Labels(self.private)
        self.main.buffers = self.tensors.others
        self.private.active, self.private.written = self.main.active, self.main.written
        self.unruled: dict[str, list[Axis]] = {}
        self.reached: set[str] = set()
        self.curved: set[str] = set()
        self.products: set[tuple[str, ...]] = set()
        self.steps: list[Op] = []
        self.seen: dict[int, Label] = {}  # of every tensor that a step takes or gives, by identity
        self.behind: dict[int, tuple[str, ...]] = {}  # the parameters that a tensor is made from alone, by identity
        self.alike: set[Var] = set()  # inner units that the proof has found to be ordered alike in all outer ones
        self.narrowed: dict[Var, str] = {}  # groups whose class the proof has found to be too wide, and by what
        self.inexact: set[Var] = set()  # groups whose biases and means the proof has found to count
        self.starts: list[int] = []
        self.rewritten: set[int] = set()
        self.flow = FlowBuilder()
        self.pinned: list[tuple[Tape, str, Tensor]] = []
        self.parameter_axes: dict[str, Axes] = {}
        self.private_axes: dict[str, Axes] = {}
        for name, x in self.tensors.by_name.items():
            self.parameter_axes[name] = tuple(free(n) for n in x.shape)
            self.private_axes[name] = tuple(free(n) for n in x.shape)

    def read(self, tape: Tape, outputs: Any = None) -> None:
        """Learn from one tape; `outputs` selects the returned tensors whose positions have a meaning."""
        self._forget_activations()
        self.starts.append(len(self.main.notes.uses))
        for path, x in tensors_of(tape.inputs):
            why = Why(FixedReason.INPUT, f"the input {path}".strip())
            self.main.axes[id(x)] = tuple(fixed(n, why) for n in x.shape)
            self.main.active.add(id(x))
        self.main.values = self.private.values = tape.values
        self.flow.begin(tensors_of(tape.inputs))
        kept = live(tape)
        self.rewritten = {storage_of(x) for op in kept for x in op.mutates}
        for i, op in enumerate(kept):
            self._step(op, kept, i)
            self.steps.append(op)
        self.seen.update(self.main.axes)
        self.behind.update(self.private.names)
        self.main.passes.finish()
        self.flow.end(tensors_of(tape.outputs))
        for path, x in tensors_of(tape.outputs):
            turn = self.main.passes.of.get(id(x))
            self.main.passes.refuse(() if turn is None else (turn,), f"the output {path}".strip())
        beside = unread_outputs(tape, kept) if outputs is None else ()
        for path, x in (*pinned_outputs(tape.outputs, outputs), *beside):
            self.pinned.append((tape, path, x))
            if self.private.known(x):  # a parameter or buffer that is returned as it is
                self.reached.update(self.private.names[id(x)])
            meaning = self.main.numbers.of(x)
            for axis in (*self.main.every_axis(x), *(() if meaning is None else (meaning.axis,))):
                fix(axis, Why(FixedReason.OUTPUT, f"the output {path}".strip()))

    def _forget_activations(self) -> None:
        self.main.active.clear()
        self.main.written.clear()
        self.main.uniform.clear()
        for labels, axes in ((self.main, self.parameter_axes), (self.private, self.private_axes)):
            labels.axes.clear()
            labels.blocked.clear()
            labels.repeated.clear()
            labels.names.clear()
            labels.strangers.clear()
            labels.numbers.forget()
            labels.passes.forget()
            for name, x in self.tensors.by_name.items():
                labels.record(x, axes[name], name)

    def _step(self, op: Op, kept: Sequence[Op], at: int) -> None:
        taken = list(op_tensors(op))
        is_active = any(self.main.is_active(x) for x in taken)
        derived = [x for x in taken if self.private.known(x)]
        for x in derived:
            self.reached.update(self.private.names[id(x)])
        makes = (
            (op.name in _PRODUCTS or ("norm" in op.name and op.name in CONSUMING))
            and bool(derived)
            and not is_active
            and "parametrizations" not in op.module
            and makes_weight(op, kept[at + 1 :], self.main.is_active)
        )
        alone = makes or (bool(derived) and not is_active and not consumes(op.name, op.module, len(derived)))
        dealt = not alone and self._is_dealt(op, derived)
        old = [(x, self.main.raw(x)) for x in op.mutates] if op.name not in _RESHAPING else []
        result = self._apply(self.main, op, mixing=bool(derived) and not (alone or dealt))
        self._assign(self.main, op, result)
        for x, label in old:
            written(label, self.main.raw(x), str(op))
        if op.name in UNIFORM or (op.name in _LINEAR and taken and all(id(x) in self.main.uniform for x in taken)):
            self._note_uniform([r for r in op.results if isinstance(r, Tensor)])
        if not alone:
            self._flow_on(op, derived)
        if alone:
            self._derive(op, derived, makes)
        elif dealt:
            # every row of the result is the whole weight of the unit that its number names
            self.main.notes.roles.append((self.private.of(derived[0])[0], "elementwise"))
            self._assign(self.private, op, self._apply(self.private, op, mixing=False))
            self.private.names[id(op.results[0])] = ()
        elif is_active or derived:
            self.main.active.update(id(r) for r in op.results if isinstance(r, Tensor))
            self.main.written.update(storage_of(x) for x in op.mutates)
            if derived:
                self._mark_rest(derived)

    def _flow_on(self, op: Op, derived: Sequence[Tensor]) -> None:
        weights = dict.fromkeys(name for x in derived for name in self.private.names[id(x)])
        # what is written over is no constant that enters
        over = {id(x) for x in op.mutates}
        others = [x for x in op_tensors(op) if not (id(x) in over or self.private.known(x) or self.main.is_active(x))]
        constant = any(x.is_floating_point() and x.numel() > 1 and id(x) not in self.main.uniform for x in others)
        sizes = {sizes_of(self.main.raw(x)) for x in op_tensors(op)} if op.name.startswith("add") else ()
        self.flow.add(op, tuple(weights), constant=constant, alike=len(sizes) == 1)

    def _note_uniform(self, results: Sequence[Tensor]) -> None:
        for r in results:
            if storage_of(r) not in self.rewritten:
                self.main.uniform.add(id(r))
            else:
                self.main.put(r, Blank(sizes_of(self.main.axes[id(r)])))

    def _is_dealt(self, op: Op, derived: Sequence[Tensor]) -> bool:
        # a stack of weights of which the input's routing chooses (experts looked up by number): still weights
        if op.name != "index" or len(derived) != 1 or op.args[0] is not derived[0] or len(op.args[1]) != 1:
            return False
        chosen = op.args[1][0]
        meaning = None if chosen is None else self.main.numbers.moving(chosen)
        return meaning is not None and meaning.kind == "units"

    def _derive(self, op: Op, derived: Sequence[Tensor], makes: bool) -> None:
        # the result is computed from parameters alone
        product = makes and op.name in _PRODUCTS
        names = by_size({n for x in derived for n in self.private.names[id(x)]}, self.tensors.by_name)
        self.private.multiplying = product
        self._assign(self.private, op, self._apply(self.private, op, mixing=False))
        self.private.multiplying = False
        if makes and len(names) > 1:
            self.products.add(tuple(sorted(names)))
        if not product and not _is_linear(op, derived):
            self.curved.update(names)
        for r in op.results:
            if isinstance(r, Tensor):
                self.private.names[id(r)] = names

    def _mark_rest(self, derived: Sequence[Tensor]) -> None:
        for x in derived:
            if id(x) not in self.main.marked:
                mark(self.main, x, "elementwise")

    def _apply(self, labels: Labels, op: Op, mixing: bool) -> list[Label | None]:
        labels.op, labels.mixing = op, mixing
        labels.marked.clear()
        found = rule_of(op)
        if found is None:
            return self._unruled(labels, op, "")
        try:
            result = blockwise(labels, op, found)
        except (AssertionError, IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
            return self._unruled(labels, op, f" (its rule failed: {type(error).__name__}: {error})")
        results: list[Label | None] = list(result) if isinstance(result, list) else [result]
        if not _fits(op, results):
            return self._unruled(labels, op, " (its rule gave other shapes)")
        labels.numbers.settle(op, op.name in UNIFORM)
        labels.passes.settle(op)
        return results

    def _unruled(self, labels: Labels, op: Op, how: str) -> list[Label | None]:
        # nothing is known: whatever enters is fixed, and so is what leaves
        labels.numbers.understood.clear()
        labels.numbers.settle(op, False)
        labels.passes.refuse([labels.passes.of[id(x)] for x in op_tensors(op) if id(x) in labels.passes.of], str(op))
        entering = [axis for x in op_tensors(op) for axis in labels.of(x)]
        if labels is self.main:
            movable = [axis for axis in entering if any(not v.fixed for v in leaves(axis))]
            self.unruled.setdefault(f"{op}{how}", []).extend(movable)
        why = Why(FixedReason.NO_RULE, f"no rule for {op}")
        for axis in entering:
            fix(axis, why)
        return [None if s is None else tuple(fixed(n, why) for n in s) for s in op.shapes]

    def _assign(self, labels: Labels, op: Op, results: list[Label | None]) -> None:
        for r, axes in zip(op.results, results, strict=False):
            if isinstance(r, Tensor) and axes is not None:
                labels.put(r, axes)
            elif isinstance(r, (list, tuple)):
                for x in r:
                    if isinstance(x, Tensor):
                        labels.put(x, tuple(fixed(n, str(op)) for n in x.shape))


def _fits(op: Op, results: list[Label | None]) -> bool:
    if len(results) != len(op.results):
        return False
    return all(
        s is None or (label is not None and sizes_of(label) == s) for s, label in zip(op.shapes, results, strict=True)
    )


_FOUND: dict[Any, Rule | None] = {}


def rule_of(op: Op) -> Rule | None:
    """The op's rule: by overload, by name, by its tag `pointwise`; None if there is none."""
    key = (op.name, op.overload)
    if key not in _FOUND or _FOUND[key] is None:
        by_name = RULES.get(f"{op.name}.{op.overload}") or RULES.get(op.name)
        tagged = torch.Tag.pointwise in getattr(op.func, "tags", ())
        _FOUND[key] = by_name or (pointwise if tagged else None)
    return _FOUND[key]


def pinned_outputs(outputs: Any, chosen: Any = None) -> Iterator[tuple[str, Tensor]]:
    """The returned tensors whose positions have a meaning: those chosen, else the logits, else all but caches."""
    from fnmatch import fnmatch

    every = list(tensors_of(outputs))
    if chosen is not None:
        patterns = [str(c) for c in (chosen if isinstance(chosen, (list, tuple, set)) else (chosen,))]
        yield from (
            (path, x) for path, x in every if any(fnmatch(path, p) or path.split(".")[0] == p for p in patterns)
        )
        return
    logits = [(path, x) for path, x in every if path.startswith("logits")]
    yield from logits or [(path, x) for path, x in every if not is_cache(path)]


def unread_outputs(tape: Tape, kept: Sequence[Op]) -> Iterator[tuple[str, Tensor]]:
    """Returned tensors beside the logits that nothing in the network reads: a caller may rely on their positions.

    A detector returns boxes beside its logits; a hidden state that the head reads is not meant.
    """
    logits = {id(x) for _, x in pinned_outputs(tape.outputs)}
    read = {id(x) for op in kept for x in op_tensors(op)}
    for path, x in tensors_of(tape.outputs):
        if id(x) not in logits and id(x) not in read and not is_cache(path):
            yield path, x


def is_cache(path: str) -> bool:
    """Whether an output is kept for the next call only."""
    return any(word in path for word in ("past_key_values", "cache"))


def resolved(axes: Axes) -> Axes:
    """The axes as they are known by now."""
    return tuple(canon(axis) for axis in axes)


__all__ = [
    "Labelling",
    "NetworkTensors",
    "consumes",
    "is_cache",
    "pinned_outputs",
    "resolved",
    "rule_of",
    "tensors_of_model",
]
