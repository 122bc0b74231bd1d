"""Operators on task vectors: what members have changed since their common ancestor, made sparse, elected, added up."""

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from neurograft.operators.block import Block
from neurograft.operators.operator import Operator, weighted_sum
from neurograft.operators.settings import EachSetting, Setting, per_member, shared

Consensus: TypeAlias = Literal["none", "sum", "count"]
"""Whether changes against the elected sign of an entry are dropped; it is the sign of their sum, or of the most."""

Rescale: TypeAlias = Literal["density", "norm", "none"]
"""What is done to the entries that a random choice kept: divided by how likely they were kept, brought to the tensor's
sum of magnitudes, or nothing."""


@dataclass(frozen=True, kw_only=True)
class TaskVectors(Operator, ABC):
    """W_fused = W_base + λ Σ_m w_m sparsified(τ_m), τ_m = W_m − W_base, where signs of entries may be elected first.

    Attributes:
        weights: one number per member, of any sign; default the members' weights if these are given, else 1 each.
        scale: λ.
        normalize: whether each entry is divided by the weights of the changes that are in it.
    """

    needs_base: ClassVar[bool] = True

    weights: EachSetting | None = per_member(None)
    scale: Setting = shared(1.0)
    normalize: bool = False

    @property
    def election(self) -> Consensus:
        """How the sign of every entry is elected."""
        return "none"

    def sparsified(self, _block: Block, _member: int, change: Tensor) -> Tensor:
        """What is kept of a member's task vector."""
        return change

    def combine(self, block: Block) -> Tensor:
        """The ancestor and the merged task vectors."""
        weights = block.values(self.weights, 1.0)
        changes = [self.sparsified(block, m, change) for m, change in enumerate(block.changes)]
        merged = merged_changes(changes, weights, self.election, self.normalize)
        return block.ancestor + block.value(self.scale, 1.0) * merged


def merged_changes(
    changes: Sequence[Tensor], weights: Sequence[float], consensus: Consensus, normalize: bool
) -> Tensor:
    """Σ_m w_m τ_m over the members whose weighted change has the elected sign, or over all.

    A tie is elected as positive. Normalised, each entry is divided by the sum of these members' weights where that is
    not 0.

    Source: Yadav et al. 2023, arXiv:2306.01708, section 3 (elect sign, disjoint merge).
    """
    if consensus == "none":
        total = sum(weights)
        merged = weighted_sum(changes, weights)
        return merged / total if normalize and abs(total) >= 1e-8 else merged
    weighted = torch.stack([change * weight for change, weight in zip(changes, weights, strict=True)])
    kept = agreeing(weighted, consensus)
    merged = (weighted * kept).sum(0)
    if not normalize:
        return merged
    column = torch.tensor(weights, dtype=weighted.dtype, device=weighted.device)
    divisor = (kept * column.reshape(-1, *(1,) * (weighted.dim() - 1))).sum(0)
    return merged / torch.where(divisor == 0, 1.0, divisor)


def agreeing(changes: Tensor, consensus: Consensus) -> Tensor:
    """Where members' changes, shape `(members, …)`, have the elected sign; a tie is elected as positive."""
    votes = changes.sum(0) if consensus == "sum" else changes.sign().sum(0)
    return changes.sign() == torch.where(votes >= 0, 1.0, -1.0).to(changes)


def kept_only(change: Tensor, order: Tensor, start: int, stop: int) -> Tensor:
    """The entries at places `start` to `stop` of an order, all others 0."""
    kept = torch.zeros_like(change).reshape(-1)
    chosen = order[start:stop]
    kept[chosen] = change.reshape(-1)[chosen]
    return kept.reshape(change.shape)


def rescaled(change: Tensor, kept: Tensor, probability: Tensor | float, rescale: Rescale) -> Tensor:
    """A random choice of entries, such that its expectation or its size is that of the whole.

    Args:
        change: all entries.
        kept: the chosen ones, all others 0.
        probability: how likely each was chosen.
        rescale: by what.
    """
    if rescale == "density":
        return kept / probability
    if rescale == "none":
        return kept
    before, after = change.abs().sum(), kept.abs().sum()
    return kept * torch.where(after > 0, before / after, 1.0)
