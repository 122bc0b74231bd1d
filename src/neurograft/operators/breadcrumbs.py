"""Model breadcrumbs: task vectors without their smallest entries and without their outliers."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from neurograft.operators.block import Block
from neurograft.operators.settings import SHARE, EachSetting, Range, per_member
from neurograft.operators.task_vectors import Consensus, TaskVectors, kept_only


@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(TaskVectors):
    """W_fused = W_base + λ Σ_m w_m τ̂_m, where τ̂_m lacks the share γ of the largest entries and then the smallest.

    Of a tensor's n entries, sorted by magnitude, those from n − d − g to n − g stay, d = ⌊density·n⌋, g = ⌊γ·n⌋; where
    density and γ are more than 1 together, the smallest d.

    Attributes:
        weights: one number per member; default the members' weights if these are given, else 1 each.
        density: the share of entries that is kept.
        gamma: γ, the share of the largest entries that is dropped first.
        consensus: "none" adds up; "sum" and "count" elect signs as TIES does (breadcrumbs-TIES).
        scale: λ.
        normalize: whether each entry is divided by the weights of the changes that are in it.

    Raises:
        OptionError: values out of range.

    Example:
        >>> import torch
        >>> block = Block("w", [torch.tensor([9.0, 1.0, 2.0, 3.0])], (1.0,), base=torch.zeros(4))
        >>> Breadcrumbs(density=0.5, gamma=0.25).combine(block)
        tensor([0., 0., 2., 3.])

    Source: Davari & Belilovsky 2023, arXiv:2312.06795, section 3; with both shares as mergekit counts them.
    """

    name: ClassVar[str] = "breadcrumbs"
    whole: ClassVar[bool] = True

    density: EachSetting = per_member(0.9, SHARE)
    gamma: EachSetting = per_member(0.01, Range(0, 1))
    consensus: Consensus = "none"

    @property
    def election(self) -> Consensus:
        """How the sign of every entry is elected."""
        return self.consensus

    def sparsified(self, block: Block, member: int, change: Tensor) -> Tensor:
        """The entries of middle size."""
        density, gamma = block.values(self.density, 0.9)[member], block.values(self.gamma, 0.01)[member]
        if density >= 1:
            return change
        count = change.numel()
        kept, outliers = int(density * count), int(gamma * count)
        start = max(0, count - kept - outliers)
        return kept_only(change, change.abs().reshape(-1).argsort(stable=True), start, start + kept)
