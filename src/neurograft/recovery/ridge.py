"""Ridge regression towards given weights, from Gram matrices that are summed up batch by batch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import TypeAlias

import torch
from torch import Tensor

from neurograft.least_squares import ridge_change

Allowed: TypeAlias = Callable[[Tensor], bool]
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FOLDS = 4
WORSE = 1.1
"""A held-out error so many times the least is on the far side of the valley."""
WIDE = 1024
"""Inputs above which one held-out fold decides, not each in turn."""


def bytes_for(groups: int, inputs: int, outputs: int) -> int:
    """What a regression needs at its peak, when a system is being factored.

    Per matrix 8 · groups · (inputs + 1) · (inputs + 1 + outputs) bytes; two folds and a factor of a wide layer, four
    folds, their sum, what each leaves and a factor of a narrow one.

    Example:
        >>> bytes_for(1, 4608, 512) // 2**20
        540
    """
    matrices = 3 if inputs > WIDE else 2 * FOLDS + 2
    return matrices * 8 * groups * (inputs + 1) * (inputs + 1 + outputs)


@dataclass(eq=False)
class Moments:
    """Sums over rows of one fold: XᵀX, XᵀR, |R|² and |T|², where X has a last column of ones.

    Shapes: `gram (groups, inputs + 1, inputs + 1)`, `cross (groups, inputs + 1, outputs)`; float64.
    """

    gram: Tensor
    cross: Tensor
    residual: Tensor
    target: Tensor
    rows: int = 0

    @classmethod
    def zeros(cls, groups: int, inputs: int, outputs: int, device: torch.device) -> "Moments":
        """Nothing summed up yet."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=device)

        return cls(zeros(inputs + 1, inputs + 1), zeros(inputs + 1, outputs), zeros(outputs), zeros(outputs))

    def add(self, x: Tensor, residual: Tensor, target: Tensor) -> None:
        """Add rows: x `(groups, rows, inputs + 1)`, residual and target `(groups, rows, outputs)`."""
        xt = x.transpose(1, 2)
        self.gram += xt @ x
        self.cross += xt @ residual
        self.residual += residual.double().square().sum(1)
        self.target += target.double().square().sum(1)
        self.rows += x.shape[1]

    def absorb(self, other: "Moments") -> None:
        """Add what another fold summed up."""
        self.gram += other.gram
        self.cross += other.cross
        self.residual += other.residual
        self.target += other.target
        self.rows += other.rows

    def error(self, delta: Tensor) -> float:
        """|R − X Δ|² for a change Δ of shape `(groups, inputs + 1, outputs)`."""
        fitted = (delta * (self.gram @ delta - 2 * self.cross)).sum()
        return max(float(self.residual.sum() + fitted), 0.0)


@dataclass(frozen=True, eq=False, slots=True)
class Solution:
    """The change of the weights that `solve` found.

    Attributes:
        delta: shape `(groups, inputs + 1, outputs)`; the last input is the bias, zero where there is none.
        ridge: the λ that was used; infinity where keeping the weights was best.
        before: relative error √(|R|²/|T|²) of the weights as they were.
        after: the same with the change.
        rows: how many rows it was found from.
    """

    delta: Tensor
    ridge: float
    before: float
    after: float
    rows: int


@dataclass(eq=False)
class Regression:
    """One layer's regression: rows go in, the ridge solution comes out.

    A relative error of at most `rounding` is none, and the weights are kept.

    min over Δ of |R − X Δ|² + λ·mean(diag XᵀX)·|Δ|², R = T − X W₀; the solution is W₀ + Δ. It is solved once: that
    puts the folds together where the first of them lies, for they may be what takes most of the memory.
    """

    groups: int
    inputs: int
    outputs: int
    bias: bool
    device: torch.device
    rounding: float = 0.0
    folds: list[Moments] = field(init=False)

    def __post_init__(self) -> None:
        count = FOLDS if self.inputs <= WIDE else 2
        self.folds = [Moments.zeros(self.groups, self.inputs, self.outputs, self.device) for _ in range(count)]

    def add(self, x: Tensor, weights: Tensor, bias: Tensor | None, target: Tensor, groups: Tensor) -> None:
        """Add rows.

        Args:
            x: inputs, shape `(groups, rows, inputs)`.
            weights: the planned matrix W₀, shape `(groups, inputs, outputs)`.
            bias: the planned bias, shape `(groups, outputs)`, or None.
            target: what the layer should give, shape `(groups, rows, outputs)`.
            groups: what each row is of, shape `(rows,)`: the calibration sample, or what several samples have in
                common; rows of one group share a fold.
        """
        now = x @ weights
        if bias is not None:
            now = now + bias[:, None]
        residual = target - now
        x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2)
        last = len(self.folds) - 1
        # two folds: a quarter is held out; more: every group is held out once
        fold = groups % FOLDS if last > 1 else (groups % FOLDS).clamp(max=1)
        for number, moments in enumerate(self.folds):
            chosen = fold == number
            if bool(chosen.all()):
                moments.add(x, residual, target)
            elif bool(chosen.any()):
                moments.add(x[:, chosen], residual[:, chosen], target[:, chosen])

    def solve(self, ridge: float | None = None, allowed: Allowed | None = None) -> Solution:
        """The change of the weights, with the given λ or the largest that is as good as the best on held-out samples.

        Args:
            ridge: λ, None to choose it.
            allowed: which changes may be made, beside being good.
        """
        before = _relative(
            sum(float(fold.residual.sum()) for fold in self.folds), sum(float(fold.target.sum()) for fold in self.folds)
        )
        candidates = [] if before <= self.rounding else [ridge] if ridge is not None else self._ranked()
        total = self.folds[0]
        while len(self.folds) > 1:
            total.absorb(self.folds.pop())
        for candidate in candidates:
            delta = self._change(total, candidate)
            if delta is None or (allowed is not None and ridge is None and not allowed(delta)):
                continue
            after = _relative(total.error(delta), float(total.target.sum()))
            if after <= before:
                return Solution(delta, candidate, before, after, total.rows)
        return Solution(torch.zeros_like(total.cross), inf, before, before, total.rows)

    def _ranked(self) -> list[float]:
        """The λ to try, best first: the largest within one per cent of the least held-out error, then larger ones.

        From the largest λ down the error falls and rises again, so the first that is clearly worse is the last tried.
        """
        pairs = list(self._pairs())
        held = {inf: sum(float(fold.residual.sum()) for _, fold in pairs)}
        for candidate in reversed(RIDGES) if pairs else ():
            error = 0.0
            for rest, fold in pairs:
                delta = self._change(rest, candidate)
                error = inf if delta is None else error + fold.error(delta)
            held[candidate] = error
            if error > WORSE * min(held.values()):
                break
        least = min(held.values())
        best = max(candidate for candidate, error in held.items() if error <= 1.01 * least)
        return [candidate for candidate in RIDGES if candidate >= best]

    def _pairs(self) -> Iterator[tuple[Moments, Moments]]:
        """Rows to solve from and rows held out: of two folds the second and the first, of more each in turn."""
        if len(self.folds) == 2:
            held, rest = self.folds
            if held.rows and rest.rows:
                yield rest, held
            return
        total = Moments.zeros(self.groups, self.inputs, self.outputs, self.device)
        for fold in self.folds:
            total.absorb(fold)
        for fold in self.folds:
            if fold.rows and fold.rows != total.rows:
                rest = Moments(total.gram - fold.gram, total.cross - fold.cross, fold.residual, fold.target)
                yield rest, fold

    def _change(self, moments: Moments, ridge: float) -> Tensor | None:
        """Δ = (XᵀX + λ·mean(diag XᵀX)·I)⁻¹ XᵀR; without an inverse the smallest for λ = 0, else None."""
        if ridge == inf:
            return torch.zeros_like(moments.cross)
        size = self.inputs + 1 if self.bias else self.inputs
        gram, cross = moments.gram[:, :size, :size], moments.cross[:, :size]
        found = ridge_change(gram, cross, ridge)
        if found is None:
            return None
        delta = torch.zeros_like(moments.cross)
        delta[:, :size] = found
        return delta


def _relative(error: float, size: float) -> float:
    if size == 0:
        return 0.0 if error == 0 else inf
    return float((error / size) ** 0.5)
