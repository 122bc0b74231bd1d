"""How one member's neurons of one group enter the fused neurons: the matrices A (merge) and B (unmerge)."""

from collections.abc import Sequence
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

    @classmethod
    def permutation(cls, order: Tensor) -> "Pairs":
        """Fused neuron i is the member's neuron `order[i]`."""
        return cls(torch.arange(len(order)), order, len(order), len(order))

    def dense(self) -> Tensor:
        """The matrix itself, shape `(fused, member)`, for printing and tests."""
        matrix = torch.zeros(self.fused, self.member, dtype=torch.float32 if self.weight is None else self.weight.dtype)
        values = torch.ones(len(self.target)) if self.weight is None else self.weight
        return matrix.index_put((self.target, self.source), values, accumulate=True)

    def by_target(self) -> "Pairs":
        """The same matrix, its pairs in the order of their targets."""
        if bool((self.target[1:] >= self.target[:-1]).all()):
            return self
        order = self.target.argsort(stable=True)
        weight = None if self.weight is None else self.weight[order]
        return Pairs(self.target[order], self.source[order], self.fused, self.member, weight)


@dataclass(frozen=True, eq=False, slots=True)
class PerUnit:
    """A matrix of its own in every unit of the group `outer` that holds the neurons (the channels of each head).

    full[(t, i), (s, j)] = outer[t, s] · inner[s][i, j]: the member's unit s decides which one acts, whatever the matrix
    of the outer group is. `inner` is dense, shape `(units, fused, member)`, or sparse: `Pairs` whose `target`, `source`
    and `weight` have shape `(units, pairs)`, as many pairs in every unit.

    Example:
        >>> two = PerUnit.permutations("heads", torch.tensor([[0, 1], [1, 0]]))
        >>> two.units, two.unit(1).dense()
        (2, tensor([[0., 1.],
                [1., 0.]]))
    """

    outer: str
    inner: Pairs | Tensor

    @classmethod
    def permutations(cls, outer: str, orders: Tensor) -> "PerUnit":
        """In the member's unit s, fused neuron i is its neuron `orders[s, i]`; shape `(units, neurons)`."""
        n = orders.shape[1]
        return cls(outer, Pairs(torch.arange(n).expand_as(orders).contiguous(), orders, n, n))

    @classmethod
    def stacked(cls, outer: str, units: Sequence["Pairs | Tensor"]) -> "PerUnit":
        """One matrix after the other; dense where they are not all sparse with as many pairs."""
        pairs = [unit for unit in units if isinstance(unit, Pairs)]
        if len(pairs) < len(units) or len({len(p.target) for p in pairs}) > 1:
            return cls(outer, torch.stack([u.dense() if isinstance(u, Pairs) else u for u in units]))
        weight = None
        if any(p.weight is not None for p in pairs):
            weight = torch.stack([torch.ones(len(p.target)) if p.weight is None else p.weight for p in pairs])
        target, source = (torch.stack([getattr(p, name) for p in pairs]) for name in ("target", "source"))
        return cls(outer, Pairs(target, source, pairs[0].fused, pairs[0].member, weight))

    @property
    def units(self) -> int:
        """Number of the member's units."""
        return len(self.inner.target if isinstance(self.inner, Pairs) else self.inner)

    def unit(self, s: int) -> Pairs | Tensor:
        """The matrix that acts inside the member's unit s, shape `(fused, member)`."""
        if isinstance(self.inner, Tensor):
            return self.inner[s]
        own, weight = self.inner, None if self.inner.weight is None else self.inner.weight[s]
        return Pairs(own.target[s], own.source[s], own.fused, own.member, weight)


Plain: TypeAlias = Pairs | Tensor
"""One matrix for all units."""
Mixing: TypeAlias = Pairs | Tensor | PerUnit


def mixing_shape(mixing: Mixing) -> tuple[int, int]:
    """Shape `(fused, member)` of a mixing matrix in any form; of one that varies, within a unit."""
    inner = mixing.inner if isinstance(mixing, PerUnit) else mixing
    if isinstance(inner, Pairs):
        return inner.fused, inner.member
    return inner.shape[-2], inner.shape[-1]


@dataclass(frozen=True, eq=False, slots=True)
class NeuronMap:
    """The two matrices a method fills in for one member and one group.

    `merge` is A, shape `(fused, member)`: how fused neurons are made. `unmerge` is the transpose of B, so it
    too has shape `(fused, member)`: how a reader of the member's neurons reads the fused ones. Both may vary from unit
    to unit of another group (`PerUnit`).
    """

    merge: Mixing
    unmerge: Mixing

    def __post_init__(self) -> None:
        if mixing_shape(self.merge) != mixing_shape(self.unmerge):
            raise PlanError(
                f"merge has shape {mixing_shape(self.merge)} but unmerge {mixing_shape(self.unmerge)}; "
                "both are (fused, member)"
            )
        if _units(self.merge) != _units(self.unmerge):
            raise PlanError(f"merge has matrices for {_units(self.merge)}, unmerge for {_units(self.unmerge)}")

    @property
    def fused(self) -> int:
        """Number of fused neurons, within a unit if the map varies."""
        return mixing_shape(self.merge)[0]

    @property
    def member(self) -> int:
        """Number of the member's neurons, within a unit if the map varies."""
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
        pairs = Pairs.permutation(order)
        return cls(pairs, pairs)

    @classmethod
    def permutations(cls, outer: str, orders: Tensor) -> "NeuronMap":
        """In the member's unit s of `outer`, fused neuron i is its neuron `orders[s, i]`; shape `(units, neurons)`."""
        per_unit = PerUnit.permutations(outer, orders)
        return cls(per_unit, per_unit)


def _units(mixing: Mixing) -> tuple[str, int] | None:
    return (mixing.outer, mixing.units) if isinstance(mixing, PerUnit) else None


def kept_share(maps: tuple[NeuronMap, ...], outer: tuple[NeuronMap, ...] | None = None) -> tuple[float, ...]:
    """The share of the fused neurons' mass that each member supplies; sums to 1.

    The mass of a matrix is the sum of its entries, of their squares where some are negative (signs, rotations).

    `outer` are the maps of the group in whose units the neurons lie, where maps vary with these and these move.
    """
    mass = []
    for m, own in enumerate(maps):
        merge = own.merge
        each = [merge.unit(s) for s in range(merge.units)] if isinstance(merge, PerUnit) else [merge]
        inside = torch.tensor([float(_masses(unit).sum()) for unit in each], dtype=torch.double)
        around = None if outer is None else outer[m].merge
        assert not isinstance(around, PerUnit)
        mass.append(float(inside.mean() if around is None else (_columns(around) * inside).sum()))
    total = sum(mass)
    return tuple(x / total for x in mass)


def has_negative(mixing: Mixing) -> bool:
    """Whether an entry is below 0, as in rotations and changes of sign, whose fused neurons are no mean of any."""
    inner = mixing.inner if isinstance(mixing, PerUnit) else mixing
    return bool((_entries(inner) < 0).any())


def row_sums(mixing: Mixing) -> Tensor:
    """What every fused neuron is made of in all, A·1, shape `(fused,)`, float32.

    Example:
        >>> row_sums(Pairs(torch.tensor([0, 0]), torch.tensor([2, 0]), 2, 3))
        tensor([2., 0.])
    """
    assert not isinstance(mixing, PerUnit)
    if isinstance(mixing, Tensor):
        return mixing.sum(1).float()
    return torch.zeros(mixing.fused).index_add_(0, mixing.target, _entries(mixing).float())


def _entries(mixing: Plain) -> Tensor:
    if isinstance(mixing, Tensor):
        return mixing
    return torch.ones(len(mixing.target)) if mixing.weight is None else mixing.weight


def _masses(mixing: Plain) -> Tensor:
    entries = _entries(mixing)
    return entries.square() if has_negative(mixing) else entries


def _columns(mixing: Plain) -> Tensor:
    # what every neuron of the member gives in all
    if isinstance(mixing, Tensor):
        return _masses(mixing).sum(0).float()
    return torch.zeros(mixing.member).index_add_(0, mixing.source, _masses(mixing).float())
