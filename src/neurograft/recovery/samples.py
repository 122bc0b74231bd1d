"""The calibration samples: read once, checked, and which rows of every layer are looked at."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from neurograft.errors import InputError
from neurograft.inputs import Batches, Inputs, check_batches, is_sparse, split_labels, stored_values, to_device
from neurograft.members.sample_dimension import length_along, positions_of, sample_dimension
from neurograft.preserve_state import forked_random_state

ACTIVATIONS = 6
"""Largest activations that a run holds at once, at most: what a layer reads and writes, and copies its op makes."""
ROWS = 32_768
"""Rows a layer is solved from, at most, where the caller does not set how many positions to look at."""
Groups: TypeAlias = Sequence[int] | Tensor
"""Which group each sample is of, in the order of the batches."""


@dataclass(frozen=True, eq=False, slots=True)
class Samples:
    """Unlabelled batches, held in memory, how many samples each has, and along which dimension.

    Attributes:
        batches: the inputs.
        counts: samples of every batch.
        dim: None where batches cannot be cut: a sample's outputs depend on what else is in its batch.
        groups: the group of every sample, int64 of shape `(total,)`, numbered from 0; None where each is its own.
    """

    batches: tuple[Inputs, ...]
    counts: tuple[int, ...]
    dim: int | None = 0
    groups: Tensor | None = None

    @property
    def total(self) -> int:
        """Samples in all batches."""
        return sum(self.counts)

    def groups_of(self) -> tuple[Tensor, ...]:
        """The group of every sample of every batch; each sample's own number where none are named."""
        groups = torch.arange(self.total) if self.groups is None else self.groups
        return tuple(torch.split(groups, list(self.counts)))

    def joined(self) -> "Samples":
        """All samples as one batch, or the batches as they are where their tensors do not fit together."""
        leaves = [pytree.tree_flatten(batch) for batch in self.batches]
        spec, dim = leaves[0][1], self.dim
        if len(leaves) == 1 or dim is None or any(other != spec for _, other in leaves):
            return self
        columns = list(zip(*(values for values, _ in leaves), strict=True))
        for column in columns:
            tensors = [isinstance(value, Tensor) for value in column]
            if all(tensors):
                fits = all(
                    v.dim() > dim
                    and not is_sparse(v)
                    and (*v.shape[:dim], *v.shape[dim + 1 :]) == (*column[0].shape[:dim], *column[0].shape[dim + 1 :])
                    and v.dtype == column[0].dtype
                    and v.shape[dim] == n
                    for v, n in zip(column, self.counts, strict=True)
                )
            else:
                fits = not any(tensors) and all(value == column[0] for value in column)
            if not fits:
                return self
        merged = [torch.cat(list(c), dim) if isinstance(c[0], Tensor) else c[0] for c in columns]
        return self.of([(pytree.tree_unflatten(merged, spec), self.total)]).grouped(self.groups)

    def cut(self, most: int) -> "Samples":
        """Batches of at most so many samples; one that holds something else than a row per sample stays whole."""
        parts: list[tuple[Inputs, int]] = []
        for batch, count in zip(self.batches, self.counts, strict=True):
            if self.dim is None or not self.can_be_cut(batch, count):
                parts.append((batch, count))
                continue
            step = max(1, most)
            for first in range(0, count, step):
                rows = slice(first, min(first + step, count))
                parts.append((positions_of(batch, self.dim, rows), rows.stop - rows.start))
        return self.of(parts).grouped(self.groups)

    def of(self, parts: Sequence[tuple[Inputs, int]]) -> "Samples":
        """Other batches, and how many samples each has, along the same dimension; each sample its own group."""
        return Samples(tuple(batch for batch, _ in parts), tuple(count for _, count in parts), self.dim)

    def grouped(self, groups: Groups | None) -> "Samples":
        """The same samples in these groups, one integer per sample; numbered from 0, in the order of the integers.

        Raises:
            InputError: for another number of groups than samples, other values, and batches that cannot be cut.
        """
        if groups is None:
            return replace(self, groups=None)
        for number, (batch, count) in enumerate(zip(self.batches, self.counts, strict=True)):
            if not self.can_be_cut(batch, count):
                raise InputError(f"batches[{number}] cannot be cut into samples, so groups cannot be held out of it")
        try:
            given = torch.as_tensor(groups, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"groups must be one integer per sample: {error}") from error
        if given.dim() != 1 or given.is_floating_point() or given.is_complex() or len(given) != self.total:
            found = f"{given.dtype} of shape {tuple(given.shape)}"
            raise InputError(f"groups must be one integer per sample, {self.total} for these batches; got {found}")
        return replace(self, groups=torch.unique(given, return_inverse=True)[1])

    def can_be_cut(self, batch: Inputs, count: int) -> bool:
        """Whether every tensor of a batch has so many samples along the dimension."""
        return self.dim is not None and length_along(batch, self.dim) == count

    def seen_by(self, model: nn.Module) -> "Samples":
        """The same batches with the dimension along which this network keeps samples apart, found on the largest."""
        largest = max(range(len(self.batches)), key=self.counts.__getitem__)
        dim = sample_dimension(model, self.batches[largest])
        lengths = [None if dim is None else length_along(batch, dim) for batch in self.batches]
        counts = tuple(count if n is None else n for count, n in zip(self.counts, lengths, strict=True))
        return Samples(self.batches, counts, dim)

    def fitted(self, largest: int, room: int) -> "Samples":
        """All samples as one batch if `ACTIVATIONS` activations of them fit into the room, else batches that fit.

        Args:
            largest: bytes of the largest activation of one sample.
            room: bytes.
        """
        most = room // (ACTIVATIONS * max(1, largest))
        return self.joined() if self.total <= most else self.cut(most)

    def small(self, count: int = 2) -> tuple[Inputs, int]:
        """The first few samples, to see how a network runs, and how many they are; a batch that cannot be cut whole."""
        n = self.counts[0]
        if n <= count or self.dim is None or not self.can_be_cut(self.batches[0], n):
            return self.batches[0], n
        return positions_of(self.batches[0], self.dim, slice(0, count)), count


def read_samples(batches: Batches, device: torch.device, *, name: str = "batches") -> Samples:
    """Read the batches once, leave out the labels, and put them on the device.

    Raises:
        InputError: for batches that can be read only once, are empty, hold no tensor, or NaN or infinity.
    """
    check_batches(batches, name=name)
    found, counts = [], []
    with forked_random_state(batches=batches):
        for number, batch in enumerate(batches):
            inputs, _ = split_labels(batch)
            tensors = [v for v in pytree.tree_leaves(inputs) if isinstance(v, Tensor)]
            if not tensors or any(t.numel() == 0 for t in tensors):
                raise InputError(f"{name}[{number}] holds no samples: {_described(inputs)}")
            for tensor in tensors:
                if not bool(torch.isfinite(stored_values(tensor)).all()):
                    raise InputError(f"{name}[{number}] holds NaN or infinite values; clean the calibration samples")
            found.append(to_device(inputs, device))
            counts.append(tensors[0].shape[0] if tensors[0].dim() else 1)
    if not found:
        raise InputError(f"{name} are empty: there is nothing to calibrate on")
    return Samples(tuple(found), tuple(counts))


def _described(inputs: Any) -> str:
    shapes = [tuple(v.shape) for v in pytree.tree_leaves(inputs) if isinstance(v, Tensor)]
    return f"shapes {shapes}" if shapes else type(inputs).__name__


@dataclass(frozen=True, slots=True)
class Sampler:
    """Chooses the positions of every sample a layer is solved from: the same for members and fused network."""

    samples: int
    positions: int | None
    seed: int

    def per_sample(self, available: int, inputs: int) -> int:
        """How many of the available positions are looked at, for a layer with that many inputs per neuron."""
        if self.positions is not None:
            return min(available, self.positions)
        return min(available, -(-self.wanted(inputs) // self.samples))

    def wanted(self, inputs: int) -> int:
        """Rows in all that a layer with that many inputs per neuron is solved from, if there are so many."""
        return max(ROWS, 4 * inputs) if self.positions is None else self.positions * self.samples

    def choose(self, layer: int, batch: int, count: int, available: int, inputs: int) -> Tensor:
        """Positions of every sample of a batch, int64 of shape `(samples, positions)`, without repetition."""
        wanted = self.per_sample(available, inputs)
        if wanted == available:
            return torch.arange(available).expand(count, available)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + layer * 1_009 + batch) % 2**63)
        return torch.rand(count, available, generator=generator).topk(wanted, dim=1).indices


def rows_shape(output: Tensor, samples: int) -> tuple[int, int]:
    """How many samples and positions per sample an output of shape `(rows, outputs)` or a convolution's has."""
    if output.dim() > 2:
        return output.shape[0], output[0, 0].numel()
    rows = output.shape[0]
    return (samples, rows // samples) if rows % samples == 0 else (rows, 1)


def output_rows(output: Tensor, chosen: Tensor, samples: int) -> Tensor:
    """The chosen rows of a contraction's output, shape `(samples · positions, outputs)`."""
    n, available = rows_shape(output, samples)
    if output.dim() > 2:
        flat = output.flatten(2)
        index = chosen.to(output.device)[:, None].expand(n, output.shape[1], chosen.shape[1])
        return flat.gather(2, index).transpose(1, 2).reshape(-1, output.shape[1])
    flat = output.reshape(n, available, output.shape[1])
    index = chosen.to(output.device)[..., None].expand(n, chosen.shape[1], output.shape[1])
    return flat.gather(1, index).reshape(-1, output.shape[1])


def check_finite_output(output: Tensor, tensor: str, who: str) -> None:
    """Refuse NaN and infinite activations.

    Raises:
        InputError: names the layer and whose network it is in.
    """
    if not bool(torch.isfinite(output.sum())) and not bool(torch.isfinite(output).all()):
        raise InputError(f"{who}: the layer of {tensor} gives NaN or infinite activations on the calibration samples")
