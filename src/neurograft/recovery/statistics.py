"""Exact means and variances of what BatchNorms read, and putting them in place."""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from neurograft.errors import InputError
from neurograft.inputs import device_of, to_device
from neurograft.recovery.samples import Samples
from neurograft.recovery.watching import Norm, Watcher, run, shown
from neurograft.tracing.graph import NeuronGraph

SILENT = 1e-6
"""A neuron whose standard deviation is below this share of the layer's largest has no scale to repair."""
BLOCK = 1 << 18
"""Entries that statistics are made of at a time: in float64 they stay in the processor's cache."""


@dataclass(eq=False)
class Statistics:
    """Mean and variance per channel, pooled exactly over batches of any size; float64."""

    count: int = 0
    mean: Tensor | None = None
    squares: Tensor | None = None

    def add(self, inputs: Tensor) -> None:
        """Add all entries of a batch; channels are dimension 1."""
        entries = inputs.numel() // max(1, inputs.shape[0])
        for block in torch.split(inputs, max(1, BLOCK // max(1, entries))):
            self._add(block.double().flatten(2) if block.dim() > 2 else block.double()[..., None])

    def _add(self, block: Tensor) -> None:
        n = block.shape[0] * block.shape[2]
        mean = block.mean(2).mean(0)
        squares = (block - mean[:, None]).square_().sum(2).sum(0)
        if self.mean is None or self.squares is None:
            self.count, self.mean, self.squares = n, mean, squares
            return
        total = self.count + n
        away = mean - self.mean
        self.mean = self.mean + away * (n / total)
        self.squares = self.squares + squares + away.square() * (self.count * n / total)
        self.count = total

    def variance(self, *, unbiased: bool = True) -> Tensor:
        """Per channel; of a single entry it is zero."""
        assert self.squares is not None
        return self.squares / max(1, self.count - 1 if unbiased else self.count)


@dataclass(frozen=True, eq=False, slots=True)
class PlannedNorm:
    """What the members planned for a BatchNorm, shape `(channels,)` each, float64.

    `mean` and `deviation` are the mixed ones of what the members' BatchNorms read on the calibration samples,
    `running_mean` and `running_deviation` those their running statistics hold.
    """

    mean: Tensor
    deviation: Tensor
    running_mean: Tensor
    running_deviation: Tensor

    def __add__(self, other: "PlannedNorm") -> "PlannedNorm":
        return PlannedNorm(
            self.mean + other.mean.to(self.mean),
            self.deviation + other.deviation.to(self.mean),
            self.running_mean + other.running_mean.to(self.mean),
            self.running_deviation + other.running_deviation.to(self.mean),
        )


@dataclass(eq=False)
class NormFit:
    """A BatchNorm that waits for the statistics of what it reads.

    With `planned` it is set so that what it gives has the mean and deviation that the members' BatchNorms give on the
    same samples (so few samples do little harm, and a copy of a member stays that member); without, exactly to them.
    """

    name: str
    planned: PlannedNorm | None = None
    statistics: Statistics = field(default_factory=Statistics)

    def write(self, norm: Norm) -> None:
        """Put the running statistics in place."""
        check_statistics(self.statistics, shown(self.name))
        assert self.statistics.mean is not None
        mean, variance = self.statistics.mean, self.statistics.variance(unbiased=False)
        if self.planned is None:
            norm.mean.copy_(mean)
            norm.variance.copy_(self.statistics.variance())
            return
        plan = self.planned
        silent = plan.deviation <= SILENT * plan.deviation.max()
        growth = torch.where(silent, 1.0, variance.sqrt() / torch.where(silent, 1.0, plan.deviation))
        deviation = growth * plan.running_deviation
        norm.mean.copy_(mean - growth * (plan.mean - plan.running_mean))
        norm.variance.copy_((deviation.square() - norm.eps).clamp_min(0))


def running_statistics(norm: Norm) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation that a BatchNorm normalises by, float64, as copies."""
    return norm.mean.to(torch.float64, copy=True), (norm.variance.double() + norm.eps).sqrt()


def read_statistics(
    model: nn.Module, graph: NeuronGraph, samples: Samples, names: Collection[str], who: str = ""
) -> dict[str, tuple[Norm, Statistics]]:
    """What the named BatchNorms read on the samples, pooled, beside the norms themselves; `who` is for errors."""
    found: dict[str, tuple[Norm, Statistics]] = {}

    def add(norm: Norm) -> None:
        if norm.name in names:
            statistics = found[norm.name][1] if norm.name in found else Statistics()
            statistics.add(norm.input)
            found[norm.name] = norm, statistics

    device = device_of(model)
    for number, batch in enumerate(samples.batches):
        run(model, graph, to_device(batch, device), Watcher(norm=add), what=f"batches[{number}]{who}")
    return found


def settle_statistics(model: nn.Module, graph: NeuronGraph, samples: Samples, names: Collection[str]) -> int:
    """Make the named BatchNorms' statistics those of what they read, in place, without changing what they compute.

    Scale and shift take up the change, γ' = γ σ'/σ and β' = β + γ (μ' − μ)/σ; a BatchNorm without them stays as it is.

    Returns:
        How many passes over the samples it took.
    """
    if not names:
        return 0
    found = read_statistics(model, graph, samples, names)
    with torch.no_grad():
        for name, (norm, statistics) in found.items():
            if norm.scale is None or norm.shift is None:
                continue
            centre, before = running_statistics(norm)
            NormFit(name, None, statistics).write(norm)
            mean, after = running_statistics(norm)
            scale = norm.scale.double()
            norm.shift.copy_(norm.shift + scale * (mean - centre) / before)
            norm.scale.copy_(scale * after / before)
    return 1


def check_statistics(statistics: Statistics, name: str) -> None:
    """Refuse NaN and infinite activations.

    Raises:
        InputError: names the BatchNorm.
    """
    assert statistics.mean is not None
    if not bool(torch.isfinite(statistics.mean).all()):
        raise InputError(f"the BatchNorm {name} reads NaN or infinite activations on the calibration samples")
