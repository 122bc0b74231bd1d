"""Which groups lie inside others, and which of these may be ordered differently in every unit that holds them."""

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import TypeAlias

from torch import Tensor

from neurograft.axes.layout import Layout, terms
from neurograft.tracing.algebra import Axis, Var, find, layout_of
from neurograft.tracing.blocks import blocks_of
from neurograft.tracing.labelling import Labelling
from neurograft.tracing.parts import TensorInfo
from neurograft.tracing.tape import op_tensors


def nesting(tensors: Mapping[str, TensorInfo], variables: Mapping[str, Var]) -> dict[str, str]:
    """The free group that a free group lies inside: its units hold it wherever it is made, or all is stacked along it.

    Channels lie inside heads, never inside the tokens beside them, which are made on their own somewhere. The hidden
    neurons of experts lie inside the experts, along which every tensor that holds them is a stack.
    """
    order = {name: i for i, name in enumerate(variables)}
    made: dict[str, list[set[str]]] = {}
    anywhere: dict[str, list[set[str]]] = {}
    stacked: dict[str, list[set[str]]] = {}
    for info in tensors.values():
        for dim, layout in enumerate(info.layouts):
            stacks = _stacks(info, dim)
            for name, outer in _outer_groups(layout):
                anywhere.setdefault(name, []).append(outer)
                stacked.setdefault(name, []).append(stacks)
                if "out" in info.roles[dim][name] and info.kind == "weight":
                    made.setdefault(name, []).append(outer)
    inside: dict[str, str] = {}
    for name in variables:
        if variables[name].fixed:
            continue
        places = made.get(name) or anywhere.get(name) or [set()]
        shared = set.intersection(*places) | set.intersection(*stacked.get(name, [set()]))
        outer_names = [o for o in shared if o != name and not variables[o].fixed and name not in _chain(inside, o)]
        if outer_names:
            inside[name] = min(outer_names, key=order.__getitem__)
    return inside


def _stacks(info: TensorInfo, dim: int) -> set[str]:
    # the groups that a tensor is a stack along: one weight per unit
    above = (group for roles in info.roles[:dim] for group, played in roles.items() if "in" not in played)
    return set(above)


def _chain(inside: Mapping[str, str], name: str) -> Iterator[str]:
    while name in inside:
        name = inside[name]
        yield name


def _outer_groups(layout: Layout) -> Iterator[tuple[str, set[str]]]:
    for term in terms(layout):
        groups = [factor.group for factor in term.factors if factor.group is not None]
        for i, group in enumerate(groups):
            yield group, set(groups[:i])


def varying(
    tensors: Mapping[str, TensorInfo], variables: Mapping[str, Var], inside: Mapping[str, str], labelling: Labelling
) -> frozenset[str]:
    """The groups inside outermost ones that may be ordered differently in every unit.

    Everywhere, in parameters and in what the runs computed, their neurons lie beside the unit that holds them, and no
    op brings neurons of different units together. Groups that the proof has found to be shared are left out.
    """
    alike = {find(var) for var in labelling.alike}
    found = {
        name: outer
        for name, outer in inside.items()
        if outer not in inside
        and variables[name] not in alike
        and all(_beside(term, name, outer) for info in tensors.values() for term in _terms_with(info, name))
    }
    return frozenset(_Meetings(labelling, variables, found).allowed() if found else ())


def _terms_with(info: TensorInfo, name: str) -> Iterator[list[str | None]]:
    for layout, roles in zip(info.layouts, info.roles, strict=True):
        for term in terms(layout) if name in roles else ():
            groups = [factor.group for factor in term.factors]
            if name in groups:
                yield groups


def _beside(term: Sequence[str | None], name: str, outer: str) -> bool:
    return term.count(name) == term.count(outer) == 1


Dims: TypeAlias = list[list[list[str | None]]]
"""Of every dimension of a tensor that holds a group in question, the groups in each of its terms."""


class _Meetings:
    """Looks through all ops for those in which neurons of different units meet."""

    def __init__(self, labelling: Labelling, variables: Mapping[str, Var], inside: Mapping[str, str]):
        self._labelling = labelling
        self._inside = dict(inside)
        self._names = {variables[name]: name for name in {*inside, *inside.values()}}
        self._known: dict[Axis, list[list[str | None]]] = {}
        self._reduced: dict[int, set[str | None]] = {}
        for op, axis in labelling.main.notes.reducing:
            self._reduced.setdefault(id(op), set()).update(name for term in self._terms(axis) for name in term)

    def allowed(self) -> list[str]:
        """The groups whose neurons meet only within units."""
        for op in self._labelling.steps:
            taken = [dims for x in op_tensors(op) for dims in self._dims(x) if dims]
            entering = {name for dims in taken for dim in dims for term in dim for name in term}
            inside = [name for name in entering if name in self._inside]
            made = [dims for x in op.results if isinstance(x, Tensor) for dims in self._dims(x)] if inside else []
            for name in inside:
                if self._meet(str(name), taken, made, self._reduced.get(id(op), ())):
                    del self._inside[str(name)]
        return list(self._inside)

    def _meet(self, name: str, taken: list[Dims], made: list[Dims], reduced: Container[str | None]) -> bool:
        outer = self._inside[name]
        apart = any(not _together(dims, name, outer) for dims in (*taken, *made))
        # the queries of every head with the keys of every other; a softmax over heads
        crossed = any(not _count(dims, name) and _count(dims, outer) > 1 for dims in made)
        return apart or crossed or (outer in reduced and name not in reduced)

    def _dims(self, x: Tensor) -> list[Dims]:
        # of every block that the tensor is made of
        blocks = blocks_of(self._labelling.seen.get(id(x), ()))
        return [[found for found in map(self._terms, axes) if found] for axes in blocks]

    def _terms(self, axis: Axis) -> list[list[str | None]]:
        if axis not in self._known:
            groups = [[factor.group for factor in term.factors] for term in terms(layout_of(axis, self._names))]
            self._known[axis] = groups if any(name for term in groups for name in term) else []
        return self._known[axis]


def _count(dims: Dims, name: str) -> int:
    """In how many dimensions a group lies; more if it lies twice in one term."""
    return sum(max(term.count(name) for term in dim) for dim in dims)


def _together(dims: Dims, name: str, outer: str) -> bool:
    """Whether the unit is known wherever the neuron is: beside it in the same term, or along one other dimension."""
    around = [dim for dim in dims if any(outer in term for term in dim)]
    alone = len(around) == 1 and all(term.count(outer) == 1 for term in around[0])
    return all(
        _beside(term, name, outer) if outer in term else alone and around[0] is not dim
        for dim in dims
        for term in dim
        if name in term
    )
