"""Products of two networks' neurons, and how the neurons inside two units fit best."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Distance = Literal["euclidean", "squared", "cosine"]
GroupNames: TypeAlias = tuple[str, ...]
"""Groups inside units: which of their neurons a cell holds."""

MOST_PAIRS = 10_000  # pairs of units whose insides are matched one by one; above, the insides are taken as they lie
MOST_TURNS = 10  # of matching several groups inside a pair of units in turn


@dataclass(frozen=True, eq=False)
class Products:
    """Inner products of one group's neurons: `cross` (member, target), and the squared norms of both sides.

    Of a group that may be ordered differently in every unit of another, all three have the target's units in front. Of
    units, `cross` counts what lies inside them in the order that fits best, and `insides` are the products of that.
    """

    cross: Tensor
    member: Tensor
    target: Tensor
    insides: "Insides | None" = None

    def distances(self, distance: Distance) -> Tensor:
        """The cost of matching each member's neuron to each target neuron, shape `(member, target)`.

        "squared" is |x - y|², "euclidean" its root, "cosine" 1 - x·y / |x||y| (1 where a neuron has no weights).

        Example:
            >>> same = torch.eye(2)
            >>> Products(same, torch.ones(2), torch.ones(2)).distances("squared")
            tensor([[0., 2.],
                    [2., 0.]])
        """
        if distance == "cosine":
            lengths = self.member.sqrt()[..., :, None] * self.target.sqrt()[..., None, :]
            return 1 - self.cross / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
        squared = torch.mul(self.cross, -2).add_(self.member[..., :, None]).add_(self.target[..., None, :])
        return squared.clamp_min_(0) if distance == "squared" else squared.clamp_min_(0).sqrt_()


class Insides:
    """Products of what lies inside every unit of the member with what lies inside every unit of the target.

    Since |x - Py|² = |x|² + |y|² - 2 x·Py, the order P of the member's inside that gives the largest product gives the
    least distance.

    A group that may be rotated is matched by the rotation that gives the largest product instead of an order.

    Args:
        cells: for every combination of groups inside the units, shape `(member units, neurons of each group …, target
            units, neurons of each group …)`.
        rotating: the groups inside that may be rotated.
    """

    def __init__(self, cells: Mapping[GroupNames, Tensor], rotating: Container[str] = ()):
        self._rotating = frozenset(name for key in cells for name in key if name in rotating)
        self._cells = {}
        for key, products in cells.items():
            units, inner = (0, 1 + len(key)), [d for d in range(products.dim()) if d not in (0, 1 + len(key))]
            self._cells[key] = products.permute(*units, *inner).cpu().numpy()
        self.names = tuple(dict.fromkeys(name for key in cells for name in key))
        first = next(iter(self._cells.values()))
        self.shape = first.shape[0], first.shape[1]

    @cached_property
    def best(self) -> Tensor:
        """For every pair of units the largest product over all orders of their insides, shape `(member, target)`.

        With rotations it is the sum of singular values. One group inside is matched exactly, several in turn until that
        gains nothing.
        """
        member, target = self.shape
        if all(len(key) == 1 and key[0] in self._rotating for key in self._cells):
            values = [np.linalg.svd(c, compute_uv=False).sum(-1) for c in self._cells.values()]
            return torch.from_numpy(np.sum(values, axis=0)).double()
        found = torch.zeros(member, target, dtype=torch.double)
        for s in range(member):
            for t in range(target):
                blocks = self._blocks(s, t)
                orders = _fitted(blocks, self._rotating) if member * target <= MOST_PAIRS else _unmoved(blocks)
                found[s, t] = _value(blocks, orders)
        return found

    def orders(self, member: Tensor, target: Tensor) -> dict[str, Tensor]:
        """For pairs of units, `member[i]` and `target[i]`, the orders that fit best: group -> `(pairs, neurons)`.

        Of a group that may be rotated the rotations, `(pairs, target's neurons, member's neurons)`.
        """
        fitted = [
            _fitted(self._blocks(s, t), self._rotating) for s, t in zip(member.tolist(), target.tolist(), strict=True)
        ]
        return {name: torch.from_numpy(np.stack([found[name] for found in fitted])) for name in fitted[0]}

    def value(self, member: Tensor, target: Tensor, orders: Mapping[str, Tensor]) -> float:
        """The sum of the products of pairs of units, in the given orders."""
        pairs = enumerate(zip(member.tolist(), target.tolist(), strict=True))
        return sum(
            _value(self._blocks(s, t), {name: order[i].numpy() for name, order in orders.items()})
            for i, (s, t) in pairs
        )

    def _blocks(self, s: int, t: int) -> "UnitProducts":
        return {key: cells[s, t] for key, cells in self._cells.items()}


UnitProducts: TypeAlias = dict[GroupNames, NDArray[np.floating]]
"""Of one pair of units: products of shape `(member's neurons of each group …, target's neurons of each group …)`."""
Orders: TypeAlias = Mapping[str, NDArray[Any]]
"""Of one pair of units: of every group inside an order, or a rotation of shape `(target, member)`."""


def _names(blocks: UnitProducts) -> list[str]:
    # groups that some product contains by themselves come first
    names = dict.fromkeys(name for key in sorted(blocks, key=len) for name in key)
    return list(names)


def _unmoved(blocks: UnitProducts) -> dict[str, NDArray[np.integer]]:
    return {name: np.arange(cells.shape[key.index(name)]) for key, cells in blocks.items() for name in key}


def _fitted(blocks: UnitProducts, rotating: Container[str]) -> dict[str, NDArray[Any]]:
    """The order of every group inside: each on what the others' orders make of the products, until none changes."""
    orders: dict[str, NDArray[Any]] = {}
    for _ in range(MOST_TURNS if any(len(key) > 1 for key in blocks) else 1):
        before = dict(orders)
        for name in _names(blocks):
            facing = [_facing(cells, key, name, orders, rotating) for key, cells in blocks.items() if name in key]
            if name in rotating:
                left, _, right = np.linalg.svd(np.sum(facing, axis=0).astype(float))
                orders[name] = (left @ right).T
                continue
            rows, columns = linear_sum_assignment(np.sum(facing, axis=0), maximize=True)
            orders[name] = np.empty_like(rows)
            orders[name][columns] = rows
        if before.keys() == orders.keys() and all(np.allclose(before[name], orders[name]) for name in orders):
            break
    return orders


def _facing(
    cells: NDArray[np.floating], key: GroupNames, name: str, orders: Orders, rotating: Container[str] = ()
) -> NDArray[np.floating]:
    """The products of one group's neurons: over the others' as they are matched, or of their sums if they are not.

    Of others that may be rotated and are not matched yet, what their best rotation would make of them.
    """
    for p in reversed(range(len(key))):
        if key[p] == name:
            continue
        count = cells.ndim // 2
        if key[p] in orders and orders[key[p]].ndim == 2:
            cells = np.tensordot(np.moveaxis(cells, (p, count + p), (0, 1)), orders[key[p]].T, axes=([0, 1], [0, 1]))
        elif key[p] in orders:
            cells = np.trace(np.take(cells, orders[key[p]], axis=p), axis1=p, axis2=count + p)
        elif key[p] in rotating:
            cells = np.linalg.norm(np.moveaxis(cells, (p, count + p), (-2, -1)), "nuc", axis=(-2, -1))
        else:
            cells = cells.sum(axis=(p, count + p))
    return cells


def _value(blocks: UnitProducts, orders: Orders) -> float:
    return float(sum(_facing(cells, key, "", orders) for key, cells in blocks.items()))


class ProductSum:
    """Adds up products over tensors, of neurons (or units) and of what is distinguished inside them.

    Args:
        member: shape of the member's neurons: their number, behind that of the units if every unit has its own.
        target: the same of the target.
    """

    def __init__(self, member: Sequence[int], target: Sequence[int]):
        self._plain = Products(torch.zeros(*member, target[-1]), torch.zeros(*member), torch.zeros(*target))
        self._cells: dict[GroupNames, Tensor] = {}
        self._empty = True

    def add(self, key: GroupNames, own: Tensor, other: Tensor) -> None:
        """Add features of both sides, shape `(neurons, …, features)`; groups in `key` are the dimensions between."""
        own, other = self._widened(own), self._widened(other)
        plain = self._plain
        plain.member.add_(squared_norms(own).reshape(*plain.member.shape, -1).sum(-1))
        plain.target.add_(squared_norms(other).reshape(*plain.target.shape, -1).sum(-1))
        if key:
            cells = own.flatten(0, -2) @ other.flatten(0, -2).T
            self._cells[key] = cells.reshape(*own.shape[:-1], *other.shape[:-1]) + self._cells.get(key, 0)
        elif own.dim() == 2:
            plain.cross.addmm_(own, other.T)
        else:
            plain.cross.baddbmm_(own, other.mT)

    def _widened(self, features: Tensor) -> Tensor:
        dtype = torch.promote_types(features.dtype, self._plain.cross.dtype)
        if self._empty or dtype != self._plain.cross.dtype:
            cross, member, target = (x.to(features.device, dtype) for x in self._parts)
            self._plain = Products(cross, member, target)
        self._empty = False
        return features.to(dtype)

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._plain.cross, self._plain.member, self._plain.target

    def amount(self) -> float:
        """How much was added: the squared norms of all neurons of both sides."""
        return float(self._plain.member.double().sum() + self._plain.target.double().sum())

    def scaled(self, factor: float) -> "ProductSum":
        """The same sum, every product times a factor."""
        for part in (*self._parts, *self._cells.values()):
            part.mul_(factor)
        return self

    def plus(self, other: "ProductSum", scale: float) -> "ProductSum":
        """This sum, and another's as so many more features, scaled."""
        total = ProductSum(self._plain.member.shape, self._plain.target.shape)
        cross, member, target = (a + scale * b.to(a) for a, b in zip(self._parts, other._parts, strict=True))
        total._plain = Products(cross, member, target)
        total._cells = dict(self._cells)
        for key, cells in other._cells.items():
            total._cells[key] = scale * cells.to(total._plain.cross) + total._cells.get(key, 0)
        total._empty = self._empty and other._empty
        return total

    def products(self, rotating: Container[str] = ()) -> Products | None:
        """All that was added; None if nothing was. `rotating` are the groups inside that may be rotated."""
        if self._empty:
            return None
        if not self._cells:
            return self._plain
        insides = Insides(self._cells, rotating)
        cross, member, target = self._parts
        return Products(cross + insides.best.to(cross), member, target, insides)


def squared_norms(features: Tensor) -> Tensor:
    """|x|² of every row, without a squared copy."""
    lengths: Tensor = torch.linalg.vector_norm(features, dim=-1)
    return lengths.square()
