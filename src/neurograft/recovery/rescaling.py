"""Give a layer's neurons a planned mean and standard deviation by changing its weight and bias alone."""

from dataclasses import dataclass, field
from math import nan

import torch
from torch import Tensor

from neurograft.recovery.layers import LayerUse
from neurograft.recovery.patches import matrix_of, weight_of
from neurograft.recovery.report import LayerRecovery
from neurograft.recovery.statistics import SILENT, Statistics
from neurograft.recovery.watching import Contraction, UseKey

NO_BIAS = "no bias: scale only"


@dataclass(eq=False)
class RescaleFit:
    """A layer that waits for its scale; `mean` and `deviation` are the planned ones, shape `(outputs,)`."""

    place: LayerUse
    mean: Tensor
    deviation: Tensor
    statistics: Statistics = field(default_factory=Statistics)
    before: float = nan
    after: float = nan
    grown: float = nan
    biased: bool = True

    @property
    def name(self) -> UseKey:
        """What it is called in the order of work."""
        return self.place.key

    def apply(self, contraction: Contraction) -> None:
        """W ← a·W and b ← a·(b − μ) + μ*, a = σ*/σ per neuron, where the op reads them; no bias, no shift."""
        assert self.statistics.mean is not None
        mean, deviation = self.statistics.mean, self.statistics.variance(unbiased=False).sqrt()
        wanted, spread = self.mean.to(mean), self.deviation.to(mean)
        alive = deviation > SILENT * deviation.max()
        factor = torch.where(alive, spread / torch.where(alive, deviation, torch.ones_like(deviation)), 1.0)
        matrix = matrix_of(contraction.weight.detach(), contraction.geometry).double()
        new = matrix * factor.reshape(matrix.shape[0], 1, -1)
        contraction.weight.copy_(weight_of(new, contraction.weight, contraction.geometry))
        shifted = factor * mean
        self.biased = contraction.bias is not None
        if contraction.bias is not None:
            contraction.bias.copy_(factor * contraction.bias + (wanted - shifted))
            shifted = wanted
        planned = torch.stack([wanted, spread])
        self.before = _relative(torch.stack([mean, deviation]) - planned, planned)
        self.after = _relative(torch.stack([shifted, factor * deviation]) - planned, planned)
        self.grown = float(new.norm() / matrix.norm()) if bool(matrix.any()) else nan

    def report(self) -> LayerRecovery:
        """What became of it."""
        name = self.place.key[0]
        if self.statistics.mean is None:
            return LayerRecovery(name, "statistics", note="the run on the samples did not reach it")
        note = "" if self.biased else NO_BIAS
        rows = self.statistics.count
        return LayerRecovery(name, "statistics", self.before, self.after, norm=self.grown, rows=rows, note=note)


def _relative(away: Tensor, size: Tensor) -> float:
    return float(away.norm() / size.norm().clamp_min(torch.finfo(size.dtype).tiny))
