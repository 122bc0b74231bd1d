"""`statistics`: one pass over a member's own data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from neurograft.errors import InputError, OptionError
from neurograft.inputs import (
    Batches,
    Inputs,
    call_on_batch,
    check_batches,
    check_model,
    device_of,
    is_sparse,
    split_labels,
    to_device,
)
from neurograft.member_statistics.covariance import ExactCovariance, LowRankCovariance, factor_of
from neurograft.member_statistics.gaussian_mechanism import clipped, noise_scale, noised_moments
from neurograft.member_statistics.input_moments import InputMoments, IntegerInput, RealInput
from neurograft.member_statistics.random_features import random_features
from neurograft.member_statistics.statistics import FeatureMoments, Statistics, Structure
from neurograft.preserve_state import forked_random_state, keeps_random_state, preserve_state

EXACT = 1024
"""Entries of a sample up to which the whole covariance is kept."""
EXACT_WITH_NOISE = 4096
"""The same where noise is added, which needs the whole matrix."""
BLOCK = 1000
"""Samples whose features are computed at a time."""
RANK = 256
FACTORS = 1 << 22
"""Entries of the factors kept of a wide input: with more than 16,384 entries per sample fewer than `RANK`."""


@keeps_random_state
def statistics(
    model: nn.Module, batches: Batches, *, noise: tuple[float, float] | None = None, clip: float | None = None
) -> Statistics:
    """What a member brings to a fusion instead of its data, from one pass over its own samples.

    - Of every input of real numbers its mean, covariance and range. Up to 1,024 entries per sample the covariance is
      whole, beyond it has rank 256 plus a diagonal. `fuse` draws samples from normal distributions of these moments.
    - Of every input of whole numbers how often each value occurs.
    - Mean and covariance of fixed random features of the inputs, the same on every client, by which an `Ensemble` sees
      whose data an input resembles.

    Labels are not read, and of the network nothing but whether it takes the samples.

    What they give away: without noise much of the data: means and covariances of many samples show what they look like
    together, ranges are single samples' values, and of a single sample everything is there. With `noise` every row is
    scaled to a norm of at most `clip`, no range is given, and the number of samples and the sums that moments are made
    of get normal noise, so that all numbers together are (ε, δ)-differentially private with respect to adding or
    leaving out one sample.

    Args:
        model: the member.
        batches: a re-iterable of its own inputs, with or without labels.
        noise: (ε, δ) of the Gaussian mechanism, such as `(3.0, 1e-5)`; None for exact statistics.
        clip: the norm that inputs are scaled down to under noise; None: √D for D entries, which is about the norm of
            standardised inputs. Features are scaled down to √(features) times the same share.

    Raises:
        InputError: batches that are empty, one-shot, hold NaN, change their shape, or that the network cannot take.
        OptionError: noise or clip out of range, or noise for whole numbers or more than 4,096 entries per sample.

    Example:
        >>> import neurograft as ng
        >>> nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in "ab"]
        >>> own = [ng.statistics(net, [torch.randn(100, 4) + m]) for m, net in enumerate(nets)]
        >>> own[1].inputs["0"].mean.round().tolist()
        [1.0, 1.0, 1.0, 1.0]
        >>> fused = ng.fuse(nets, torch.randn(1, 4), statistics=own)

    Source of the noise: Dwork & Roth 2014, Foundations and Trends in Theoretical Computer Science 9, appendix A.
    """
    check_model(model)
    check_batches(batches)
    if clip is not None and (noise is None or not 0 < clip < float("inf")):
        raise OptionError(f"clip is {clip}: it is a norm above 0, and goes with noise=(epsilon, delta)")
    sigma = 0.0 if noise is None else noise_scale(*noise)
    collector: _Collector | None = None
    with forked_random_state(batches=batches):
        for number, batch in enumerate(batches):
            where = f"batches[{number}]"
            structure, tensors = _tensors(split_labels(batch)[0], where)
            if collector is None:
                with preserve_state(model), torch.no_grad():
                    call_on_batch(model, to_device(split_labels(batch)[0], device_of(model)), where)
                collector = _Collector(structure, noise is not None, clip)
            collector.add(structure, tensors, where)
    if collector is None:
        raise InputError("batches are empty: nothing to look at")
    return collector.exact() if noise is None else collector.noised(noise, sigma)


Running: TypeAlias = "ExactCovariance | LowRankCovariance | dict[int, int]"


@dataclass(eq=False)
class _Collector:
    """Sums over the batches so far."""

    structure: Structure
    noisy: bool
    clip: float | None
    samples: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    sums: dict[str, Running] = field(default_factory=dict)
    ranges: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    features: ExactCovariance | None = None

    def add(self, structure: Structure, tensors: Mapping[str, Tensor], where: str) -> None:
        """Add a batch."""
        if not self.shapes:
            for name, tensor in tensors.items():
                self._begin(name, tensor)
        if structure != self.structure or list(tensors) != list(self.shapes):
            raise InputError(f"{where} has other inputs than the batches before: {', '.join(tensors)}")
        count = len(next(iter(tensors.values())))
        for name, tensor in tensors.items():
            if len(tensor) != count:
                raise InputError(f"{where}: its inputs have {count} and {len(tensor)} samples")
            self._add(name, tensor, where)
        for part in zip(*(torch.split(tensor, BLOCK) for tensor in tensors.values()), strict=True):
            features = random_features(part)
            if self.features is None:
                self.features = ExactCovariance(features.shape[1])
            self.features.add(clipped(features, self.norm(features.shape[1])) if self.noisy else features)
        self.samples += count

    def norm(self, size: int) -> float:
        """What rows of this size are scaled down to under noise."""
        entries = max(1, sum(shape.numel() for shape in map(torch.Size, self.shapes.values())))
        return float(size**0.5 * (1 if self.clip is None else self.clip / entries**0.5))

    def _begin(self, name: str, tensor: Tensor) -> None:
        shape = tuple(tensor.shape[1:])
        size = tensor[0].numel()
        self.shapes[name], self.dtypes[name] = shape, tensor.dtype
        if not tensor.is_floating_point():
            if self.noisy:
                raise OptionError(f"noise is for inputs of real numbers; input {name} has {tensor.dtype}")
            self.sums[name] = {}
        elif size <= (EXACT_WITH_NOISE if self.noisy else EXACT):
            self.sums[name] = ExactCovariance(size)
        elif self.noisy:
            raise OptionError(
                f"noise needs the whole covariance: input {name} has {size} entries per sample, more than "
                f"{EXACT_WITH_NOISE}; make it smaller, or send statistics without noise"
            )
        else:
            self.sums[name] = LowRankCovariance(size, max(1, min(RANK, FACTORS // size)))

    def _add(self, name: str, tensor: Tensor, where: str) -> None:
        sums = self.sums[name]
        if isinstance(sums, dict):
            values, counts = torch.unique(tensor, return_counts=True)
            for value, count in zip(values.tolist(), counts.tolist(), strict=True):
                sums[int(value)] = sums.get(int(value), 0) + count
            return
        if tuple(tensor.shape[1:]) != self.shapes[name]:
            raise InputError(f"{where}: input {name} has shape {tuple(tensor.shape[1:])}, before {self.shapes[name]}")
        rows = tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None]
        low, high = rows.amin(0).float(), rows.amax(0).float()
        if name in self.ranges:
            low, high = torch.minimum(low, self.ranges[name][0]), torch.maximum(high, self.ranges[name][1])
        self.ranges[name] = low, high
        sums.add(clipped(rows.double(), self.norm(rows.shape[1])) if self.noisy else rows)

    def exact(self) -> Statistics:
        """The statistics as they are."""
        assert self.features is not None
        features = FeatureMoments(self.features.mean.float(), self.features.covariance().float())
        inputs = {name: self._moments(name) for name in self.shapes}
        return Statistics(self.samples, self.structure, inputs, features)

    def _moments(self, name: str) -> InputMoments:
        sums, shape, dtype = self.sums[name], self.shapes[name], self.dtypes[name]
        if isinstance(sums, dict):
            seen = sorted(sums)
            return IntegerInput(shape, dtype, torch.tensor(seen), torch.tensor([sums[value] for value in seen]))
        factor, diagonal = sums.factors()
        return RealInput(shape, dtype, sums.mean.float(), factor.float(), diagonal.float(), *self.ranges[name])

    def noised(self, noise: tuple[float, float], sigma: float) -> Statistics:
        """The statistics with noise: 1 + 2 · (inputs + 1) sums, each changed by at most 1 by a sample."""
        assert self.features is not None
        parts = 1 + 2 * (len(self.shapes) + 1)
        sigma = sigma * parts**0.5
        generator = torch.Generator()
        generator.seed()  # from the system's entropy: noise that can be made again hides nothing
        count = max(1.0, self.samples + sigma * float(torch.randn((), generator=generator)))

        def moments(sums: ExactCovariance) -> tuple[Tensor, Tensor]:
            norm = self.norm(sums.size)
            return noised_moments(self.samples, count, sums.mean, sums.covariance(), norm, sigma, generator)

        inputs: dict[str, InputMoments] = {}
        for name, shape in self.shapes.items():
            sums = self.sums[name]
            assert isinstance(sums, ExactCovariance)
            mean, covariance = moments(sums)
            unknown = torch.full_like(mean, float("inf"), dtype=torch.float32)
            factor, rest = factor_of(covariance).float(), torch.zeros_like(unknown)
            inputs[name] = RealInput(shape, self.dtypes[name], mean.float(), factor, rest, -unknown, unknown)
        mean, covariance = moments(self.features)
        spread = sigma * self.norm(self.features.size) ** 2 / count
        features = FeatureMoments(mean.float(), covariance.float(), spread)
        return Statistics(round(count), self.structure, inputs, features, noise)


def _tensors(inputs: Inputs, where: str) -> tuple[Structure, dict[str, Tensor]]:
    """The inputs by name, on the CPU.

    Raises:
        InputError: inputs that are no tensors, without samples, sparse, complex, or with NaN.
    """
    structure: Structure = (
        "tensor" if isinstance(inputs, Tensor) else "keywords" if isinstance(inputs, Mapping) else "arguments"
    )
    parts: dict[str, Any] = (
        {str(name): value for name, value in inputs.items()}
        if isinstance(inputs, Mapping)
        else {str(number): value for number, value in enumerate(inputs if isinstance(inputs, tuple) else (inputs,))}
    )
    for name, value in parts.items():
        if not isinstance(value, Tensor) or not value.dim() or is_sparse(value) or value.is_complex():
            raise InputError(
                f"{where}: statistics are of dense tensors of real or whole numbers with one row per sample; input "
                f"{name} is a {type(value).__name__}"
            )
        if not value.numel() or not bool(torch.isfinite(value).all()):
            raise InputError(f"{where}: input {name} has no samples, or holds NaN or infinity")
    return structure, {name: value.detach().cpu() for name, value in parts.items()}
