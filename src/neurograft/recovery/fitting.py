"""One layer's regression: gather its rows while the fused network runs, solve, write the weights."""

import time
from dataclasses import dataclass
from math import inf, nan

import torch
from torch import Tensor

from neurograft.recovery.layers import LayerUse
from neurograft.recovery.patches import matrix_of, patches, weight_of
from neurograft.recovery.report import LayerRecovery
from neurograft.recovery.ridge import Regression, Solution
from neurograft.recovery.watching import Contraction, UseKey

BLOCK = 64 << 20
"""Bytes of patches held at a time, where there is room for a few times as much."""
LARGEST = 2.0
"""How much larger than the planned or the members' weights, whichever are larger, refitted weights may be."""


@dataclass(eq=False)
class Fit:
    """A layer that waits for its regression, with the rows it is to give (one tensor per batch).

    `block` are the bytes of patches it may hold at a time; while they are summed up there are four copies of them.
    """

    place: LayerUse
    targets: list[Tensor]
    ridge: float | None
    largest: float
    block: int = BLOCK
    regression: Regression | None = None
    solution: Solution | None = None
    grown: float = nan
    seconds: float = 0.0

    @property
    def name(self) -> UseKey:
        """What it is called in the order of work."""
        return self.place.key

    def add(self, contraction: Contraction, targets: Tensor, chosen: Tensor, groups: Tensor) -> None:
        """Add the rows of one batch, a block of samples at a time.

        Args:
            contraction: at hand, with its input.
            targets: planned rows, `(samples · positions, outputs)`.
            chosen: the positions they are of, `(samples, positions)`.
            groups: the group of every sample of the batch, `(samples of the batch,)`.
        """
        started = time.perf_counter()
        geometry, weight = contraction.geometry, _wide(contraction.weight)
        matrix = matrix_of(weight, geometry)
        g, inputs, outputs = matrix.shape
        bias = None if contraction.bias is None else _wide(contraction.bias).reshape(g, outputs)
        if self.regression is None:
            self.regression = Regression(
                g, inputs, outputs, bias is not None, weight.device, 10 * torch.finfo(weight.dtype).eps
            )
        x = _wide(contraction.input)
        n, positions = chosen.shape
        table = None if geometry is None else geometry.table(x.shape[2:]).to(x.device)
        rows = None if geometry is not None else x.reshape(n, -1, x.shape[1])
        chosen = chosen.to(x.device)
        group = groups.to(x.device)[torch.arange(n, device=x.device) * len(groups) // n]
        step = max(1, self.block // max(1, positions * g * inputs * x.element_size()))
        for start in range(0, n, step):
            part = slice(start, min(n, start + step))
            if rows is None:
                assert geometry is not None
                taken = patches(x[part], geometry, chosen[part], table)
            else:
                index = chosen[part, :, None].expand(-1, -1, inputs)
                taken = rows[part].gather(1, index).reshape(1, -1, inputs)
            wanted = targets[part.start * positions : part.stop * positions].to(taken)
            wanted = wanted.reshape(-1, g, outputs).transpose(0, 1)
            self.regression.add(taken, matrix, bias, wanted, group[part].repeat_interleave(positions))
        self.seconds += time.perf_counter() - started

    def solve(self, contraction: Contraction) -> bool:
        """Solve and write the new weights where the op reads them; whether anything changed."""
        started = time.perf_counter()
        assert self.regression is not None
        matrix = matrix_of(contraction.weight.detach(), contraction.geometry).double()
        before = float(matrix.norm())
        limit = LARGEST * max(before, self.largest)
        self.solution = self.regression.solve(self.ridge, lambda d: float((matrix + d[:, :-1]).norm()) <= limit)
        self.regression = None
        delta = self.solution.delta
        changed = bool(delta.any())
        if changed:
            new = matrix + delta[:, :-1]
            contraction.weight.copy_(weight_of(new, contraction.weight, contraction.geometry))
            if contraction.bias is not None:
                contraction.bias.copy_(contraction.bias + delta[:, -1].flatten())
            self.grown = float(new.norm()) / before if before else nan
        else:
            self.grown = 1.0
        self.seconds += time.perf_counter() - started
        return changed

    @property
    def changed(self) -> bool:
        """Whether the weights were changed."""
        return self.solution is not None and self.solution.ridge != inf

    def report(self) -> LayerRecovery:
        """What became of it."""
        place = self.place
        target = "stream" if place.stream else "layer"
        s = self.solution
        if s is None:
            return LayerRecovery(place.key[0], target, note="the run on the samples did not reach it")
        return LayerRecovery(place.key[0], target, s.before, s.after, s.ridge, self.grown, s.rows, self.seconds)


def _wide(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor.detach().float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.detach()
