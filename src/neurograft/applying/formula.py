"""The one formula, for one tensor: aligned_m = (A_m on each out or elementwise axis) W_m (B_m on each in axis).

W_fused = Σ_m c_m aligned_m, or whatever else the plan's operator makes of the aligned members.

A_m and B_mᵀ both have shape `(fused, member)`, so on every axis the same thing happens: the axis is multiplied
from the left by a matrix that is either sparse pairs (a gather and a scatter) or dense.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from neurograft.applying.scatter import (
    AxisPairs,
    as_slice,
    at_targets,
    between,
    length,
    part_of_index,
    scatter,
    whole_axis,
)
from neurograft.axes.layout import Layout, layout_size
from neurograft.axes.maps import Mixing, Pairs
from neurograft.axes.mixing import Mixings, axis_pairs, is_sparse, mix_along, roles_mixing
from neurograft.errors import PlanError
from neurograft.operators.block import Block
from neurograft.plans.joint import carries_weights, enters_unscaled, made_by, shared_positions
from neurograft.plans.plan import FusionPlan
from neurograft.tracing.graph import TensorInfo

BLOCK = 1 << 20  # entries gathered at a time: bounds the working memory, and fits the cache


def fuse_tensor(
    tensors: Sequence[Tensor],
    plan: FusionPlan,
    name: str,
    out: Tensor,
    base: Tensor | None = None,
    statistics: Sequence[Tensor] = (),
) -> Tensor:
    """Write the fused tensor into `out` and return it.

    Args:
        tensors: the members' tensors of this name, in the plan's order; they are only read.
        plan: the fusion plan.
        name: the tensor's name.
        out: zeros of the fused shape, in the precision the members are to be combined in.
        base: the ancestor's tensor, for operators that need it.
        statistics: what the operator measured of every member for this tensor.

    Raises:
        ValueError: `out` has another shape than the plan gives the tensor.

    Source: docs/design.md, "One formula".
    """
    rows = FusedRows(tensors, plan, name, base, statistics)
    if tuple(out.shape) != rows.shape:
        raise ValueError(f"{name}: out has shape {tuple(out.shape)}, the plan has {rows.shape}")
    if rows.summed:
        rows.add_to(out, 0, rows.count)
        return out
    for start in range(0, rows.count, rows.step):
        stop = min(start + rows.step, rows.count)
        (out[start:stop] if out.dim() else out).copy_(rows.combined(start, stop))
    return out


class FusedRows:
    """One fused tensor, made a block of rows at a time: nothing of the members' size need be in memory.

    Args:
        tensors: the members' tensors of one name, in memory or mapped from files; they are only read.
        plan: the fusion plan.
        name: the tensor's name.
        base: the ancestor's tensor, for operators that need it.
        statistics: what the operator measured of every member for this tensor, seen whole.

    Attributes:
        summed: whether the members are added up, which is the fast way; else the plan's operator combines them.

    Example:
        >>> from neurograft.tracing.graph import NeuronGraph
        >>> plan = FusionPlan("average", (NeuronGraph((), {}),) * 2, {}, (0.5, 0.5))
        >>> rows = FusedRows([torch.zeros(3, 2), torch.ones(3, 2)], plan, "weight")
        >>> rows.block(1, 3)
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        plan: FusionPlan,
        name: str,
        base: Tensor | None = None,
        statistics: Sequence[Tensor] = (),
    ):
        infos = [graph.tensors.get(name) for graph in plan.graphs]
        fused = plan.graph.tensors.get(name)
        first = tensors[0]
        self.name, self.dtype = name, first.dtype
        self.shape = tuple(first.shape) if fused is None else fused.shape
        self.count = self.shape[0] if self.shape else 1
        self._aligned = [_part_of(tensor, infos[m], fused, plan, m) for m, tensor in enumerate(tensors)]
        # outputs that are kept side by side are made of all members together, whatever combines the rest
        self.summed = plan.operator.sums or (fused is not None and made_by(fused, plan.joint))
        # what batches looked like is no weight: a variance of task vectors may be negative
        self.summed |= name.endswith((".running_mean", ".running_var")) or (
            fused is not None and fused.kind in ("mean", "variance")
        )
        self._operator, self._statistics = plan.operator, statistics
        self._depth, self._seed = plan.depths.get(name, 0.0), plan.seed
        self._weights = tuple(plan.weight(name, m) for m in range(plan.members))
        self._base = None
        if base is not None and plan.base is not None:
            self._base = _part_of(base, plan.base.graphs[0].tensors.get(name), fused, plan.base, 0)
        shared = _shared(fused, plan)
        self._parts = [
            part
            for m, (own, c) in enumerate(zip(self._aligned, plan.coefficients(name), strict=True))
            for part in _apart(replace(own, c=c), shared, plan.weight(name, m))
            if part.c
        ]
        self._exact = _disjoint(self._parts, self.shape)
        self._mass = _mass(self._parts, fused, plan)

    @property
    def whole(self) -> bool:
        """Whether the tensor can only be made in one piece: a matrix mixes all rows, or the operator looks at all."""
        mixed = any(mixed.dim == 0 for part in self._aligned for mixed in part.mixed)
        seen = self._operator.sees_whole or len(self.shape) < 2  # a vector is small, and often one row of an operator
        return not self.shape or mixed or (seen and not self.summed)

    @property
    def step(self) -> int:
        """Rows per block."""
        return max(1, self.count if self.whole else BLOCK // max(1, prod(self.shape[1:])))

    @property
    def working_bytes(self) -> int:
        """Memory that making one block takes, about: what is made in float32 or wider, and what is mixed into it."""
        entries = min(self.step, self.count) * prod(self.shape[1:])
        mixed = any(part.mixed for part in self._parts)
        blocks = 4 if mixed else 2
        if not self.summed:  # every member's block is there, the ancestor's, and what the operator makes of them
            blocks += 2 * len(self._aligned) + 2
        return entries * max(4, self.dtype.itemsize) * blocks + BLOCK * 8

    def block(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` in the members' own dtype, computed in float32 where that is narrower."""
        if not self.summed:
            return self.combined(start, stop).to(self.dtype)
        out = self._zeros(start, stop, self.dtype if self._exact else self._wide)
        self.add_to(out, start, stop)
        return out.to(self.dtype)

    def combined(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` as the operator combines them, in float32 where the members' dtype is narrower.

        Raises:
            PlanError: the operator gives another shape.
        """
        aligned = self.aligned(start, stop)
        base = None if self._base is None else self._block_of(self._base, start, stop)
        found = self._operator.combine(
            Block(self.name, aligned, self._weights, base, self._statistics, self._depth, start, self._seed)
        )
        if found.shape != aligned[0].shape:
            raise PlanError(
                f"{self.name}: {self._operator} makes the shape {tuple(found.shape)} of members' blocks of shape "
                f"{tuple(aligned[0].shape)}"
            )
        return found

    def ancestor(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the ancestor's tensor in the same basis, for plans that have one."""
        assert self._base is not None
        return self._block_of(self._base, start, stop)

    def aligned(self, start: int, stop: int) -> list[Tensor]:
        """Rows `start` to `stop` of A_m W_m B_m for every member, unscaled, in float32 where its dtype is narrower.

        Each has the fused shape; where a member has no neuron for a fused one (a selection), its entries are 0.
        """
        return [self._block_of(part, start, stop) for part in self._aligned]

    def _block_of(self, part: "_MemberPart", start: int, stop: int) -> Tensor:
        out = self._zeros(start, stop, self._wide)
        part.add_to(out, start, stop)
        return out

    @property
    def _wide(self) -> torch.dtype:
        # what members are combined in
        return torch.float32 if self.dtype.is_floating_point and self.dtype.itemsize < 4 else self.dtype

    def _zeros(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        shape = (stop - start, *self.shape[1:]) if self.shape else ()
        return torch.zeros(shape, dtype=dtype, device=self._aligned[0].tensor.device)

    def add_to(self, out: Tensor, start: int, stop: int) -> None:
        """Add rows `start` to `stop` of the sum to `out`."""
        for part in self._parts:
            part.add_to(out, start, stop)
        if self._mass:
            out /= _mass_of(self._mass, start, stop).to(out)


@dataclass(frozen=True, eq=False, slots=True)
class _Mixed:
    """An axis that dense matrices act on."""

    dim: int
    layout: Layout
    fused: Layout
    mixings: Mixings


@dataclass(frozen=True, eq=False, slots=True)
class _MemberPart:
    """What one member adds to one fused tensor."""

    tensor: Tensor
    axes: tuple[AxisPairs, ...]
    mixed: tuple[_Mixed, ...]
    c: float = 1.0

    def add_to(self, out: Tensor, start: int, stop: int) -> None:
        """Add rows `start` to `stop` of this member's part to `out`."""
        if not self.axes:
            out.add_(self.tensor.to(out) * self.c)
            return
        tensor, first = self.tensor, self.axes[0]
        if not any(mixed.dim == 0 for mixed in self.mixed):
            first = between(first, start, stop)
            if self.mixed and length(first.source):
                tensor = tensor[part_of_index(first.source, 0, length(first.source), tensor.device)]
                first = AxisPairs(first.target, slice(0, len(tensor)), first.weight)
        if not length(first.source):
            return
        for mixed in self.mixed:
            tensor = mix_along(tensor.to(out), mixed.dim, mixed.layout, mixed.fused, mixed.mixings)
        scatter(out, tensor, (first, *self.axes[1:]), self.c)


def _part_of(
    tensor: Tensor, info: TensorInfo | None, fused: TensorInfo | None, plan: FusionPlan, m: int
) -> _MemberPart:
    if info is None or fused is None or not tensor.dim():
        return _MemberPart(tensor, tuple(whole_axis(n) for n in tensor.shape), ())
    axes: list[AxisPairs] = []
    dense: list[_Mixed] = []
    for dim in range(tensor.dim()):
        mixings = axis_mixings(info, dim, plan, m)
        if not is_sparse(mixings):
            dense.append(_Mixed(dim, info.layouts[dim], fused.layouts[dim], mixings))
            axes.append(whole_axis(fused.shape[dim]))
        else:
            axes.append(_of_axis(info.layouts[dim], fused.layouts[dim], mixings))
    return _MemberPart(tensor, tuple(axes), tuple(dense))


def _mass(parts: Sequence[_MemberPart], fused: TensorInfo | None, plan: FusionPlan) -> list[list[Tensor | None]]:
    """What the entries of a tensor made along several averaged axes (zip) weigh, per part and axis; else empty.

    On one axis the members' shares of a fused neuron sum to 1. On two (a table of positions by channels) only the
    products within a member are there, Σ_m (A_m 1) ⊗ (A_m 1) < 1, and the entries are to be their mean.
    """
    if fused is None or not plan.owned or not enters_unscaled(fused, plan.graphs[0], plan.joint):
        return []
    made = [
        {g for g, roles in dim.items() if g in plan.chosen and roles & {"out", "elementwise"}} for dim in fused.roles
    ]
    weighted = any(isinstance(m.merge, Pairs) and m.merge.weight is not None for g in plan.maps for m in plan.maps[g])
    if not weighted or sum(map(len, made)) < 2:
        return []
    return [
        [_sums(axis, n, part.c if dim == 0 else 1.0) if made[dim] or dim == 0 else None for dim, (axis, n) in places]
        for part in parts
        for places in [list(enumerate(zip(part.axes, fused.shape, strict=True)))]
    ]


def _sums(axis: AxisPairs, size: int, scale: float) -> Tensor:
    # the row sums of an axis' matrix
    target = torch.arange(axis.target.start, axis.target.stop) if isinstance(axis.target, slice) else axis.target
    weight = torch.ones(len(target)) if axis.weight is None else axis.weight
    return torch.zeros(size, dtype=torch.double).index_add_(0, target, weight.double() * scale)


def _mass_of(mass: Sequence[Sequence[Tensor | None]], start: int, stop: int) -> Tensor:
    """Rows of the whole mass, 1 where there is none; dimensions that nothing averages have size 1."""
    total = torch.zeros(())
    for sums in mass:
        whole = torch.ones(())
        for dim, own in enumerate(sums):
            one = torch.ones(1) if own is None else own[start:stop] if dim == 0 else own
            whole = whole[..., None] * one
        total = total + whole
    return torch.where(total > 0, total, 1.0)


def _shared(fused: TensorInfo | None, plan: FusionPlan) -> dict[int, Tensor]:
    """Where a tensor of joint groups is shared by all members: positions per dimension, empty for most tensors."""
    if fused is None or not enters_unscaled(fused, plan.graphs[0], plan.joint):
        return {}
    return shared_positions(fused, plan.joint)


def _apart(part: _MemberPart, shared: Mapping[int, Tensor], weight: float) -> list[_MemberPart]:
    """The part, cut in pieces where axes are `shared`: the entries shared on all of them have the member's weight."""
    if not shared:
        return [part]
    pieces, axes = [], list(part.axes)
    for dim, there in shared.items():
        own = [at_targets(axis, ~there) if d == dim else axis for d, axis in enumerate(axes)]
        pieces.append(_MemberPart(part.tensor, tuple(own), part.mixed, part.c))
        axes[dim] = at_targets(axes[dim], there)
    return [*pieces, _MemberPart(part.tensor, tuple(axes), part.mixed, weight)]


def _disjoint(parts: Sequence[_MemberPart], shape: tuple[int, ...]) -> bool:
    """Whether every fused entry is one entry of one member, so that nothing is computed and nothing rounds."""
    if not shape or any(part.c != 1 or part.mixed or any(a.weight is not None for a in part.axes) for part in parts):
        return False
    apart = False
    for dim, size in enumerate(shape):
        counts = [_counts(part.axes[dim].target, size) for part in parts]
        if any(int(count.max()) > 1 for count in counts if size):
            return False
        apart |= bool(size) and bool(counts) and int(torch.stack(counts).sum(0).max()) <= 1
    return apart


def _counts(target: Tensor | slice, size: int) -> Tensor:
    if isinstance(target, Tensor):
        return torch.bincount(target, minlength=size)
    count = torch.zeros(size, dtype=torch.long)
    count[target] = 1
    return count


def axis_mixings(info: TensorInfo, dim: int, plan: FusionPlan, m: int) -> dict[str, Mixing]:
    """The matrices that act on one axis: A where the group is made or elementwise, Bᵀ where it is only read."""
    moved = {g: roles for g, roles in info.roles[dim].items() if g in plan.maps}
    if plan.owned and carries_weights(info, plan.graphs[0], plan.chosen):
        return {g: plan.maps[g][m].unmerge for g in moved}
    return {g: roles_mixing(plan.maps[g][m], roles) for g, roles in moved.items()}


def _of_axis(layout: Layout, fused: Layout, mixings: Mixings) -> AxisPairs:
    if not mixings:
        return whole_axis(layout_size(layout))
    pairs = axis_pairs(layout, fused, mixings)
    return AxisPairs(as_slice(pairs.target), as_slice(pairs.source), pairs.weight)
