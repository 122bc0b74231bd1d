"""How much each neuron matters: sums of squared weights over everything that makes or reads it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from neurograft.planning.members import State
from neurograft.planning.plan import made_by
from neurograft.tracing.graph import NeuronGraph, Slot, TensorInfo

Alive = Mapping[str, Tensor]
"""For each group already decided, the units that are still there: int64, sorted."""

CHUNK = 1 << 18  # entries squared at a time, so that the working copy stays in the cache


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
        return [self._slot_sum(slot, group, alive) for slot in self.slots(group)]

    def _slot_sum(self, slot: Slot, group: str, alive: Alive) -> Tensor:
        info = self.graph.tensors[slot.tensor]
        masks = [None if d == slot.dim else dim_mask(info, d, self.graph, alive) for d in range(len(info.shape))]
        sums = power_sums(self.state[slot.tensor], slot.dim, masks, self.power)
        if not made_by(info, self.moved):
            sums = sums * abs(self.scale) ** self.power
        return sums[slot.positions(self.graph[group].size).to(sums.device)].sum(1)


def dim_mask(info: TensorInfo, dim: int, graph: NeuronGraph, alive: Alive) -> Tensor | None:
    """1 where a position of the dimension is alive, 0 where a group that was decided dropped it; None if all are."""
    mask: Tensor | None = None
    for group in info.roles[dim]:
        if group not in alive or len(alive[group]) == graph[group].size:
            continue
        if mask is None:
            mask = torch.ones(info.shape[dim])
        dropped = torch.ones(graph[group].size, dtype=torch.bool)
        dropped[alive[group]] = False
        for slot in graph[group].slots:
            if slot.tensor == info.name and slot.dim == dim:
                mask[slot.positions(graph[group].size)[dropped].flatten()] = 0
    return mask


def power_sums(tensor: Tensor, dim: int, masks: list[Tensor | None], power: int = 2) -> Tensor:
    """Sum |w|^power over all dimensions but `dim`, masked positions left out; shape `(tensor.shape[dim],)`, float32.

    Example:
        >>> power_sums(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 0, [None, torch.tensor([1.0, 0.0])])
        tensor([1., 9.])
    """
    length = tensor.shape[0]
    step = max(1, CHUNK // max(1, tensor[0].numel() if length else 1))
    parts = []
    total: Tensor | None = None
    rows = masks[0]
    for start in range(0, length, step):
        stop = min(start + step, length)
        block = tensor[start:stop].float()
        block = block * block if power == 2 else block.abs()
        for d in range(tensor.dim() - 1, 0, -1):
            if d == dim:
                continue
            mask = masks[d]
            if mask is None:
                block = block.sum(d)
            else:
                block = (
                    torch.tensordot(block, mask.to(block), dims=([d], [0]))
                    if d == block.dim() - 1
                    else (block.movedim(d, -1) @ mask.to(block))
                )
        if dim == 0:
            parts.append(block)
        else:
            weight = torch.ones(stop - start, device=block.device) if rows is None else rows[start:stop].to(block)
            if rows is not None and not bool(weight.any()):
                continue
            reduced = torch.tensordot(weight, block, dims=([0], [0]))
            total = reduced if total is None else total.add_(reduced)
    if dim == 0:
        return torch.cat(parts)
    return total if total is not None else torch.zeros(tensor.shape[dim], device=tensor.device)
