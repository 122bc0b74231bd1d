"""Task arithmetic: the sum of task vectors on top of the ancestor."""

from dataclasses import dataclass
from typing import ClassVar

from neurograft.operators.task_vectors import TaskVectors


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(TaskVectors):
    """W_fused = W_base + λ Σ_m w_m (W_m − W_base).

    Attributes:
        weights: one number per member, of any sign (a negative one takes a skill away); default the members' weights if
            these are given, else 1 each.
        scale: λ.
        normalize: whether the sum is divided by Σ_m w_m.

    Example:
        >>> import torch
        >>> from neurograft.operators.block import Block
        >>> block = Block("w", [torch.tensor([2.0]), torch.tensor([1.5])], (0.5, 0.5), base=torch.tensor([1.0]))
        >>> TaskArithmetic(scale=0.5).combine(block)
        tensor([1.7500])

    Source: Ilharco et al. 2023, arXiv:2212.04089, section 2.
    """

    name: ClassVar[str] = "task_arithmetic"
