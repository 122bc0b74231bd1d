"""Loops over units by number: what happens to one of them must happen to each, and only sums may bring them together.

`for e in range(n): out += f(x, weight[e], chosen == e)` depends on no order of units. A tensor that belongs
to one pass of such a loop carries the unit's number and how it was computed, its form; that form with another number
is the same tensor of another unit. Where passes meet, they must be added up, or be stacked in order, one of the same
form for every unit; anything else gives the units' order a meaning.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from neurograft.tracing.algebra import Axis, axis_size, fix, reason, unify
from neurograft.tracing.reasons import FixedReason, Why
from neurograft.tracing.tape import Op, op_tensors, storage_of

# ops that add one operand to another: the positions of both
_ADDING = {"add_": (0, 1), **dict.fromkeys(("index_add", "index_add_", "scatter_add", "scatter_add_"), (0, 3))}
_UnitKey: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class LoopPass:
    """What one unit of `axis` has: its number, how it was computed, and of a sum what was added to something else."""

    axis: Axis
    number: int
    form: int
    why: str
    added: int | None = None


@dataclass(slots=True)
class LoopSum:
    """A sum over passes that may not be complete: per number the forms of what was added."""

    axis: Axis
    why: str
    forms: dict[int, list[int]] = field(default_factory=dict)

    def add(self, number: int, *forms: int) -> None:
        """One unit has given more."""
        self.forms.setdefault(number, []).extend(forms)

    def complete(self) -> bool:
        """Whether every unit has given the same."""
        given = [sorted(self.forms.get(number, ())) for number in range(axis_size(self.axis))]
        return all(own == given[0] for own in given)


@dataclass(slots=True)
class LoopPasses:
    """The passes of a run, and the sums over them."""

    of: dict[int, LoopPass] = field(default_factory=dict)
    partial: set[int] = field(default_factory=set)
    totals: dict[_UnitKey, LoopSum] = field(default_factory=dict)
    forms: dict[Hashable, int] = field(default_factory=dict)
    own: set[int] = field(default_factory=set)
    alike: dict[int, int] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=dict)
    started: bool = False

    def forget(self) -> None:
        """A new run begins."""
        for known in (self.of, self.partial, self.totals, self.forms, self.own, self.alike, self.versions):
            known.clear()

    def kept(self) -> "LoopPasses":
        """What is known of this run, to be read later."""
        return LoopPasses(dict(self.of), set(self.partial))

    def start(self, op: Op, axis: Axis, number: int, *how: Hashable) -> None:
        """The result of an op is what one unit of `axis` has, taken by its number."""
        self.of[id(op.results[0])] = LoopPass(axis, number, self._intern((op.name, *how)), str(op))
        self.started = True

    def settle(self, op: Op) -> None:
        """After an op's rule: its results belong to the pass of its operands, or a sum over passes grows."""
        started, self.started = self.started, False
        if started or not (self.of or self.totals):
            return
        operands = list(op_tensors(op))
        passes = [self.of[id(x)] for x in operands if id(x) in self.of]
        added_to = self._added_to(op)
        merging = self._merges(op, passes)
        for x in operands:
            if x is not added_to and not merging:
                self._close(x)
        if merging:
            self._merge(op, operands)
        elif not passes:
            self._pass_by(op)
        elif not self._meet(op, passes):
            self.refuse(passes, str(op))
        elif added_to is not None:
            self._grow(op, added_to, passes[0])
        elif op.name != "stack" or not stacks_all(passes):
            self._go_on(op, passes)
        for x in op.mutates:
            self.versions[storage_of(x)] = self.versions.get(storage_of(x), 0) + 1

    def finish(self) -> None:
        """The run is over: all sums over passes must be complete."""
        for key in list(self.totals):
            self._check(self.totals.pop(key))

    def refuse(self, passes: Sequence[LoopPass], where: str) -> None:
        """Passes meet otherwise than in a sum: the units' order has a meaning."""
        for loop_pass in passes:
            fix(loop_pass.axis, _order(loop_pass.why, f"meet in {where}"))

    def _meet(self, op: Op, passes: Sequence[LoopPass]) -> bool:
        # whether all operands can belong to one pass (or are all units' tensors, about to be stacked)
        first = passes[0]
        if any(axis_size(loop_pass.axis) != axis_size(first.axis) for loop_pass in passes):
            return False
        for loop_pass in passes[1:]:
            unify(first.axis, loop_pass.axis, str(op))
        return (
            stacks_all(passes) if op.name == "stack" else all(loop_pass.number == first.number for loop_pass in passes)
        )

    def _go_on(self, op: Op, passes: Sequence[LoopPass]) -> None:
        results = [r for r in op.results if isinstance(r, Tensor)]
        if not results or any(storage_of(x) not in self.own for x in op.mutates):
            self.refuse(passes, str(op))
            return
        common = {storage_of(x) for x in op_tensors(op) if storage_of(x) not in self.own}
        form = (op.name, op.overload, *(self._form(x) for x in op.args), *map(self._form, op.kwargs.items()))
        added = passes[0].form if op.name == "add" and len(passes) == 1 and not op.kwargs else None
        for k, r in enumerate(results):
            self.of[id(r)] = LoopPass(passes[0].axis, passes[0].number, self._intern((form, k)), passes[0].why, added)
            if storage_of(r) not in common:
                self.own.add(storage_of(r))

    def _pass_by(self, op: Op) -> None:
        # what every pass computes anew from what belongs to none is the same in all of them
        if not op.mutates and torch.Tag.nondeterministic_seeded not in op.func.tags:
            form = (op.name, op.overload, *(self._form(x) for x in op.args), *map(self._form, op.kwargs.items()))
            self.alike.update((id(r), self._intern((form, k))) for k, r in enumerate(op.results))

    def _added_to(self, op: Op) -> Tensor | None:
        # what an op adds a pass's tensor to, if that is no pass's itself
        if op.name not in _ADDING:
            return None
        onto, added = (op.args[i] if i < len(op.args) else None for i in _ADDING[op.name])
        turning = isinstance(added, Tensor) and id(added) in self.of
        return onto if turning and isinstance(onto, Tensor) and id(onto) not in self.of else None

    def _grow(self, op: Op, onto: Tensor, loop_pass: LoopPass) -> None:
        total = self._taken(onto) or LoopSum(loop_pass.axis, loop_pass.why)
        unify(total.axis, loop_pass.axis, str(op))
        given = [self._form(x) for x in op.args if x is not onto]
        total.add(loop_pass.number, self._intern((op.name, *given, *map(self._form, op.kwargs.items()))))
        result = op.results[0]
        self.totals[("storage", storage_of(result)) if op.mutates else ("id", id(result))] = total
        self.partial.update([] if op.mutates else [id(result)])

    def _merges(self, op: Op, passes: Sequence[LoopPass]) -> bool:
        # y + z of two passes, or a sum over passes plus another's: it is known by now that a sum over passes is meant
        if op.name != "add" or op.kwargs:
            return False
        summed = [x for x in op.args if isinstance(x, Tensor)]
        totals = [("id", id(x)) in self.totals for x in summed]
        known = all(id(x) in self.of or total for x, total in zip(summed, totals, strict=True))
        return known and (any(totals) or len({loop_pass.number for loop_pass in passes}) > 1)

    def _merge(self, op: Op, operands: Sequence[Tensor]) -> None:
        merged: LoopSum | None = None
        for x in operands:
            part = self.totals.pop(("id", id(x)), None)
            if part is None:
                loop_pass = self.of[id(x)]
                part = LoopSum(loop_pass.axis, loop_pass.why)
                part.add(loop_pass.number, loop_pass.form if loop_pass.added is None else loop_pass.added)
                self.partial.update([] if loop_pass.added is None else [id(x)])
            merged = merged or LoopSum(part.axis, part.why)
            if axis_size(merged.axis) != axis_size(part.axis):
                self.refuse([LoopPass(t.axis, 0, 0, t.why) for t in (merged, part)], str(op))
                return
            unify(merged.axis, part.axis, str(op))
            for number, forms in part.forms.items():
                merged.add(number, *forms)
        if merged is not None:
            self.totals["id", id(op.results[0])] = merged
            self.partial.add(id(op.results[0]))

    def _taken(self, x: Tensor) -> LoopSum | None:
        return self.totals.pop(("id", id(x)), None) or self.totals.pop(("storage", storage_of(x)), None)

    def _close(self, x: Tensor) -> None:
        total = self._taken(x) if self.totals else None
        if total is not None:
            self._check(total)

    def _check(self, total: LoopSum) -> None:
        if not total.complete():
            fix(total.axis, _order(total.why, "not treated alike"))

    def _form(self, value: Any) -> Hashable:
        if isinstance(value, Tensor):
            if id(value) in self.of:
                return self.of[id(value)].form
            return ("common", self.alike.get(id(value), -id(value)), self.versions.get(storage_of(value), 0))
        if isinstance(value, (list, tuple)):
            return tuple(self._form(x) for x in value)
        return repr(value)

    def _intern(self, form: Hashable) -> int:
        # a form is a number, or forms of forms would grow without end
        return self.forms.setdefault(form, len(self.forms))


def _order(why: str, what: str) -> Why:
    return Why(FixedReason.ORDER, f"its units are read one by one ({why}) and {what}")


def stacks_all(passes: Sequence[LoopPass]) -> bool:
    """Whether these are the tensors of all units, in their order, computed alike."""
    first = passes[0]
    alike = all(loop_pass.form == first.form for loop_pass in passes)
    return (
        alike
        and [loop_pass.number for loop_pass in passes] == list(range(axis_size(first.axis)))
        and reason(first.axis) is None
    )


__all__ = ["LoopPass", "LoopPasses", "stacks_all"]
