"""How one member's neurons of one group enter the fused neurons: the matrices A (merge) and B (unmerge)."""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from neurograft.errors import PlanError


@dataclass(frozen=True, eq=False, slots=True)
class Pairs:
    """A sparse mixing matrix M of shape `(fused, member)`: M[target[i], source[i]] = weight[i].

    `target` and `source` have shape `(pairs,)`, int64; `weight` has the same shape, or is None where every
    entry is 1. Selections, permutations and clusters are stored like this; no matrix is ever built.

    Example:
        >>> Pairs(torch.tensor([0, 1]), torch.tensor([2, 0]), 2, 3).dense()
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """

    target: Tensor
    source: Tensor
    fused: int
    member: int
    weight: Tensor | None = None

    def dense(self) -> Tensor:
        """The matrix itself, shape `(fused, member)`, for printing and tests."""
        matrix = torch.zeros(self.fused, self.member, dtype=torch.float32 if self.weight is None else self.weight.dtype)
        values = torch.ones(len(self.target)) if self.weight is None else self.weight
        return matrix.index_put((self.target, self.source), values, accumulate=True)


Mixing: TypeAlias = Pairs | Tensor


def mixing_shape(mixing: Mixing) -> tuple[int, int]:
    """Shape `(fused, member)` of a mixing matrix in either form."""
    if isinstance(mixing, Pairs):
        return mixing.fused, mixing.member
    return mixing.shape[0], mixing.shape[1]


@dataclass(frozen=True, eq=False, slots=True)
class NeuronMap:
    """The two matrices a method fills in for one member and one group.

    `merge` is A, shape `(fused, member)`: how fused neurons are made. `unmerge` is the transpose of B, so it
    too has shape `(fused, member)`: how a reader of the member's neurons reads the fused ones.
    """

    merge: Mixing
    unmerge: Mixing

    def __post_init__(self) -> None:
        if mixing_shape(self.merge) != mixing_shape(self.unmerge):
            raise PlanError(
                f"merge has shape {mixing_shape(self.merge)} but unmerge {mixing_shape(self.unmerge)}; "
                "both are (fused, member)"
            )

    @property
    def fused(self) -> int:
        """Number of fused neurons."""
        return mixing_shape(self.merge)[0]

    @property
    def member(self) -> int:
        """Number of the member's neurons."""
        return mixing_shape(self.merge)[1]

    @classmethod
    def selection(cls, target: Tensor, source: Tensor, fused: int, member: int) -> "NeuronMap":
        """Fused neuron `target[i]` is the member's neuron `source[i]`; A = S, B = Sᵀ."""
        pairs = Pairs(target, source, fused, member)
        return cls(pairs, pairs)

    @classmethod
    def permutation(cls, order: Tensor) -> "NeuronMap":
        """Fused neuron i is the member's neuron `order[i]`; A = P, B = Pᵀ.

        Example:
            >>> NeuronMap.permutation(torch.tensor([1, 0])).merge.dense()
            tensor([[0., 1.],
                    [1., 0.]])
        """
        return cls.selection(torch.arange(len(order)), order, len(order), len(order))


def kept_share(maps: tuple[NeuronMap, ...]) -> tuple[float, ...]:
    """The share of the fused neurons' mass that each member supplies; sums to 1."""
    mass = []
    for m in maps:
        if isinstance(m.merge, Pairs):
            mass.append(float(len(m.merge.target) if m.merge.weight is None else m.merge.weight.sum()))
        else:
            mass.append(float(m.merge.sum()))
    total = sum(mass)
    return tuple(x / total for x in mass)
