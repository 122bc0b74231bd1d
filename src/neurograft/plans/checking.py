"""What a plan from a file must be before anything is read or written by it: its types, its graphs, its maps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from math import inf, isfinite, prod
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch
from torch import Tensor

from neurograft.axes.layout import Factor, Layout, Segment, layout_size, sizes_along, terms
from neurograft.axes.maps import NeuronMap, Pairs, PerUnit, Plain
from neurograft.plans.joint import check_joint
from neurograft.plans.plan import FusionPlan
from neurograft.tracing.graph import (
    Absorb,
    Balance,
    Centre,
    Fold,
    Group,
    NeuronGraph,
    Place,
    TensorInfo,
    slots_by_group,
)

MOST_TERMS = 4096  # of a layout that is multiplied out
TOLERANCE = 1e-6  # of the sum of weights
QUOTED: dict[str, Any] = {
    "Segment": Segment,
    "FusionPlan": FusionPlan,
    "None": None,
}  # annotations that hold themselves


def check_fields(made: Any) -> None:
    """Every field of a dataclass must hold what its annotation names.

    Raises:
        ValueError: names the field.
    """
    for field in fields(made):
        if not _fits(getattr(made, field.name), field.type):
            raise ValueError(f"{type(made).__name__}.{field.name} is no {field.type}")


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, str):
        return any(_fits(value, QUOTED[name]) for name in hint.split(" | "))
    kind, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is Literal:
        return isinstance(value, str) and value in inner
    if kind is tuple and inner[-1] is not Ellipsis:
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if kind in (tuple, frozenset):
        return isinstance(value, kind) and all(_fits(item, inner[0]) for item in value)
    if kind is Mapping:
        return isinstance(value, Mapping) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if hint in (int, float):
        return type(value) is int or (hint is float and type(value) is float)
    return isinstance(value, NoneType if hint is None else hint)


def check_plan(plan: FusionPlan) -> None:
    """A plan must not read or write outside its members' tensors, and its graphs must agree with themselves.

    Raises:
        ValueError: with what does not fit.
        PlanError: a joint group whose fused neurons are more or less than one.
    """
    if not plan.graphs:
        raise ValueError("it is for no members")
    for graph in {id(graph): graph for graph in plan.graphs}.values():
        _check_graph(graph)
    if len({tuple((g.name, g.inside) for g in graph.groups) for graph in plan.graphs}) > 1:
        raise ValueError("its members have different groups")
    _check_weights(plan.weights, plan.members, whole=True)
    aligned, heads = plan.details.get("aligned", ()), plan.details.get("heads", {})
    if not _fits(aligned, tuple[bool, ...]) or not isinstance(heads, Mapping):
        raise ValueError("its details do not name which members are aligned, or whose the outputs are")
    for name, weights in plan.tensor_weights.items():
        _known([name], plan.graphs[0].tensors, "a weighted tensor")
        _check_weights(weights, plan.members, whole=False)
    for group, maps in plan.maps.items():
        _check_maps(plan, group, maps)
    _known(heads, plan.maps, "a group of kept outputs")
    check_joint(plan.maps, plan.joint)
    if plan.base is not None:
        check_plan(plan.base)
        if plan.base.members != 1 or plan.base.base is not None or not plan.base.sizes.items() <= plan.sizes.items():
            raise ValueError("its base does not fit its members")


def _check_weights(weights: Sequence[float], members: int, *, whole: bool) -> None:
    total = sum(weights) if all(map(isfinite, weights)) else inf
    if len(weights) != members or not isfinite(total) or min(weights) < 0:
        raise ValueError(f"{weights} are no weights of {members} members")
    if whole and abs(total - 1) > TOLERANCE:
        raise ValueError(f"its weights {weights} do not sum to 1")


def _check_graph(graph: NeuronGraph) -> None:
    groups, tensors = graph.by_name, graph.tensors
    if len(groups) < len(graph.groups):
        raise ValueError("two groups have one name")
    for name, info in tensors.items():
        _check_tensor(name, info, groups)
    slots = slots_by_group(tensors)
    _known(slots, groups, "a group")
    for group in graph.groups:
        _check_group(group, groups)
        if set(group.slots) != set(slots.get(group.name, ())):
            raise ValueError(f"group {group.name} does not lie where its tensors have it")
    for use in graph.uses:
        _known([use.tensor, *([use.bias] if use.bias is not None else [])], tensors, "a used tensor")
        for layouts in (use.input or (), use.output):
            for own in layouts:
                _check_layout(own, groups)
        for faced, into in ((use.input_dims, use.input or ()), (use.output_dims, use.output)):
            shape = tensors[use.tensor].shape
            if not all(0 <= d < len(shape) and 0 <= a < len(into) for d, a in faced.items()):
                raise ValueError(f"a use of {use.tensor} faces dimensions that are not there")
    for tied in graph.tied:
        _known([tied.tensor, *tied.norm], tensors, "a tied tensor")
        _known([tied.group], groups, "a tied group")
    for step in graph.steps:
        _check_step(step, graph)
    _known((*graph.execution_order, *graph.backward_order), groups, "an ordered group")
    count = len(graph.flow.nodes)
    if not all(0 <= edge.source < count and 0 <= edge.target < count for edge in graph.flow.edges):
        raise ValueError("an edge leads to no node")
    if not all(-1 <= use.node < count for use in graph.uses):
        raise ValueError("a use is at no node")


def _check_tensor(name: str, info: TensorInfo, groups: Mapping[str, Group]) -> None:
    if info.name != name or not len(info.shape) == len(info.layouts) == len(info.roles) <= 64:
        raise ValueError(f"{name} has another name, or not one layout for each dimension")
    if min(info.shape, default=0) < 0 or prod(map(float, info.shape)) > 2.0**62:
        raise ValueError(f"{name} has the impossible shape {info.shape}")
    for size, own, roles in zip(info.shape, info.layouts, info.roles, strict=True):
        _check_layout(own, groups)
        if layout_size(own) != size or sizes_along(own).keys() != roles.keys() or not all(roles.values()):
            raise ValueError(f"the layout of {name} does not fit its shape {info.shape}")


def _check_step(step: Fold | Centre | Absorb | Balance, graph: NeuronGraph) -> None:
    # a step towards the canonical form must find its units where it names them
    _known([step.group], graph.by_name, "a group of a step")
    if not isinstance(step, Fold):
        for place in _places(step):
            _known([place.tensor], graph.tensors, "a balanced tensor")
            info, group = graph.tensors[place.tensor], graph[step.group]
            if not 0 <= place.dim < len(info.layouts) or not 0 <= place.term < len(terms(info.layouts[place.dim])):
                raise ValueError(f"{place.tensor} is balanced where it has no units")
            there = [factor.group for factor in terms(info.layouts[place.dim])[place.term].factors]
            beside = [group.inside] if group.per_unit else []
            if any(there.count(name) != 1 for name in (step.group, *beside)):
                raise ValueError(f"{place.tensor} is balanced where group {step.group} does not lie")
        if isinstance(step, Balance) and not (step.made and step.other):
            raise ValueError(f"group {step.group} is balanced on one side only")
        if isinstance(step, Absorb) and step.into is not None:
            _known([step.into], graph.tensors, "a bias that absorbs others")
        return
    names = (step.scale, *(() if step.shift is None else (step.shift,)), *step.readers, *step.biases)
    _known(names, graph.tensors, "a folded tensor")
    for name in names[: len(names) - len(step.readers) - len(step.biases)]:
        if prod(graph.tensors[name].shape) != graph[step.group].size:
            raise ValueError(f"{name} has not one entry for each unit of group {step.group}")
    if not isfinite(step.offset) or len(step.biases) not in (0, len(step.readers)):
        raise ValueError(f"the scale {step.scale} cannot be folded where it names")
    for reader in step.readers:
        if sum(step.group in roles for roles in graph.tensors[reader].roles) != 1:
            raise ValueError(f"{reader} does not read group {step.group} along one dimension")


def _places(step: Centre | Absorb | Balance) -> tuple[Place, ...]:
    if isinstance(step, Centre):
        return step.made
    if isinstance(step, Absorb):
        return (*step.biases, *(() if step.reader is None else (step.reader,)))
    return (*step.made, *step.other)


def _check_layout(own: Layout, groups: Mapping[str, Group]) -> None:
    if _terms(own) > MOST_TERMS:
        raise ValueError("a layout has too many terms")
    for factor in _factors(own):
        if factor.size < 0 or (factor.group is not None and factor.group not in groups):
            raise ValueError(f"a layout has {factor.size} units of group {factor.group!r}")
        if factor.group is not None and factor.size != groups[factor.group].size:
            raise ValueError(f"group {factor.group} has {groups[factor.group].size} units, a layout {factor.size}")


def _terms(own: Layout) -> int:
    return sum(prod(1 if isinstance(part, Factor) else _terms(part) for part in segment) for segment in own)


def _factors(own: Layout) -> Iterable[Factor]:
    for segment in own:
        for part in segment:
            if isinstance(part, Factor):
                yield part
            else:
                yield from _factors(part)


def _check_group(group: Group, groups: Mapping[str, Group]) -> None:
    inside, seen = group.inside, {group.name}
    while inside is not None:
        if inside in seen or inside not in groups:
            raise ValueError(f"group {group.name} is inside {inside}, which is no other group")
        seen.add(inside)
        inside = groups[inside].inside
    if group.size < 0 or not 0 <= group.least <= max(1, group.size):
        raise ValueError(f"group {group.name} has {group.size} units, of which {group.least} must be there")


def _known(names: Iterable[str], known: Mapping[str, Any], what: str) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{what} is called {name!r}, which is nowhere else")


def _check_maps(plan: FusionPlan, group: str, maps: Sequence[NeuronMap]) -> None:
    _known([group], plan.graphs[0].by_name, "a moved group")
    if len(maps) != plan.members or len({own.fused for own in maps}) != 1:
        raise ValueError(f"group {group} must have one map for each of {plan.members} members, all of one size")
    if not 1 <= maps[0].fused <= sum(own.member for own in maps):
        raise ValueError(f"group {group} would have {maps[0].fused} neurons")
    for m, (own, graph) in enumerate(zip(maps, plan.graphs, strict=True)):
        if own.member != graph[group].size:
            raise ValueError(f"group {group} of member {m} has {graph[group].size} neurons, its map {own.member}")
        for mixing in (own.merge, own.unmerge):
            if isinstance(mixing, PerUnit):
                if not graph[group].per_unit or graph[group].inside != mixing.outer:
                    raise ValueError(f"group {group} may not be mapped differently in the units of {mixing.outer}")
                if mixing.units != graph[mixing.outer].size:
                    raise ValueError(f"group {group} has {mixing.units} maps for the units of {mixing.outer}")
                _check_mixing(group, mixing.inner, 1)
            else:
                _check_mixing(group, mixing, 0)


def _check_mixing(group: str, mixing: Plain, leading: int) -> None:
    # `leading` dimensions count units
    if isinstance(mixing, Tensor):
        if mixing.dim() != 2 + leading or not _finite(mixing):
            raise ValueError(f"a map of group {group} must be a finite matrix")
        return
    _check_pairs(group, mixing, leading)


def _check_pairs(group: str, mixing: Pairs, leading: int) -> None:
    for index, size in ((mixing.target, mixing.fused), (mixing.source, mixing.member)):
        if index.dtype != torch.int64 or index.dim() != 1 + leading or index.shape != mixing.target.shape:
            raise ValueError(f"a map of group {group} must be index vectors of one length")
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
            raise ValueError(f"a map of group {group} leads outside its {size} neurons")
    if mixing.weight is not None and (mixing.weight.shape != mixing.target.shape or not _finite(mixing.weight)):
        raise ValueError(f"a map of group {group} must have one finite weight per pair")


def _finite(tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point and bool(torch.isfinite(tensor).all())
