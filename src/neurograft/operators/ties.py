"""TIES: trim, elect signs, and merge what agrees."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from neurograft.operators.block import Block
from neurograft.operators.settings import SHARE, EachSetting, per_member
from neurograft.operators.task_vectors import Consensus, TaskVectors, kept_only


@dataclass(frozen=True, kw_only=True)
class Ties(TaskVectors):
    """Keep each task vector's largest entries, elect the sign of every entry, and average those that have it.

    W_fused = W_base + λ Σ_m w_m τ̂_m / Σ_m w_m, both sums over the members m whose w_m τ̂_m has the elected sign.
    Entries are trimmed tensor by tensor, as mergekit does; the paper trims the whole network at once.

    Attributes:
        weights: one number per member; default the members' weights if these are given, else 1 each.
        density: the share of a tensor's entries that is kept, the largest; at least one entry.
        consensus: the sign of the sum of weighted changes ("sum", the paper's), or that of the most ("count").
        scale: λ.
        normalize: whether entries are averaged or added up.

    Raises:
        OptionError: a density that is not above 0 and at most 1.

    Example:
        >>> import torch
        >>> members = [torch.tensor([3.0, 1.0, 0.5]), torch.tensor([1.0, -4.0, 0.0])]
        >>> Ties(density=0.7).combine(Block("w", members, (0.5, 0.5), base=torch.zeros(3)))
        tensor([ 2., -4.,  0.])

    Source: Yadav et al. 2023, arXiv:2306.01708, section 3.
    """

    name: ClassVar[str] = "ties"
    whole: ClassVar[bool] = True

    density: EachSetting = per_member(0.2, SHARE)
    consensus: Literal["sum", "count"] = "sum"
    normalize: bool = True

    @property
    def election(self) -> Consensus:
        """How the sign of every entry is elected."""
        return self.consensus

    def sparsified(self, block: Block, member: int, change: Tensor) -> Tensor:
        """The largest entries."""
        return trimmed(change, block.values(self.density, 0.2)[member])


def trimmed(change: Tensor, density: float) -> Tensor:
    """The largest entries of a tensor, at least one; all others 0."""
    if density >= 1 or not change.numel():
        return change
    count = max(1, int(density * change.numel()))
    largest = change.abs().reshape(-1).topk(count, sorted=False).indices
    return kept_only(change, largest, 0, count)
