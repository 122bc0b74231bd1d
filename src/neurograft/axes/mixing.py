"""Multiplying axes of a tensor by the matrices of the groups that lie along them.

A layout is multiplied out into terms, products of factors; in each the matrices of the factors act side by side, and a
matrix that varies from unit to unit of another factor (`PerUnit`) is chosen by that factor's number.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from neurograft.axes.layout import Layout, Role, Term, layout_size, sizes_along, terms
from neurograft.axes.maps import Mixing, NeuronMap, Pairs, PerUnit
from neurograft.errors import PlanError

Mixings = Mapping[str, Mixing]


def roles_mixing(neuron_map: NeuronMap, roles: frozenset[Role]) -> Mixing:
    """The matrix that acts on an axis: A where the group is made or elementwise, Bᵀ where it is only read."""
    return neuron_map.unmerge if roles == {"in"} else neuron_map.merge


def mix_along(tensor: Tensor, dim: int, layout: Layout, fused: Layout, mixings: Mixings) -> Tensor:
    """Multiply one axis by its groups' matrices, sparse, dense or one per unit; the other axes stay as they are.

    Args:
        tensor: any shape; axis `dim` is laid out as `layout`.
        dim: the axis to multiply.
        layout: how neurons lie along the axis before.
        fused: how neurons lie along it afterwards.
        mixings: matrix of shape `(fused, member)` per group.

    Returns:
        The same tensor with axis `dim` laid out as `fused`.

    Raises:
        PlanError: a matrix varies with units that do not lie along the axis together with its group.

    Example:
        >>> from neurograft.axes.layout import Factor
        >>> layout = ((Factor("c", 2), Factor(None, 2)),)
        >>> swap = Pairs.permutation(torch.tensor([1, 0]))
        >>> mix_along(torch.tensor([0.0, 1.0, 2.0, 3.0]), 0, layout, layout, {"c": swap})
        tensor([2., 3., 0., 1.])
    """
    if not any(group in mixings for group in sizes_along(layout)):
        return tensor
    boxes = [_mixed(_box(tensor, dim, term), dim, term, mixings) for term in terms(layout)]
    if len(boxes) == 1:
        return boxes[0].flatten(dim, boxes[0].dim() - tensor.dim() + dim)
    out = tensor.new_empty(*tensor.shape[:dim], layout_size(fused), *tensor.shape[dim + 1 :])
    for box, term in zip(boxes, terms(fused), strict=True):
        _box(out, dim, term).copy_(box)
    return out


def is_sparse(mixings: Mixings) -> bool:
    """Whether all the matrices are sparse."""
    return not any(isinstance(m.inner if isinstance(m, PerUnit) else m, Tensor) for m in mixings.values())


def mix_axis(tensor: Tensor, dim: int, mixing: Pairs | Tensor) -> Tensor:
    """Multiply one whole axis by one matrix of shape `(fused, member)`."""
    if isinstance(mixing, Tensor):
        mixed: Tensor = torch.tensordot(mixing.to(tensor), tensor, dims=([1], [dim]))
        return mixed.movedim(0, dim)
    taken = tensor.index_select(dim, mixing.source.to(tensor.device))
    if mixing.weight is not None:
        taken = taken * mixing.weight.to(taken).reshape(-1, *[1] * (tensor.dim() - dim - 1))
    if len(mixing.target) == mixing.fused and bool((mixing.target == torch.arange(mixing.fused)).all()):
        return taken
    shape = (*tensor.shape[:dim], mixing.fused, *tensor.shape[dim + 1 :])
    return taken.new_zeros(shape).index_add_(dim, mixing.target.to(tensor.device), taken)


def _mixed(box: Tensor, dim: int, term: Term, mixings: Mixings) -> Tensor:
    # inner matrices first: the member's own units decide which of them acts
    for i, mixing in reversed(_outer_first(term, mixings)):
        if isinstance(mixing, PerUnit):
            box = _mix_within(box, dim + _outer(term, i, mixing), dim + i, mixing)
        elif mixing is not None:
            box = mix_axis(box, dim + i, mixing)
    return box


def _mix_within(tensor: Tensor, outer: int, inner: int, mixing: PerUnit) -> Tensor:
    # one matrix per number along `outer`, all on the axis `inner`
    own, first = mixing.inner, tensor.movedim((outer, inner), (0, 1))
    if isinstance(own, Tensor):
        mixed = torch.einsum("sij,sj...->si...", own.to(first), first)
    else:
        units = torch.arange(mixing.units, device=tensor.device)[:, None]
        mixed = first[units, own.source.to(tensor.device)]
        if own.weight is not None:
            mixed = mixed * own.weight.to(mixed).reshape(*own.weight.shape, *[1] * (first.dim() - 2))
        if own.target.shape[1] != own.fused or not bool((own.target == torch.arange(own.fused)).all()):
            empty = mixed.new_zeros(mixing.units, own.fused, *mixed.shape[2:])
            mixed = empty.index_put_((units, own.target.to(tensor.device)), mixed, accumulate=True)
    return mixed.movedim((0, 1), (outer, inner))


def _box(tensor: Tensor, dim: int, term: Term) -> Tensor:
    """A view of the entries of one term along an axis, which becomes one dimension per factor."""
    step = tensor.stride(dim)
    shape = (*tensor.shape[:dim], *(factor.size for factor in term.factors), *tensor.shape[dim + 1 :])
    strides = (*tensor.stride()[:dim], *(stride * step for stride in term.strides), *tensor.stride()[dim + 1 :])
    return tensor.as_strided(shape, strides, tensor.storage_offset() + term.start * step)


def _outer_first(term: Term, mixings: Mixings) -> list[tuple[int, Mixing | None]]:
    """The factors and their matrices, those that vary with another factor behind that one."""
    found = [(i, mixings.get(factor.group or "")) for i, factor in enumerate(term.factors)]
    if any(isinstance(mixing, PerUnit) for _, mixing in found):
        found.sort(key=lambda numbered: _depth(term, numbered[0], mixings))
    return found


def _depth(term: Term, i: int, mixings: Mixings) -> int:
    mixing = mixings.get(term.factors[i].group or "")
    return 1 + _depth(term, _outer(term, i, mixing), mixings) if isinstance(mixing, PerUnit) else 0


def _outer(term: Term, i: int, mixing: PerUnit) -> int:
    """Which factor decides which matrix acts on factor i."""
    for j, factor in enumerate(term.factors):
        if factor.group == mixing.outer:
            if factor.size != mixing.units:
                raise PlanError(f"{mixing.outer} has {factor.size} units but {mixing.units} matrices for their insides")
            return j
    raise PlanError(
        f"the matrix of {term.factors[i].group} varies with {mixing.outer}, which does not lie beside it on this axis"
    )


def axis_pairs(layout: Layout, fused: Layout, mixings: Mixings) -> Pairs:
    """The sparse matrix over a whole axis, from the sparse matrices of its groups; its targets are in order.

    Raises:
        PlanError: as `mix_along`.

    Example:
        >>> from neurograft.axes.layout import Factor
        >>> pairs = Pairs(torch.tensor([0]), torch.tensor([1]), 1, 2)
        >>> member, fused = ((Factor("c", 2), Factor(None, 3)),), ((Factor("c", 1), Factor(None, 3)),)
        >>> axis_pairs(member, fused, {"c": pairs}).source
        tensor([3, 4, 5])
    """
    targets, sources, weights = [], [], []
    for own, new in zip(terms(layout), terms(fused), strict=True):
        target, source, weight = _term_pairs(own, new, mixings)
        targets.append(target)
        sources.append(source)
        weights.append(weight)
    weight = None
    if any(w is not None for w in weights):
        weight = torch.cat([torch.ones(len(t)) if w is None else w for w, t in zip(weights, targets, strict=True)])
    none = torch.zeros(0, dtype=torch.long)
    target, source = torch.cat([none, *targets]), torch.cat([none, *sources])
    return Pairs(target, source, layout_size(fused), layout_size(layout), weight).by_target()


def _term_pairs(own: Term, new: Term, mixings: Mixings) -> tuple[Tensor, Tensor, Tensor | None]:
    # one dimension per factor, as long as its matrix has pairs; `read` are the member's numbers along each factor
    count = len(own.factors)
    target, source = (torch.tensor(term.start).reshape([1] * count) for term in (new, own))
    weight: Tensor | None = None
    read: dict[int, Tensor] = {}
    for i, mixing in _outer_first(own, mixings):
        if mixing is None:
            made = read[i] = _shaped(torch.arange(own.factors[i].size), i, count)
            own_weight = None
        elif isinstance(mixing, PerUnit):
            inner, units = mixing.inner, read[_outer(own, i, mixing)].squeeze(i)
            assert isinstance(inner, Pairs)
            made, read[i] = inner.target[units].movedim(-1, i), inner.source[units].movedim(-1, i)
            own_weight = None if inner.weight is None else inner.weight[units].movedim(-1, i)
        else:
            assert isinstance(mixing, Pairs)
            made, read[i] = _shaped(mixing.target, i, count), _shaped(mixing.source, i, count)
            own_weight = None if mixing.weight is None else _shaped(mixing.weight, i, count)
        target = target + made * new.strides[i]
        source = source + read[i] * own.strides[i]
        if own_weight is not None:
            weight = own_weight if weight is None else weight * own_weight
    if weight is not None:
        weight = weight.expand_as(target).flatten()
    return target.flatten(), source.expand_as(target).flatten(), weight


def _shaped(values: Tensor, dim: int, count: int) -> Tensor:
    return values.reshape([-1 if d == dim else 1 for d in range(count)])


def axis_order(layout: Layout, mixings: Mixings) -> Tensor:
    """Where each position of the axis comes from when groups are permuted, shape `(positions,)`, int64.

    Example:
        >>> from neurograft.axes.layout import Factor
        >>> swap = {"heads": Pairs.permutation(torch.tensor([1, 0]))}
        >>> axis_order(((Factor("heads", 2), Factor(None, 3)),), swap).tolist()
        [3, 4, 5, 0, 1, 2]
    """
    return axis_pairs(layout, layout, mixings).source


def occurrences(layout: Layout, group: str) -> list[Tensor]:
    """Where the units of a group sit, term by term: each of shape `(units, positions per unit)`, int64."""
    found = []
    for term in terms(layout):
        for i, factor in enumerate(term.factors):
            if factor.group == group:
                found.append(term.positions().movedim(i, 0).reshape(factor.size, -1))
    return found


def unit_positions(layout: Layout, group: str) -> Tensor:
    """Where the units of a group sit along an axis, shape `(units, positions per unit)`, int64.

    Example:
        >>> from neurograft.axes.layout import Factor
        >>> unit_positions(((Factor("h", 2), Factor("d", 3)), (Factor("h", 2),)), "h")
        tensor([[0, 1, 2, 6],
                [3, 4, 5, 7]])
    """
    return torch.cat(occurrences(layout, group), 1)


def cell_positions(layout: Layout, group: str, inner: Sequence[str]) -> dict[tuple[str, ...], Tensor]:
    """Where the units of a group sit, distinguished by the `inner` groups that lie beside it.

    Returns:
        For every combination of inner groups that some term holds beside the group (none: the empty one), positions of
        shape `(units, size of each inner group …, positions per cell)`, int64.

    Example:
        >>> from neurograft.axes.layout import Factor
        >>> cells = cell_positions(((Factor("h", 2), Factor("d", 3)), (Factor("h", 2),)), "h", ["d"])
        >>> cells["d",].squeeze(-1).tolist(), cells[()].tolist()
        ([[0, 1, 2], [3, 4, 5]], [[6], [7]])
    """
    found: dict[tuple[str, ...], list[Tensor]] = {}
    for term in terms(layout):
        groups = [factor.group for factor in term.factors]
        for i in (i for i, name in enumerate(groups) if name == group):
            key = tuple(name for name in inner if name in groups and name != group)
            dims = [i, *(groups.index(name) for name in key)]
            places = term.positions().movedim(dims, list(range(len(dims))))
            found.setdefault(key, []).append(
                places.flatten(len(dims)) if places.dim() > len(dims) else places[..., None]
            )
    return {key: torch.cat(places, -1) for key, places in found.items()}
