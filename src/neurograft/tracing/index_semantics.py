"""What whole numbers in a tensor mean: the units of an axis, how many of each there are, where each one's rows end.

`topk`, `sort` and `argmax` turn positions into values. Where an axis is permuted, a value that names one of its units
changes as the unit's position does, and whoever looks units up by such values finds the same ones. So the axis stays
free as long as every op that takes the numbers is known to read them that way; any other op fixes it.

Sorting numbers puts what is dealt out to units (tokens to experts) in an order of rows that depends on the data: an
axis of its own, which moves whenever the units do. Whatever lets it move is fine, whatever gives its positions a
meaning gives one to the units' order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from neurograft.tracing.algebra import Axis, Var, canon, fix, leaves, reason
from neurograft.tracing.reasons import FixedReason, Why
from neurograft.tracing.tape import Op, op_tensors, storage_of

# ops whose result holds the same numbers, in the same places or in others
_COPYING = {"clone", "detach", "alias", "_to_copy", "lift_fresh", "contiguous"}
_KEEPING = {"view", "_unsafe_view", "reshape", "t", "transpose", "permute", "unsqueeze", "squeeze", *_COPYING}
# ops whose results hold some of the numbers of their first operand, or hold them several times
_TAKING = {"slice", "select", "split", "split_with_sizes", "unbind", "expand", "repeat", "index", "gather"}


@dataclass(frozen=True, eq=False, slots=True)
class Meaning:
    """What a tensor's numbers mean for the units of `axis`.

    `units`: every number is the position of one; `range`: the least or the greatest of such numbers; `counts`: along
    `axis`, how often each is named; `bounds`: the running sum of counts. `source` is the same object for tensors that
    hold the same numbers in any order.
    """

    kind: Literal["units", "range", "counts", "bounds"]
    axis: Axis
    source: object

    @property
    def moves(self) -> bool:
        """Whether the numbers change when the units do; counts move along their axis like anything else."""
        return self.kind != "counts" and reason(self.axis) is None


@dataclass(frozen=True, eq=False, slots=True)
class Order:
    """Positions of the axis `over` in the ascending order of the numbers there, as the axis `rows`.

    Row r is position `indices[r]`. The numbers, known by their `source`, name units of `by`.
    """

    rows: Axis
    over: Axis
    by: Axis
    source: object
    indices: Tensor
    op: Op

    @property
    def why(self) -> Why:
        """The reason that the units' order has where the rows' order has one."""
        return Why(FixedReason.ORDER, f"rows are put in the order of its units: {self.op}")


@dataclass(slots=True)
class Numbers:
    """The meanings of a run's tensors, and the orders that numbers have put rows in."""

    meanings: dict[int, Meaning] = field(default_factory=dict)
    written: dict[int, Meaning] = field(default_factory=dict)
    orders: list[Order] = field(default_factory=list)
    sorting: dict[int, Order] = field(default_factory=dict)
    counting: set[int] = field(default_factory=set)
    understood: list[int] = field(default_factory=list)

    def forget(self) -> None:
        """A new run begins; what orders must satisfy stays."""
        for known in (self.meanings, self.written, self.sorting, self.counting):
            known.clear()

    def kept(self) -> "Numbers":
        """What is known of this run, to be read later."""
        return Numbers(dict(self.meanings), dict(self.written), list(self.orders), dict(self.sorting))

    def of(self, tensor: Tensor) -> Meaning | None:
        """What the tensor's numbers mean; also if they were written through another view of its memory."""
        found = self.meanings.get(id(tensor))
        return self.written.get(storage_of(tensor)) if found is None and self.written else found

    def moving(self, tensor: Tensor) -> Meaning | None:
        """The same, but only if the numbers change when the units move."""
        found = self.of(tensor)
        return found if found is not None and found.moves else None

    def meaning_of(self, tensor: Tensor, kind: str = "units") -> Meaning | None:
        """The meaning of an operand, which the calling rule takes into account."""
        found = self.of(tensor)
        if found is None or found.kind != kind:
            return None
        self.understood.append(id(tensor))
        return found if reason(found.axis) is None else None

    def give(self, tensor: object, meaning: Meaning, op: Op) -> None:
        """Note the meaning of a result."""
        if not isinstance(tensor, Tensor):
            return
        self.meanings[id(tensor)] = meaning
        if op.mutates:
            self.written[storage_of(tensor)] = meaning
            self.understood.append(id(tensor))

    def settle(self, op: Op, shapes_only: bool) -> None:
        """After an op's rule: copies and views hold the same numbers; who else takes them unasked fixes the units."""
        understood, self.understood = self.understood, []
        if not self.meanings and not self.counting:
            return
        for x in op_tensors(op):
            if op.name in _KEEPING:
                self.counting.update(id(r) for r in op.results if id(x) in self.counting)
            if op.name in _COPYING and id(x) in self.sorting:
                self.sorting.update((id(r), self.sorting[id(x)]) for r in op.results)
            meaning = self.of(x)
            if meaning is None or shapes_only:
                continue
            if id(x) in understood:
                understood.remove(id(x))
            elif op.name in _KEEPING or (op.name in _TAKING and x is op.args[0]):
                source = meaning.source if op.name in _KEEPING else object()
                for r in op.results:
                    self.give(r, Meaning(meaning.kind, meaning.axis, source), op)
            elif meaning.moves:
                fix(meaning.axis, Why(FixedReason.ORDER, f"the numbers of its units enter {op}"))

    def dealt(self, rows: Axis, bounds: Meaning) -> bool:
        """Whether the rows are in the order of the very numbers whose bounds these are."""
        return any(o.source is bounds.source and canon(o.rows) == canon(rows) for o in self.orders)

    def broken(self, anchored: set[Var]) -> Iterator[Order]:
        """Orders whose rows got a meaning: a fixed or `anchored` variable, a part, or another order's rows."""
        rows = [canon(order.rows) for order in self.orders]
        for order, axis in zip(self.orders, rows, strict=True):
            found = list(leaves(axis))
            whole = len(axis) == 1 and len(axis[0]) == len(found)
            if found and (not whole or rows.count(axis) > 1 or any(var.fixed or var in anchored for var in found)):
                yield order


__all__ = ["Meaning", "Numbers", "Order"]
