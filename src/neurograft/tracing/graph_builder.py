"""Flatten what was learnt into the graph that is handed on: groups, layouts, roles, uses and orders."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from neurograft.axes.layout import Layout, sizes_along
from neurograft.axes.mixing import occurrences, unit_positions
from neurograft.tracing.algebra import (
    Axis,
    Var,
    axis_size,
    fix,
    free,
    layout_of,
    leaves,
    reason,
    segment_size,
    unify,
)
from neurograft.tracing.balancing import classed
from neurograft.tracing.classes import classes_of
from neurograft.tracing.graph import Group, Kind, NeuronGraph, Role, TensorInfo, Use, slots_by_group
from neurograft.tracing.labelling import Labelling, resolved
from neurograft.tracing.labels import Axes, UseNote
from neurograft.tracing.nesting import nesting, varying
from neurograft.tracing.ordering import backward_order, execution_order
from neurograft.tracing.reasons import FixedReason, Why
from neurograft.tracing.tying import find_tied

_ROLES: tuple[Role, ...] = ("out", "in", "elementwise")
_UNREACHED = Why(FixedReason.UNREACHED, "no example input reached it")


@dataclass(frozen=True, slots=True)
class NamedVariable:
    """Groups by name and the variables behind them."""

    variables: Mapping[str, Var]
    names: Mapping[Var, str]


def build_graph(labelling: Labelling, model: nn.Module) -> tuple[NeuronGraph, dict[str, Var]]:
    """The graph as it is known by now, and the variable behind each group."""
    pin_unreached(labelling)
    pin_unread(labelling)
    pin_dealt(labelling)
    named = name_groups(labelling)
    marks = _marks(labelling)
    tensors = {name: _tensor_info(labelling, name, named, marks) for name in labelling.tensors.by_name}
    slots = slots_by_group(tensors)
    reduced = _notes_by_group(labelling.main.notes.reduced, named)
    bilinear = _notes_by_group(labelling.main.notes.bilinear, named)
    ranked = _notes_by_group([(axis, why) for axis, why, _ in labelling.main.notes.ranked], named)
    least = _least(labelling, named)
    inside = nesting(tensors, named.variables)
    per_unit = varying(tensors, named.variables, inside, labelling)
    groups = tuple(
        Group(
            name,
            var.size,
            slots.get(name, ()),
            None if var.why is None else var.why.reason,
            str(var.why or ""),
            inside.get(name),
            reduced.get(name, ()),
            bilinear.get(name, ()),
            ranked.get(name, ()),
            least.get(name, 1),
            name in per_unit,
        )
        for name, var in named.variables.items()
    )
    flow = labelling.flow.flow()
    uses = tuple(_uses(labelling, named))
    groups, steps = classed(groups, tensors, uses, classes_of(labelling, named.variables, tensors))
    outermost = [group.name for group in groups if not group.fixed and group.inside is None]
    graph = NeuronGraph(
        groups=groups,
        tensors=tensors,
        uses=uses,
        tied=tuple(find_tied(groups, tensors, uses, flow)),
        execution_order=execution_order(labelling, named.names, outermost),
        backward_order=backward_order(labelling, named.names, outermost),
        unreached=unreached(labelling),
        unruled=tuple(labelling.unruled),
        products=tuple(sorted(labelling.products)),
        flow=flow,
        steps=steps,
        model_class=f"{type(model).__module__}.{type(model).__qualname__}",
    )
    return graph, dict(named.variables)


def unreached(labelling: Labelling) -> tuple[str, ...]:
    """Tensors that no live op of any tape has read."""
    return tuple(n for n in labelling.tensors.by_name if n not in labelling.reached)


def pin_unreached(labelling: Labelling) -> None:
    """Fix the axes of parameters that the runs did not touch: what they mean is unknown."""
    for name in unreached(labelling):
        for axis in labelling.parameter_axes[name]:
            fix(axis, _UNREACHED)


def pin_unread(labelling: Labelling) -> None:
    """Fix the parts of a dim that no run has read (the rest of a positional table): what they mean is unknown."""
    marked = {var for axis, _ in labelling.main.notes.roles for var in leaves(axis)}
    for name, axes in labelling.private_axes.items():
        for axis, main in zip(resolved(axes), labelling.parameter_axes[name], strict=True):
            read = [any(var in marked for var in leaves((segment,))) for segment in axis]
            if len(axis) < 2 or all(read) or not any(read):
                continue
            parts = [free(segment_size(segment)) for segment in axis]
            unify(main, tuple(s for part in parts for s in part), name)
            for part, seen in zip(parts, read, strict=True):
                if not seen:
                    fix(part, _UNREACHED)


def pin_dealt(labelling: Labelling) -> None:
    """Fix the units whose numbers have put rows in an order that means something, or that parameters hold."""
    for labels, own in ((labelling.main, labelling.parameter_axes), (labelling.private, labelling.private_axes)):
        while True:
            known = {var for axes in own.values() for axis in axes for var in leaves(axis)}
            broken = [order for order in labels.numbers.broken(known) if reason(order.by) is None]
            if not broken:
                break
            for order in broken:
                fix(order.by, order.why)


def name_groups(labelling: Labelling) -> NamedVariable:
    """Groups in parameter order, each named after the first dim that holds it."""
    names: dict[Var, str] = {}
    for tensor, axes in labelling.parameter_axes.items():
        for dim, axis in enumerate(axes):
            new = [var for var in dict.fromkeys(leaves(axis)) if var not in names]
            new = [var for var in new if not (var.why and var.why.reason is FixedReason.KERNEL)]
            for i, var in enumerate(new):
                names[var] = f"{tensor}:{dim}" + (f".{i}" if i else "")
    return NamedVariable({name: var for var, name in names.items()}, names)


def layouts_of(axes: Axes, names: Mapping[Var, str]) -> tuple[Layout, ...]:
    """Every dim's layout."""
    return tuple(layout_of(axis, names) for axis in axes)


def _tensor_info(
    labelling: Labelling, name: str, named: NamedVariable, marks: Mapping[Var, frozenset[Role]]
) -> TensorInfo:
    x = labelling.tensors.by_name[name]
    layouts = layouts_of(labelling.parameter_axes[name], named.names)
    roles = tuple(
        _roles_of(layout, axis, marks)
        for layout, axis in zip(layouts, resolved(labelling.private_axes[name]), strict=True)
    )
    buffer = name not in labelling.tensors.parameters
    kind = _kind(labelling, name, x, buffer)
    return TensorInfo(name, tuple(x.shape), x.dtype, kind, buffer, layouts, roles, name in labelling.curved)


def _kind(labelling: Labelling, name: str, x: Tensor, buffer: bool) -> Kind:
    kind = labelling.main.notes.kinds.get(name)
    if buffer:
        return kind if kind in ("mean", "variance") else "statistic"
    wide = sum(n > 1 for n in x.shape) > 1
    if kind == "weight" and not wide and not any(use.names[:1] == (name,) for use in labelling.main.notes.uses):
        return "scale"
    return kind or ("weight" if wide else "bias")


def _marks(labelling: Labelling) -> dict[Var, frozenset[Role]]:
    # the roles of private variables
    found: dict[Var, set[Role]] = {}

    def note(axis: Axis, role: Role) -> None:
        for var in leaves(axis):
            found.setdefault(var, set()).add(role)

    for axis, role in labelling.main.notes.roles:
        note(axis, role)
    # h (U V)ᵀ = (h Vᵀ) Uᵀ: what reads the activation makes the inner neurons, the other parameter reads them;
    # later products first, since an earlier one may be a factor of theirs
    for product in reversed(labelling.private.notes.products):
        first, second = product.first, product.second
        reads = {role for axis in product.second_rest for var in leaves(axis) for role in found.get(var, ())}
        maker, reader = (second, first) if "in" in reads else (first, second)
        note(maker, "out")
        note(reader, "in")
    return {var: frozenset(roles) for var, roles in found.items()}


def _roles_of(layout: Layout, private: Axis, marks: Mapping[Var, frozenset[Role]]) -> dict[str, frozenset[Role]]:
    # the roles each group of one dim plays, read off the private variables at its positions
    groups = list(sizes_along(layout))
    default: frozenset[Role] = frozenset({"elementwise"})
    kinds = {marks.get(var, default) for var in leaves(private)}
    if len(kinds) <= 1:
        only = next(iter(kinds), default)
        return dict.fromkeys(groups, only)
    numbered = [(number, marks.get(var, default)) for var, number in _numbers(private)]
    found = {}
    for group in groups:
        # a private factor stands for the group if moving the group's units moves along the factor
        places = unit_positions(layout, group)
        along = [(number[places], played) for number, played in numbered]
        moves = [bool((n != n[:1]).any()) or (len(n) == 1 and bool((n >= 0).any())) for n, _ in along]
        found[group] = frozenset().union(*(played for (_, played), m in zip(along, moves, strict=True) if m)) or default
    return found


def _numbers(axis: Axis) -> Iterator[tuple[Var, Tensor]]:
    # for every factor of an axis which of its numbers each position has, -1 where it has none
    names = {var: str(i) for i, var in enumerate(leaves(axis))}
    for var, name in names.items():
        for places in occurrences(layout_of(axis, names), name):
            number = torch.full((axis_size(axis),), -1)
            number[places] = torch.arange(len(places))[:, None]
            yield var, number


def _notes_by_group(notes: list[tuple[Axis, str]], named: NamedVariable) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for axis, why in notes:
        for var in leaves(axis):
            if var in named.names:
                found.setdefault(named.names[var], {})[why] = None
    return {name: tuple(whys) for name, whys in found.items()}


def _least(labelling: Labelling, named: NamedVariable) -> dict[str, int]:
    # how many units of a group the run has chosen at once
    found: dict[str, int] = {}
    for axis, _, count in labelling.main.notes.ranked:
        units = list(leaves(axis))
        if len(units) == 1 and units[0] in named.names:
            name = named.names[units[0]]
            found[name] = max(found.get(name, 1), count)
    return found


def _uses(labelling: Labelling, named: NamedVariable) -> Iterator[Use]:
    seen: set[tuple[str, int]] = set()
    places = labelling.flow.places()
    for first, last in pairwise([*labelling.starts, len(labelling.main.notes.uses)]):
        counts: dict[str, int] = {}
        for note in labelling.main.notes.uses[first:last]:
            if not note.names:
                continue
            tensor = note.names[0]
            nth = counts.get(tensor, 0)
            counts[tensor] = nth + 1
            # another example input that takes the same way adds nothing
            if (tensor, nth) not in seen:
                seen.add((tensor, nth))
                yield replace(_use(labelling, note, named, nth), node=places[labelling.flow.node_of[id(note.op)]])


def _use(labelling: Labelling, note: UseNote, named: NamedVariable, nth: int) -> Use:
    own = _own_dims(labelling, note)
    return Use(
        tensor=note.names[0],
        bias=note.bias[0] if note.bias else None,
        op=note.op.name,
        module=note.op.module,
        nth=nth,
        input=None if note.input is None else layouts_of(note.input, named.names),
        output=layouts_of(note.output, named.names),
        input_dims={d: note.input_dims[k] for d, k in own if k in note.input_dims},
        output_dims={d: note.output_dims[k] for d, k in own if k in note.output_dims},
    )


def _own_dims(labelling: Labelling, note: UseNote) -> list[tuple[int, int]]:
    # (dim of the parameter, dim of the operand) wherever the operand's dim was made from the parameter's
    pairs = []
    for d, axis in enumerate(labelling.private_axes[note.names[0]]):
        mine = set(leaves(axis))
        for k, operand in enumerate(note.weight):
            if axis_size(operand) == axis_size(axis) == 1 and d == len(note.weight) - 1 - k:
                continue
            if mine & set(leaves(operand)):
                pairs.append((d, k))
    return pairs


__all__ = ["NamedVariable", "build_graph", "layouts_of", "name_groups", "unreached"]
