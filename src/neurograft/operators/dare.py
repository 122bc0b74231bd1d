"""DARE: drop entries of task vectors at random, and rescale the rest."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from neurograft.operators.block import Block
from neurograft.operators.random_numbers import uniform
from neurograft.operators.settings import SHARE, EachSetting, per_member
from neurograft.operators.task_vectors import Consensus, Rescale, TaskVectors, rescaled


@dataclass(frozen=True, kw_only=True)
class Dare(TaskVectors):
    """Keep every entry of a task vector with probability p and divide it by p: W_base + λ Σ_m w_m (b_m ⊙ τ_m) / p_m.

    The expectation is that of task arithmetic. The choice depends on the plan's seed, the tensor's name, the member and
    the entry's place, so that streamed and in memory the same entries stay.

    Attributes:
        weights: one number per member; default the members' weights if these are given, else 1 each.
        density: p, how likely an entry is kept.
        consensus: "none" adds up (DARE-linear); "sum" and "count" elect signs as TIES does (DARE-TIES).
        rescale: "density" divides by p, as the paper; "norm" brings what is kept to the task vector's sum of
            magnitudes, as mergekit 0.1 does, which needs whole tensors; "none" leaves it.
        scale: λ.
        normalize: whether each entry is divided by the weights of the changes that are in it.

    Raises:
        OptionError: a density that is not above 0 and at most 1.

    Source: Yu et al. 2024, arXiv:2311.03099, section 3.2.
    """

    name: ClassVar[str] = "dare"

    density: EachSetting = per_member(0.5, SHARE)
    consensus: Consensus = "none"
    rescale: Rescale = "density"

    @property
    def sees_whole(self) -> bool:
        """Whether a norm over all entries is needed."""
        return self.rescale == "norm"

    @property
    def election(self) -> Consensus:
        """How the sign of every entry is elected."""
        return self.consensus

    def sparsified(self, block: Block, member: int, change: Tensor) -> Tensor:
        """A random choice of entries."""
        density = block.values(self.density, 0.5)[member]
        kept = change * (draws(block, member, change) < density)
        return rescaled(change, kept, density, self.rescale)


def draws(block: Block, member: int, change: Tensor) -> Tensor:
    """A number from 0 to 1 for every entry of a member's block."""
    key = f"{block.seed}/{member}/{block.name}"
    return uniform(change.shape, key, block.first_entry, change.device)
