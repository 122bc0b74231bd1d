"""Exact means and variances of what BatchNorms read, and putting them in place."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from neurograft.calibrating.samples import Samples
from neurograft.calibrating.watching import Norm, Watcher, run
from neurograft.errors import InputError


@dataclass(eq=False)
class Statistics:
    """Mean and variance per channel, pooled exactly over batches of any size; float64."""

    count: int = 0
    mean: Tensor | None = None
    squares: Tensor | None = None

    def add(self, inputs: Tensor) -> None:
        """Add all entries of a batch; channels are dimension 1."""
        rows = inputs.double().transpose(0, 1).flatten(1)
        n = rows.shape[1]
        mean = rows.mean(1)
        squares = (rows - mean[:, None]).square().sum(1)
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

    def write(self, mean: Tensor, variance: Tensor) -> None:
        """Put both in place; BatchNorm keeps the unbiased variance."""
        assert self.mean is not None
        mean.copy_(self.mean)
        variance.copy_(self.variance())


@dataclass(eq=False)
class NormFit:
    """A BatchNorm that waits for the statistics of what it reads."""

    name: str
    statistics: Statistics = field(default_factory=Statistics)


class _Reader(Watcher):  # type: ignore[no-untyped-call]
    """Pools the statistics of every BatchNorm's input."""

    def __init__(self, model: nn.Module, found: dict[str, tuple[Norm, Statistics]]) -> None:
        super().__init__(model)
        self.found = found

    def normalising(self, norm: Norm) -> None:
        _, statistics = self.found.setdefault(norm.name, (norm, Statistics()))
        statistics.add(norm.input)
        self.found[norm.name] = norm, statistics


def settle_statistics(model: nn.Module, samples: Samples) -> int:
    """Make every BatchNorm's statistics those of what it reads, in place, without changing what the network computes.

    Scale and shift take up the change, γ' = γ σ'/σ and β' = β + γ (μ' − μ)/σ; a BatchNorm without them stays as it is.

    Returns:
        How many passes over the samples it took.
    """
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return 0
    found: dict[str, tuple[Norm, Statistics]] = {}
    for number, batch in enumerate(samples.batches):
        run(model, batch, _Reader(model, found), what=f"batches[{number}]")
    with torch.no_grad():
        for norm, statistics in found.values():
            if norm.scale is None or norm.shift is None:
                continue
            before, centre = (norm.variance + norm.eps).sqrt(), norm.mean.clone()
            statistics.write(norm.mean, norm.variance)
            norm.shift += norm.scale * (norm.mean - centre) / before
            norm.scale *= (norm.variance + norm.eps).sqrt() / before
    return 1


def check_statistics(statistics: Statistics, name: str) -> None:
    """Refuse NaN and infinite activations.

    Raises:
        InputError: names the BatchNorm.
    """
    assert statistics.mean is not None
    if not bool(torch.isfinite(statistics.mean).all()):
        raise InputError(f"the BatchNorm {name} reads NaN or infinite activations on the calibration samples")
