"""What is known of every tensor while a tape is read: its axes, and what the rules note beside them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from neurograft.tracing import algebra
from neurograft.tracing.algebra import Axis, axis_size, fixed, merge, unify
from neurograft.tracing.blocks import Axes, Blank, Blocks, Label, axes_at, filled, looked, settled, sizes_of
from neurograft.tracing.graph import Kind, Role
from neurograft.tracing.index_semantics import Numbers
from neurograft.tracing.reasons import Because, FixedReason, Why
from neurograft.tracing.tape import Op, TensorKey, op_tensors, storage_key, storage_of
from neurograft.tracing.unit_loops import LoopPasses


@dataclass(slots=True)
class UseNote:
    """One use of a weight, in axes: `weight` are the private axes of the operand, `names` the parameters behind it."""

    op: Op
    names: tuple[str, ...]
    bias: tuple[str, ...]
    weight: Axes
    input: Axes | None
    output: Axes
    input_dims: Mapping[int, int]
    output_dims: Mapping[int, int]


@dataclass(slots=True)
class ProductNote:
    """A weight that is the product of two: on private axes, what each contracts and what else it has."""

    first: Axis
    second: Axis
    first_rest: Axes
    second_rest: Axes


@dataclass(slots=True)
class Notes:
    """What rules note beside axes: reductions, bilinear contractions, roles (on private axes), kinds and uses."""

    reduced: list[tuple[Axis, str]] = field(default_factory=list)
    reducing: list[tuple[Op, Axis]] = field(default_factory=list)
    bilinear: list[tuple[Axis, str]] = field(default_factory=list)
    ranked: list[tuple[Axis, str, int]] = field(default_factory=list)
    roles: list[tuple[Axis, Role]] = field(default_factory=list)
    makers: list[tuple[Op, Axis]] = field(default_factory=list)
    kinds: dict[str, Kind] = field(default_factory=dict)
    uses: list[UseNote] = field(default_factory=list)
    products: list[ProductNote] = field(default_factory=list)


class Labels:
    """The axes of all tensors in one universe of variables.

    The main universe follows every op. The private one, `private`, follows only what is computed from parameters
    alone, with variables of its own: it names which dim of which parameter an operand of a contraction really is.
    """

    def __init__(self, private: "Labels | None" = None):
        self.private = private
        self.axes: dict[int, Label] = {}
        self.blocked: set[int] = set()
        self.given: dict[int, Label] = {}
        self.again = False
        self.repeated: dict[int, frozenset[int]] = {}
        self.by_storage: dict[TensorKey, Axes] = {}
        self.names: dict[int, tuple[str, ...]] = {}
        self.names_by_storage: dict[TensorKey, tuple[str, ...]] = {}
        self.strangers: set[int] = set()
        self.notes = Notes()
        self.numbers = Numbers()
        self.passes = LoopPasses()
        self.op: Op | None = None
        self.mixing = False
        self.multiplying = False
        self.marked: set[int] = set()
        self.active: set[int] = set()
        self.written: set[int] = set()
        self.uniform: set[int] = set()
        self.buffers: dict[int, str] = {}
        self.values: dict[int, Tensor] = {}

    @property
    def why(self) -> str:
        """The op that is being read, as a reason."""
        return str(self.op)

    def record(self, tensor: Tensor, axes: Axes, name: str) -> None:
        """Enter a parameter or buffer."""
        self.axes[id(tensor)] = axes
        self.names[id(tensor)] = (name,)
        if tensor.numel():
            self.by_storage[storage_key(tensor)] = axes
            self.names_by_storage[storage_key(tensor)] = (name,)

    def known(self, tensor: Tensor) -> bool:
        """Whether the tensor has axes, or shares its memory with a parameter that has."""
        if id(tensor) in self.axes:
            return True
        if id(tensor) in self.strangers:
            return False
        key = storage_key(tensor)
        if key not in self.by_storage:
            self.strangers.add(id(tensor))
            return False
        self.axes[id(tensor)] = self.by_storage[key]
        self.names[id(tensor)] = self.names_by_storage[key]
        return True

    def put(self, tensor: Tensor, label: Label) -> None:
        """Enter what is known of a result."""
        self.axes[id(tensor)] = label
        (self.blocked.add if isinstance(label, (Blocks, Blank)) else self.blocked.discard)(id(tensor))

    def raw(self, tensor: Tensor) -> Label:
        """The label of a tensor, blank where nothing was written; constants' positions have a meaning.

        A tensor of one value that nobody writes to stays what it is under any permutation: it has new free axes
        every time it is used, so that a shared state of zeros ties nothing together.
        """
        if id(tensor) in self.given:
            return looked(self.given[id(tensor)])
        if id(tensor) in self.uniform:
            return Blank(sizes_of(self.axes[id(tensor)]))
        if not self.known(tensor):
            why = self.buffers.get(id(tensor)) or f"a constant that enters {self.op}"
            constant = tuple(fixed(n, Why(FixedReason.CONSTANT, why)) for n in tensor.shape)
            if self.private is None:  # remembered here, it would pass for something made from parameters
                return constant
            self.axes[id(tensor)] = constant
        return looked(self.axes[id(tensor)])

    def label(self, tensor: Tensor) -> Label:
        """The same with variables everywhere, except in a tensor of one value that nobody writes to."""
        label = self.raw(tensor)
        if id(tensor) in self.uniform and id(tensor) not in self.given:
            return label
        return filled(label) if isinstance(label, (Blocks, Blank)) else label

    def of(self, tensor: Tensor) -> Axes:
        """The axes of a tensor; where it consists of blocks, one axis per dim, which ties the blocks."""
        label = self.raw(tensor)
        if not isinstance(label, (Blocks, Blank)):
            return label
        axes = settled(label, self.why)
        if id(tensor) in self.given:
            self.given[id(tensor)] = axes
        elif id(tensor) not in self.uniform:
            self.put(tensor, axes)
        return axes

    def every_axis(self, tensor: Tensor) -> list[Axis]:
        """The axes of all dims in all blocks."""
        label = self.label(tensor)
        return [axis for dim in range(len(sizes_of(label))) for axis in axes_at(label, dim)]

    def in_blocks(self, op: Op) -> bool:
        """Whether an operand may have axes that differ from block to block."""
        if not (self.blocked or self.given):
            return False
        return any(id(x) in self.blocked or isinstance(self.given.get(id(x)), (Blocks, Blank)) for x in op_tensors(op))

    @contextmanager
    def giving(self, labels: Mapping[int, Label], again: bool = False) -> Iterator[None]:
        """For a while tensors, by identity, have other labels: those of a block; `again` if it is not the first."""
        before = self.given, self.again
        self.given, self.again = {**self.given, **labels}, self.again or again
        try:
            yield
        finally:
            self.given, self.again = before

    def is_active(self, tensor: Tensor) -> bool:
        """Whether the tensor depends on the inputs, or on parameters that were put to use."""
        return id(tensor) in self.active or bool(self.written and storage_of(tensor) in self.written)

    def constant(self, tensor: Tensor) -> list[int] | None:
        """The whole numbers in a short list that depends on nothing; None for any other tensor."""
        if self.is_active(tensor) or self.known_parameter(tensor):
            return None
        tensor = self.values.get(id(tensor), tensor)
        if tensor.device.type == "meta":
            return None
        if tensor.dim() != 1 or tensor.is_floating_point() or tensor.dtype == torch.bool or tensor.numel() > 4096:
            return None
        return [int(i) for i in tensor.tolist()]

    def known_parameter(self, tensor: Tensor) -> bool:
        """Whether the tensor is computed from parameters alone, in either universe."""
        return (self.private or self).known(tensor)

    def unify(self, a: Axis, b: Axis) -> None:
        """Both axes index the same neurons."""
        unify(a, b, self.why)

    def fix(self, axis: Axis, why: Because = "") -> None:
        """The axis' positions have a meaning."""
        algebra.fix(axis, why or self.why)

    def look_up(self, axis: Axis, index: Tensor, why: str = "") -> None:
        """Positions of `axis` are found by number: those of units are found wherever the units went, others fix it."""
        meaning = self.numbers.meaning_of(index)
        size = 0 if meaning is None else axis_size(axis) - axis_size(meaning.axis)
        if meaning is None or size < 0:
            self.fix(axis, why)
        if meaning is not None:
            self.unify(axis, meaning.axis + algebra.free(size)) if size >= 0 else self.fix(meaning.axis)

    def take(self, axis: Axis, number: int, source: Tensor, *how: int) -> bool:
        """Whether a unit of `axis` is taken by its number in a loop over all of them; if so, the result is its turn.

        Only where numbers are known to name as many units: elsewhere a position that is read has a meaning.
        """
        named = any(m.moves and axis_size(m.axis) == axis_size(axis) for m in self.numbers.meanings.values())
        if self.private is None or self.op is None or not named or algebra.reason(axis) is not None:
            return False
        if id(source) in self.passes.of or not 0 <= number < axis_size(axis):
            return False
        self.passes.start(self.op, axis, number, id(source), *how)
        return True

    def fixed(self, size: int, why: Because = "") -> Axis:
        """A new fixed axis; only sound if every axis it came from is fixed."""
        return fixed(size, why or self.why)

    def reduced(self, axis: Axis) -> None:
        """The op reduces over the units of `axis`."""
        if self.private is not None:
            self.notes.reduced.append((axis, self.why))
            if self.op is not None:
                self.notes.reducing.append((self.op, axis))

    def ranked(self, axis: Axis, count: int) -> None:
        """The op chooses `count` units of `axis`, those with the largest values."""
        self.reduced(axis)
        if self.private is not None:
            self.notes.ranked.append((axis, self.why, count))

    def bilinear(self, axis: Axis) -> None:
        """The op contracts two activations over `axis`."""
        if self.private is not None:
            self.notes.bilinear.append((axis, self.why))

    def is_weight(self, tensor: Tensor | None) -> bool:
        """Whether the tensor is computed from parameters alone."""
        return tensor is not None and self.private is not None and self.private.known(tensor)

    def pick_weight(self, first: Tensor, second: Tensor) -> Tensor | None:
        """Which of two operands is the weight: the second if both could be, None if both are activations."""
        return second if self.is_weight(second) else first if self.is_weight(first) else None

    def role(self, tensor: Tensor | None, dim: int, role: Role, kind: Kind, parts: Sequence[int] = ()) -> None:
        """Dim `dim` of a parameter plays `role` here; with `parts`, its leftmost factor of that size is elementwise.

        A grouped convolution's output dim is (groups, channels per group): the groups are read and made.
        """
        if tensor is None or not self.mixing or self.private is None or not self.private.known(tensor):
            return
        self.marked.add(id(tensor))
        for name in self.private.names[id(tensor)]:
            if kind == "weight" or name not in self.notes.kinds:
                self.notes.kinds[name] = kind
        if parts:
            axis = self.private.of(tensor)[dim]
            outer, inner = algebra.free(parts[0]), algebra.free(axis_size(axis) // parts[0])
            self.private.unify(axis, merge([outer, inner]))
            self.notes.roles += [(outer, "elementwise"), (inner, role)]
        else:
            self.notes.roles += [(axis, role) for axis in axes_at(self.private.label(tensor), dim)]
        if role == "out" and self.op is not None:
            self.notes.makers.append((self.op, self.of(tensor)[dim]))

    def roles(self, tensor: Tensor | None, roles: Mapping[int, Role], kind: Kind) -> None:
        """Several dims of one parameter, each with its role."""
        for dim, role in roles.items():
            self.role(tensor, dim, role, kind)

    def use(
        self,
        weight: Tensor,
        activation: Tensor | None,
        output: Axes,
        input_dims: Mapping[int, int],
        output_dims: Mapping[int, int],
        bias: Tensor | None = None,
    ) -> None:
        """Note that the op uses a weight; `input_dims` and `output_dims` name which activation dims its dims face."""
        if not self.mixing or self.private is None or self.op is None or not self.private.known(weight):
            return
        if self.again:  # on another block of the same tensors
            return
        own = self.private.label(weight)
        self.notes.uses.append(
            UseNote(
                self.op,
                self.private.names[id(weight)],
                self.private.names[id(bias)] if bias is not None and self.private.known(bias) else (),
                tuple(tuple(s for axis in axes_at(own, d) for s in axis) for d in range(len(sizes_of(own)))),
                None if activation is None else self.of(activation),
                output,
                input_dims,
                output_dims,
            )
        )


__all__ = ["Axes", "Labels", "Notes", "ProductNote", "UseNote", "storage_key"]
