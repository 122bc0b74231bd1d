"""SCE: select what varies, calculate coefficients, erase minorities."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from neurograft.operators.block import Block
from neurograft.operators.operator import Operator
from neurograft.operators.settings import SHARE, Setting, shared
from neurograft.operators.task_vectors import agreeing

SMALL = 1e-6
"""Where members have changed less than this, squared, they count the same."""


@dataclass(frozen=True, kw_only=True)
class Sce(Operator):
    """W_fused = W_base + Σ_m η_m τ_m / Σ_m η_m over the members m that have the sign of Σ_m τ_m, η_m = |τ_m|² / Σ |τ|².

    First only those entries stay in which the members' task vectors differ most, by their variance over the members.

    Attributes:
        density: the share of the entries with any variance that is selected; 1 selects all entries.

    Raises:
        OptionError: a density that is not above 0 and at most 1.

    Source: Wan et al. 2024, arXiv:2408.07990, section 3.3 (select, calculate, erase).
    """

    name: ClassVar[str] = "sce"
    whole: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True
    unweighted: ClassVar[bool] = True

    density: Setting = shared(1.0, SHARE)

    def combine(self, block: Block) -> Tensor:
        """The ancestor and what the members have changed, weighted by how much they have changed."""
        changes = torch.stack(block.changes)
        density = block.value(self.density, 1.0)
        if density < 1:
            changes = changes * _varying(changes.var(0, unbiased=False), density)
        sizes = changes.square().flatten(1).mean(1) if changes.dim() > 1 else changes.square()
        total = sizes.sum()
        shares = sizes / total if float(total) >= SMALL else torch.full_like(sizes, 1 / len(changes))
        weights = shares.reshape(-1, *(1,) * (changes.dim() - 1)) * agreeing(changes, "sum")
        return block.ancestor + (weights * changes).sum(0) / weights.sum(0).clamp_min(SMALL)


def _varying(variance: Tensor, density: float) -> Tensor:
    """Where the variance is largest, as a mask."""
    mask = torch.zeros_like(variance)
    count = int(torch.count_nonzero(variance) * density)
    mask.reshape(-1)[variance.reshape(-1).topk(count).indices] = 1
    return mask
