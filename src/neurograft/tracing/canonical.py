"""The canonical form of a network: the same function, its units at a scale that no symmetry can change any more.

What is left between two networks in canonical form are permutations, signs and rotations. The steps are part of the
graph, and so is the proof that they keep the function.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from neurograft.axes.layout import Factor, Layout, terms
from neurograft.axes.maps import Pairs
from neurograft.axes.mixing import mix_along, occurrences
from neurograft.axes.real_parts import real_parts
from neurograft.errors import PlanError
from neurograft.tracing.graph import NeuronGraph, slots_by_group
from neurograft.tracing.parts import Absorb, Balance, Centre, Fold, Place

Step: TypeAlias = Fold | Centre | Absorb | Balance
Tensors: TypeAlias = dict[str, Tensor]
Element: TypeAlias = Callable[[Balance, tuple[int, ...]], Tensor]
"""The matrices of a balanced group, by their shape `(units, n, n)`, or the scales, `(n,)`."""

SWEEPS = 1000  # of scales that depend on each other
ROUNDING = 1e-14
SETTLED = 1e-12
NOTHING = 1e-14  # singular values below this share are rounding


def canonical_graph(graph: NeuronGraph) -> NeuronGraph:
    """The graph of networks in canonical form: scales that were folded are constant, and belong to no group.

    It keeps the steps that lead there, so that they can be taken from it alone.
    """
    folded = {step.scale for step in graph.steps if isinstance(step, Fold)}
    if not folded:
        return graph
    tensors = dict(graph.tensors)
    for name in folded:
        info = tensors[name]
        layouts = tuple(((Factor(None, size),),) for size in info.shape)
        tensors[name] = replace(info, layouts=layouts, roles=tuple({} for _ in info.shape))
    slots = slots_by_group(tensors)
    groups = tuple(replace(group, slots=slots.get(group.name, ())) for group in graph.groups)
    return replace(graph, tensors=tensors, groups=groups)


def steps_text(steps: Sequence[Step]) -> str:
    """What is done to a network to bring it into canonical form, in words.

    Example:
        >>> steps_text([Fold("a", "norm.weight", 0.0, None, ("up.weight",), ())])
        '1 scale folded'
    """
    kinds: dict[str, list[Step]] = {
        "scale{} folded": [step for step in steps if isinstance(step, Fold)],
        "tensor{} centred": [step for step in steps if isinstance(step, Centre)],
        "bias{} moved on": [step for step in steps if isinstance(step, Absorb) and step.into is not None],
        "bias{} dropped": [step for step in steps if isinstance(step, Absorb) and step.into is None],
        "group{} balanced": [step for step in steps if isinstance(step, Balance)],
    }
    found = [f"{len(own)} {what.format(_plural(what, len(own)))}" for what, own in kinds.items() if own]
    return ", ".join(found) or "nothing to do"


def _plural(what: str, count: int) -> str:
    return "" if count == 1 else "es" if what.startswith("bias") else "s"


def touched(step: Step) -> tuple[str, ...]:
    """The tensors that a step reads or changes."""
    if isinstance(step, Fold):
        return tuple(dict.fromkeys([step.scale, *_some(step.shift), *step.readers, *step.biases]))
    if isinstance(step, Centre):
        return tuple(dict.fromkeys(place.tensor for place in step.made))
    if isinstance(step, Absorb):
        reader = [] if step.reader is None else [step.reader.tensor]
        return tuple(dict.fromkeys([*(place.tensor for place in step.biases), *reader, *_some(step.into)]))
    return tuple(dict.fromkeys(place.tensor for place in (*step.made, *step.other)))


def components(steps: Sequence[Step]) -> list[list[Step]]:
    """The steps in runs that share no tensor, each in order."""
    found: list[tuple[set[str], list[int]]] = []
    for i, step in enumerate(steps):
        names, numbers = set(touched(step)), [i]
        apart = []
        for other in found:
            if other[0] & names:
                names |= other[0]
                numbers += other[1]
            else:
                apart.append(other)
        found = [*apart, (names, numbers)]
    return [[steps[i] for i in sorted(numbers)] for _, numbers in found]


def canonical(
    state: Mapping[str, Tensor], graph: NeuronGraph, steps: Sequence[Step], element: Element | None = None
) -> Tensors:
    """The tensors that steps change, float64 or complex.

    Args:
        state: the network's tensors; they are only read.
        graph: its graph.
        steps: what to do, scales that depend on each other together.
        element: other matrices than those that balance; any keep the function.

    Raises:
        PlanError: a scale of 0 whose shift nothing can carry.
    """
    names = dict.fromkeys(name for step in steps for name in touched(step))
    tensors = {name: _wide(state[name]) for name in names}
    for step in steps:
        if isinstance(step, Fold):
            _fold(step, tensors, graph)
    for step in steps:
        if isinstance(step, Absorb):
            _absorb(step, tensors, graph)
    for step in steps:
        if isinstance(step, Centre):
            for place in step.made:
                _centre(place, step, tensors, graph)
    balances = [step for step in steps if isinstance(step, Balance)]
    whole, each = [s for s in balances if not s.each], [s for s in balances if s.each]
    for _ in range(SWEEPS if whole and element is None and _depend(balances) else 1):
        moved = max((_balance(step, tensors, graph, element) for step in whole), default=0.0)
        if each:
            _rescale(each, tensors, graph, element)
        if moved < SETTLED:
            break
    return tensors


def _depend(steps: Sequence[Balance]) -> bool:
    # whether one changes the scale of what another weighs: they meet in a tensor along different dimensions
    dims: dict[str, set[int]] = {}
    for place in (place for step in steps for place in (*step.made, *step.other)):
        dims.setdefault(place.tensor, set()).add(place.dim)
    return any(len(found) > 1 for found in dims.values())


def _wide(x: Tensor) -> Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float64))


def _some(name: str | None) -> list[str]:
    return [] if name is None else [name]


def _fold(step: Fold, tensors: Tensors, graph: NeuronGraph) -> None:
    scale = tensors[step.scale].flatten() + step.offset
    shift = None if step.shift is None else tensors[step.shift].flatten()
    if shift is not None and step.biases:
        for reader, bias in zip(step.readers, step.biases, strict=True):
            tensors[bias] = tensors[bias] + _read(tensors[reader], shift, step.group, graph, reader)
        shift = torch.zeros_like(shift)
    elif shift is not None:
        if bool(((scale == 0) & (shift != 0)).any()):
            raise PlanError(f"{step.scale} has entries of 0 where {step.shift} has none, which no reader can carry")
        shift = torch.where(shift == 0, 0.0, shift / scale)
    for reader in step.readers:
        tensors[reader] = _scaled(tensors[reader], scale, step.group, graph, reader)
    if shift is not None and step.shift is not None:
        tensors[step.shift] = shift.reshape(tensors[step.shift].shape)
    tensors[step.scale] = torch.full_like(tensors[step.scale], 1 - step.offset)


def _absorb(step: Absorb, tensors: Tensors, graph: NeuronGraph) -> None:
    total: Tensor | None = None
    for place in step.biases:
        own = _features(place, step, tensors, graph).sum(-1)
        total = own if total is None else total + own
        _put(place, step, tensors, graph, torch.zeros(graph[step.group].size, dtype=torch.float64))
    if step.reader is not None and step.into is not None and total is not None:
        reader = _features(step.reader, step, tensors, graph)
        layouts, dim = graph.tensors[step.reader.tensor].layouts, step.reader.dim
        places = term_places(layouts[dim], step.reader.term, _outer(step, graph), step.group)
        beside = tensors[step.reader.tensor].movedim(dim, 0).shape[1:]
        read = reader.reshape(*reader.shape[:2], places.shape[-1], *beside)
        spread = total.reshape(*total.shape, *[1] * (read.dim() - 2)).to(read)
        tensors[step.into] = tensors[step.into] + (read * spread).sum((0, 1, 2)).reshape(tensors[step.into].shape)


def _centre(place: Place, step: Centre, tensors: Tensors, graph: NeuronGraph) -> None:
    places = term_places(graph.tensors[place.tensor].layouts[place.dim], place.term, None, step.group)[0]
    x = tensors[place.tensor].movedim(place.dim, 0).clone()
    own = x[places]
    x[places] = own - own.mean(0)
    tensors[place.tensor] = x.movedim(0, place.dim)


def _scaled(tensor: Tensor, scale: Tensor, group: str, graph: NeuronGraph, name: str) -> Tensor:
    index = torch.arange(len(scale))
    diagonal = {group: Pairs(index, index, len(scale), len(scale), scale)}
    for dim, layout in enumerate(graph.tensors[name].layouts):
        tensor = mix_along(tensor, dim, layout, layout, diagonal)
    return tensor


def _read(tensor: Tensor, shift: Tensor, group: str, graph: NeuronGraph, name: str) -> Tensor:
    # what a reader makes of the shift alone
    info = graph.tensors[name]
    (dim,) = (d for d, roles in enumerate(info.roles) if group in roles)
    along = torch.zeros(info.shape[dim], dtype=tensor.dtype)
    for places in occurrences(info.layouts[dim], group):
        along[places] = shift.to(tensor.dtype)[:, None].expand_as(places)
    made: Tensor = torch.tensordot(tensor, along, dims=([dim], [0]))
    return made


def term_places(layout: Layout, term: int, outer: str | None, group: str) -> Tensor:
    """Where the units of a group sit in one term, shape `(outer units or 1, units, positions per unit)`, int64."""
    own = terms(layout)[term]
    groups = [factor.group for factor in own.factors]
    places = own.positions()
    first = ([] if outer is None else [groups.index(outer)]) + [groups.index(group)]
    places = places.movedim(first, list(range(len(first))))
    places = places.reshape(*places.shape[: len(first)], -1)
    return places if outer is not None else places[None]


def _outer(step: Centre | Absorb | Balance, graph: NeuronGraph) -> str | None:
    group = graph[step.group]
    return group.inside if group.per_unit else None


def _features(place: Place, step: Centre | Absorb | Balance, tensors: Tensors, graph: NeuronGraph) -> Tensor:
    # one row per unit, shape (outer units or 1, units, features)
    places = term_places(graph.tensors[place.tensor].layouts[place.dim], place.term, _outer(step, graph), step.group)
    x = tensors[place.tensor].movedim(place.dim, 0)
    return x[places].flatten(2)


def _put(place: Place, step: Centre | Absorb | Balance, tensors: Tensors, graph: NeuronGraph, matrix: Tensor) -> None:
    # multiply the units at one place, by matrices of shape (outer units or 1, n, n) or scales (n,)
    places = term_places(graph.tensors[place.tensor].layouts[place.dim], place.term, _outer(step, graph), step.group)
    x = tensors[place.tensor].movedim(place.dim, 0)
    own = x[places].flatten(2)
    mixed = own * matrix[:, None] if matrix.dim() == 1 else matrix.to(own) @ own
    made = x.clone()
    made[places.flatten()] = mixed.reshape(places.numel(), *x.shape[1:])
    tensors[place.tensor] = made.movedim(0, place.dim)


def _root(places: Iterable[Place], step: Balance, tensors: Tensors, graph: NeuronGraph) -> Tensor:
    # L with L Lᵀ the Gram matrix of all features, shape (outer units or 1, units, at most units)
    features = torch.cat([real_parts(_features(p, step, tensors, graph)).flatten(2) for p in places], -1)
    triangle: Tensor = torch.linalg.qr(features.mT).R
    return triangle.mT


def _balance(step: Balance, tensors: Tensors, graph: NeuronGraph, element: Element | None) -> float:
    # how far from balance it was
    made = _root(step.made, step, tensors, graph)
    if element is not None:
        matrix = element(step, (made.shape[0], made.shape[1], made.shape[1]))
        dual = torch.linalg.inv(matrix).mT
    else:
        matrix, dual = balancing(made, _root(step.other, step, tensors, graph))
    for place in step.made:
        _put(place, step, tensors, graph, matrix)
    for place in step.other:
        _put(place, step, tensors, graph, dual)
    return float((matrix - torch.eye(matrix.shape[-1], dtype=matrix.dtype)).abs().max())


def balancing(made: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """M and its contragredient for which the two sides have one Gram matrix, and their product is what it was.

    With Lᵒᵀ Lᵐ = P Σ Qᵀ they are Σ^-½ Pᵀ Lᵒᵀ and Σ^-½ Qᵀ Lᵐᵀ, turned back so that M is symmetric and positive: then it
    has no arbitrary signs. What the product does not see (σ = 0) is dropped.

    Args:
        made: Lᵐ, shape `(..., n, at most n)`: its rows are the units' features, in another basis.
        other: Lᵒ, likewise.

    Example:
        >>> matrix, dual = balancing(4 * torch.eye(2).double(), torch.eye(2).double())
        >>> matrix.diagonal(), dual.diagonal()
        (tensor([0.5000, 0.5000], dtype=torch.float64), tensor([2., 2.], dtype=torch.float64))
    """
    left, values, right = torch.linalg.svd(other.mT @ made, full_matrices=False)
    seen = values > values[..., :1] * NOTHING
    root = torch.where(seen, values, 1.0).pow(-0.5) * seen
    own, dual = (_squared(root[..., None] * side) for side in (left.mT @ other.mT, right @ made.mT))
    turned, _, back = torch.linalg.svd(own)
    rotation = (turned @ back).mT
    return rotation @ own, rotation @ dual


def _squared(rows: Tensor) -> Tensor:
    # with rows of zeros, as many as columns
    return torch.nn.functional.pad(rows, (0, 0, 0, rows.shape[-1] - rows.shape[-2]))


def _rescale(steps: Sequence[Balance], tensors: Tensors, graph: NeuronGraph, element: Element | None) -> None:
    # scales of neighbouring layers depend on each other: the balance of all is the minimum of a convex function
    scales = [torch.ones(graph[step.group].size, dtype=torch.float64) for step in steps]
    if element is not None:
        _put_scales(
            steps, [element(step, tuple(s.shape)) for step, s in zip(steps, scales, strict=True)], tensors, graph
        )
        return
    squares = _squares(steps, tensors)
    for _ in range(SWEEPS):
        most = 0.0
        for i, step in enumerate(steps):
            made, other = (
                torch.stack([_features(place, step, squares, graph)[0].sum(1) for place in side]).sum(0)
                for side in (step.made, step.other)
            )
            both = (made > 0) & (other > 0)
            factor = torch.where(both, (other / made.clamp_min(1e-300)).pow(0.25), 1.0).clamp(1e-6, 1e6)
            scales[i] = scales[i] * factor
            for place in step.made:
                _put(place, step, squares, graph, factor.square())
            for place in step.other:
                _put(place, step, squares, graph, factor.square().reciprocal())
            most = max(most, float(factor.log().abs().max()))
        if most < ROUNDING:
            break
    _put_scales(steps, scales, tensors, graph)


def _squares(steps: Sequence[Balance], tensors: Tensors) -> Tensors:
    # summed over all dimensions along which nothing is scaled
    dims: dict[str, set[int]] = {}
    for step in steps:
        for place in (*step.made, *step.other):
            dims.setdefault(place.tensor, set()).add(place.dim)
    found = {}
    for name, own in dims.items():
        rest = [d for d in range(tensors[name].dim()) if d not in own]
        x = tensors[name].abs().square()
        found[name] = x.sum(rest, keepdim=True) if rest else x
    return found


def _put_scales(steps: Sequence[Balance], scales: Sequence[Tensor], tensors: Tensors, graph: NeuronGraph) -> None:
    for step, scale in zip(steps, scales, strict=True):
        for place in step.made:
            _put(place, step, tensors, graph, scale)
        for place in step.other:
            _put(place, step, tensors, graph, scale.reciprocal())


__all__ = ["Step", "balancing", "canonical", "canonical_graph", "components", "steps_text", "term_places", "touched"]
