"""The one formula, for one tensor: W_fused = Σ_m c_m · (A_m on each out or elementwise axis) W_m (B_m on each in axis).

A_m and B_mᵀ both have shape `(fused, member)`, so on every axis the same thing happens: the axis is multiplied
from the left by a matrix that is either sparse pairs (a gather and a scatter) or dense.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from neurograft.planning.maps import Mixing, Pairs
from neurograft.planning.mixing import mix_along, roles_mixing
from neurograft.planning.plan import FusionPlan
from neurograft.tracing.graph import TensorInfo
from neurograft.tracing.layout import Factor, Layout, Part, Segment, layout_size, part_size, segment_size

BLOCK = 1 << 20  # entries gathered at a time: bounds the working memory, and fits the cache


@dataclass(frozen=True, eq=False, slots=True)
class AxisPairs:
    """A sparse matrix over the positions of one axis: `target`, `source`, `weight` (None: ones), or the identity."""

    target: Tensor | slice
    source: Tensor | slice
    weight: Tensor | None


def fuse_tensor(tensors: Sequence[Tensor], plan: FusionPlan, name: str, out: Tensor) -> Tensor:
    """Write the fused tensor into `out` and return it.

    Args:
        tensors: the members' tensors of this name, in the plan's order; they are only read.
        plan: the fusion plan.
        name: the tensor's name.
        out: zeros of the fused shape, in the precision the sum is to be computed in.

    Raises:
        ValueError: `out` has another shape than the plan gives the tensor.

    Source: DESIGN, section 1.
    """
    infos = [graph.tensors.get(name) for graph in plan.graphs]
    fused = plan.graph.tensors.get(name)
    if fused is not None and tuple(out.shape) != fused.shape:
        raise ValueError(f"{name}: out has shape {tuple(out.shape)}, the plan says {fused.shape}")
    for m, (tensor, c) in enumerate(zip(tensors, plan.coefficients(name), strict=True)):
        if c == 0:
            continue
        _add_member(out, tensor, infos[m], fused, plan, m, c)
    return out


def _add_member(
    out: Tensor, tensor: Tensor, info: TensorInfo | None, fused: TensorInfo | None, plan: FusionPlan, m: int, c: float
) -> None:
    if info is None or fused is None or not tensor.dim():
        out.add_(tensor.to(out), alpha=c)
        return
    axes = []
    for dim in range(tensor.dim()):
        mixings = axis_mixings(info, dim, plan, m)
        if any(isinstance(mixing, Tensor) for mixing in mixings.values()):
            tensor = mix_along(tensor.to(out), dim, info.layouts[dim], fused.layouts[dim], mixings)
            axes.append(_identity(out.shape[dim]))
        else:
            axes.append(axis_pairs(info.layouts[dim], fused.layouts[dim], mixings))
    _scatter(out, tensor, axes, c)


def axis_mixings(info: TensorInfo, dim: int, plan: FusionPlan, m: int) -> dict[str, Mixing]:
    """The matrices that act on one axis: A where the group is made or elementwise, Bᵀ where it is only read."""
    return {g: roles_mixing(plan.maps[g][m], roles) for g, roles in info.roles[dim].items() if g in plan.maps}


def axis_pairs(layout: Layout, fused: Layout, mixings: Mapping[str, Mixing]) -> AxisPairs:
    """The sparse matrix over a whole axis, from the sparse matrices of its groups.

    Example:
        >>> pairs = Pairs(torch.tensor([0]), torch.tensor([1]), 1, 2)
        >>> member, fused = ((Factor("c", 2), Factor(None, 3)),), ((Factor("c", 1), Factor(None, 3)),)
        >>> axis_pairs(member, fused, {"c": pairs}).source
        slice(3, 6, None)
    """
    if not mixings:
        return _identity(layout_size(layout))
    target, source, weight = _layout_pairs(layout, fused, mixings)
    return AxisPairs(_as_slice(target), _as_slice(source), weight)


def _identity(size: int) -> AxisPairs:
    return AxisPairs(slice(0, size), slice(0, size), None)


def _as_slice(index: Tensor) -> Tensor | slice:
    if len(index) and bool((index[1:] - index[:-1] == 1).all()):
        return slice(int(index[0]), int(index[-1]) + 1)
    return index


def _layout_pairs(layout: Layout, fused: Layout, mixings: Mapping[str, Mixing]) -> tuple[Tensor, Tensor, Tensor | None]:
    targets, sources, weights = [], [], []
    t0 = s0 = 0
    for own, new in zip(layout, fused, strict=True):
        target, source, weight = _segment_pairs(own, new, mixings)
        targets.append(target + t0)
        sources.append(source + s0)
        weights.append(weight)
        t0 += segment_size(new)
        s0 += segment_size(own)
    joined = None
    if any(w is not None for w in weights):
        joined = torch.cat([torch.ones(len(t)) if w is None else w for w, t in zip(weights, targets, strict=True)])
    return torch.cat(targets), torch.cat(sources), joined


def _segment_pairs(own: Segment, new: Segment, mixings: Mapping[str, Mixing]) -> tuple[Tensor, Tensor, Tensor | None]:
    target = source = torch.zeros(1, dtype=torch.long)
    weight: Tensor | None = None
    for a, b in zip(own, new, strict=True):
        t, s, w = _part_pairs(a, b, mixings)
        target = (target[:, None] * part_size(b) + t).flatten()
        source = (source[:, None] * part_size(a) + s).flatten()
        if weight is not None or w is not None:
            left = torch.ones(len(target) // len(t)) if weight is None else weight
            weight = (left[:, None] * (torch.ones(len(t)) if w is None else w)).flatten()
    return target, source, weight


def _part_pairs(a: Part, b: Part, mixings: Mapping[str, Mixing]) -> tuple[Tensor, Tensor, Tensor | None]:
    if isinstance(a, Factor):
        mixing = mixings.get(a.group) if a.group else None
        if isinstance(mixing, Pairs):
            return mixing.target, mixing.source, mixing.weight
        unmoved = torch.arange(a.size)
        return unmoved, unmoved, None
    assert not isinstance(b, Factor)
    return _layout_pairs(a, b, mixings)


def _scatter(out: Tensor, tensor: Tensor, axes: Sequence[AxisPairs], c: float) -> None:
    """out[targets] += c · weights · tensor[sources], a block of rows at a time."""
    first, *rest = axes
    count = _length(first.source)
    per_row = prod(_length(axis.source) for axis in rest)
    if not count or not per_row:
        return
    step = max(1, BLOCK // per_row)
    for start in range(0, count, step):
        stop = min(start + step, count)
        block = tensor[_part(first.source, start, stop, tensor.device)]
        for dim, axis in enumerate(rest, 1):
            block = _take(block, dim, axis.source)
        block = block.to(out.dtype)
        scale: Tensor | float = c
        for dim, axis in enumerate(axes):
            if axis.weight is not None:
                weight = axis.weight[start:stop] if dim == 0 else axis.weight
                scale = scale * weight.to(out).reshape(-1, *[1] * (out.dim() - dim - 1))
        if isinstance(scale, Tensor) or scale != 1:
            block = block * scale
        _put(out, block, [_part(first.target, start, stop, out.device), *(axis.target for axis in rest)])


def _length(index: Tensor | slice) -> int:
    return index.stop - index.start if isinstance(index, slice) else len(index)


def _part(index: Tensor | slice, start: int, stop: int, device: torch.device) -> Tensor | slice:
    if isinstance(index, slice):
        return slice(index.start + start, index.start + stop)
    return index[start:stop].to(device)


def _take(block: Tensor, dim: int, source: Tensor | slice) -> Tensor:
    if isinstance(source, slice):
        return block.narrow(dim, source.start, source.stop - source.start)
    return block.index_select(dim, source.to(block.device))


def _put(out: Tensor, block: Tensor, targets: list[Tensor | slice]) -> None:
    if all(isinstance(target, slice) for target in targets):
        out[tuple(targets)] += block
        return
    moved = [d for d, target in enumerate(targets) if not isinstance(target, slice)]
    view = out
    for d, target in enumerate(targets):
        if isinstance(target, slice):
            view = view.narrow(d, target.start, target.stop - target.start)
    if len(moved) == 1:
        index = targets[moved[0]]
        assert isinstance(index, Tensor)
        view.index_add_(moved[0], index.to(out.device), block)
        return
    grid = []
    for d in range(out.dim()):
        target = targets[d]
        index = torch.arange(block.shape[d]) if isinstance(target, slice) else target
        grid.append(index.to(out.device).reshape(-1, *[1] * (out.dim() - d - 1)))
    view.index_put_(tuple(grid), block, accumulate=True)
