"""How much each neuron matters: sums of squared weights over everything that makes or reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neurograft.axes.layout import resize_layout
from neurograft.axes.maps import Pairs
from neurograft.axes.mixing import axis_pairs
from neurograft.members.states import State
from neurograft.plans.joint import enters_unscaled, shared_positions
from neurograft.tracing.graph import NeuronGraph, Slot, TensorInfo

Alive = Mapping[str, Tensor]
"""For each group already decided, the units that are still there: int64, sorted."""

BLOCK = 1 << 22  # entries looked at a time: bounds what is copied where rows or columns are left out


@dataclass(frozen=True, eq=False)
class Magnitude:
    """Squared or absolute weights of one member, summed per neuron.

    score(u) = 1/s · Σ over the group's s weight slots of Σ |c · w|^power over the unit's entries that are alive;
    power 2 is the group magnitude of Torch-Pruning, power 1 its L1 cousin. `scale` is c for tensors that
    are not made along a moved axis (the last layer), 1 for all others.
    Source: Öz et al. 2024, arXiv:2502.06849, section 3; Fang et al. 2023, arXiv:2301.12900.
    """

    state: State
    graph: NeuronGraph
    moved: frozenset[str]
    scale: float = 1.0
    power: int = 2

    def slots(self, group: str) -> tuple[Slot, ...]:
        """The slots that count: weights and scales, no biases, no running statistics."""
        return tuple(s for s in self.graph[group].slots if self.graph.tensors[s.tensor].kind in ("weight", "scale"))

    def contributions(self, group: str, alive: Alive) -> list[Tensor]:
        """One vector of shape `(units,)` per slot, float32."""
        return [self.slot_sum(slot, group, alive) for slot in self.slots(group)]

    def slot_sum(self, slot: Slot, group: str, alive: Alive) -> Tensor:
        """Σ |c · w|^power over every unit's entries in one slot, shape `(units,)`."""
        info = self.graph.tensors[slot.tensor]
        positions = [
            None if d == slot.dim else alive_positions(info, d, self.graph, alive) for d in range(len(info.shape))
        ]
        sums = power_sums(self.state[slot.tensor], slot.dim, positions, self.power)
        if not enters_unscaled(info, self.graph, self.moved):
            sums = sums * abs(self.scale) ** self.power
        elif self.scale != 1 and slot.role == "in" and (shared := shared_positions(info, self.moved)):
            for dim, there in shared.items():
                chosen = positions[dim]
                positions[dim] = there.nonzero().flatten() if chosen is None else chosen[there[chosen]]
            averaged = power_sums(self.state[slot.tensor], slot.dim, positions, self.power)
            sums = sums + averaged * (abs(self.scale) ** self.power - 1)
        return sums[slot.positions(self.graph[group].size).to(sums.device)].sum(1)


def alive_positions(info: TensorInfo, dim: int, graph: NeuronGraph, alive: Alive) -> Tensor | None:
    """The positions of a dimension that no decided group dropped, int64 and sorted; None if all are there."""
    sizes = {group: graph[group].size for group in info.roles[dim] if group in alive}
    kept = {g: Pairs(torch.arange(len(alive[g])), alive[g], len(alive[g]), n) for g, n in sizes.items()}
    kept = {g: pairs for g, pairs in kept.items() if pairs.fused < pairs.member}
    if not kept:
        return None
    layout = info.layouts[dim]
    return axis_pairs(layout, resize_layout(layout, {g: pairs.fused for g, pairs in kept.items()}), kept).source


def power_sums(tensor: Tensor, dim: int, positions: Sequence[Tensor | None], power: int = 2) -> Tensor:
    """Sum |w|^power over all dimensions but `dim`, a block of rows at a time.

    Args:
        tensor: any shape; half precisions are summed in float32.
        dim: the dimension that stays.
        positions: for every dimension the positions that count, None for all; that of `dim` itself is not looked at.
        power: 1 or 2.

    Returns:
        Sums, shape `(tensor.shape[dim],)`.

    Example:
        >>> power_sums(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 0, [None, torch.tensor([0])], power=1)
        tensor([1., 3.])
    """
    tensor = tensor.abs() if tensor.is_complex() else tensor
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    rows = None if dim == 0 else positions[0]
    count = tensor.shape[0] if rows is None else len(rows)
    step = max(1, (BLOCK if dim == 0 else BLOCK // 16) // max(1, tensor.numel() // max(1, tensor.shape[0])))
    total = torch.zeros(tensor.shape[dim], dtype=dtype, device=tensor.device)
    others = [d for d in range(tensor.dim()) if d != dim]
    for start in range(0, count, step):
        stop = min(start + step, count)
        block = tensor[start:stop] if rows is None else tensor.index_select(0, rows[start:stop].to(tensor.device))
        for d in others:
            if d and (chosen := positions[d]) is not None:
                block = block.index_select(d, chosen.to(tensor.device))
        where = total[start:stop] if dim == 0 else total
        if dim == 0 and others:
            where += torch.linalg.vector_norm(block, power, others, dtype=dtype) ** power
        else:  # a norm down the columns is many times slower than its parts
            wide = block.to(dtype)
            fresh = wide if wide.data_ptr() != block.data_ptr() else torch.empty_like(wide)
            powers = torch.square(wide, out=fresh) if power == 2 else torch.abs(wide, out=fresh)
            where += powers.sum(others) if others else powers
    return total
