"""DELLA: drop entries of task vectors at random, small ones more likely."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from neurograft.errors import OptionError
from neurograft.operators.block import Block
from neurograft.operators.dare import draws
from neurograft.operators.settings import SHARE, EachSetting, Range, per_member
from neurograft.operators.task_vectors import Consensus, Rescale, TaskVectors, rescaled


@dataclass(frozen=True, kw_only=True)
class Della(TaskVectors):
    """Keep the entry of rank r in its row of n with probability p_r = p − ε + 2ε r / (n − 1), and divide it by p_r.

    Ranks count the magnitudes of a row's entries from the smallest, 0, to the largest, n − 1; of a vector all entries
    are one row. Random choices are those of `Dare`.

    Attributes:
        weights: one number per member; default the members' weights if these are given, else 1 each.
        density: p, the mean probability.
        epsilon: ε, how far probabilities lie from it at most; p ± ε lie between 0 and 1.
        consensus: "sum" and "count" elect signs as TIES does (the paper's); "none" adds up (DELLA-linear).
        rescale: "density" divides by p_r, as the paper; "norm" and "none" as for `Dare`.
        scale: λ.
        normalize: whether each entry is divided by the weights of the changes that are in it.

    Raises:
        OptionError: values out of range, or, when members are planned for, p ± ε that does not lie between 0 and 1.

    Source: Deep et al. 2024, arXiv:2406.11617, section 3 (MagPrune).
    """

    name: ClassVar[str] = "della"

    density: EachSetting = per_member(0.5, SHARE)
    epsilon: EachSetting = per_member(0.15, Range(0, 0.5))
    consensus: Consensus = "sum"
    rescale: Rescale = "density"
    normalize: bool = True

    @property
    def sees_whole(self) -> bool:
        """Whether a norm over all entries is needed."""
        return self.rescale == "norm"

    @property
    def election(self) -> Consensus:
        """How the sign of every entry is elected."""
        return self.consensus

    def check_block(self, block: Block) -> None:
        """Refuse probabilities that are none."""
        for density, epsilon in zip(block.values(self.density, 0.5), block.values(self.epsilon, 0.15), strict=True):
            if density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
                raise OptionError(
                    f"{block.name}: entries would be kept with probabilities from {density - epsilon:g} to "
                    f"{density + epsilon:g}; choose density and epsilon such that these lie between 0 and 1"
                )

    def sparsified(self, block: Block, member: int, change: Tensor) -> Tensor:
        """A random choice of entries, large ones more likely."""
        density, epsilon = block.values(self.density, 0.5)[member], block.values(self.epsilon, 0.15)[member]
        if density >= 1:
            return change
        rows = change.reshape(change.shape[0], -1) if change.dim() > 1 else change.reshape(1, -1)
        ranks = rows.abs().argsort(dim=1, stable=True).argsort(1).to(change.dtype)
        share = ranks / max(1, rows.shape[1] - 1)
        probability = (density - epsilon + 2 * epsilon * share).reshape(change.shape)
        kept = torch.where(draws(block, member, change) < probability, change, 0.0)
        return rescaled(change, kept, probability, self.rescale)
