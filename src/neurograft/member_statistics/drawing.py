"""Inputs made up: drawn from what members say of theirs, or plain noise."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from neurograft.errors import InputError
from neurograft.inputs import Batches, Calibration, Inputs, check_batches
from neurograft.member_statistics.statistics import Statistics

SAMPLES = 1000
BATCH = 250


def drawn_batches(statistics: Sequence[Statistics], *, samples: int = SAMPLES, seed: int = 0) -> list[Inputs]:
    """Batches drawn from the members' moments, of each member as many as its share of all samples, well mixed.

    Real numbers are normal with the member's mean and covariance, clipped to the range it saw; of whole numbers each
    position has the member's frequencies.

    Args:
        statistics: one per member, of the same inputs.
        samples: how many in all.
        seed: of the draws.

    Example:
        >>> import neurograft as ng
        >>> from torch import nn
        >>> own = ng.statistics(nn.Linear(2, 3), [torch.randn(100, 2) + 5])
        >>> [batch.shape for batch in drawn_batches([own], samples=300)]
        [torch.Size([250, 2]), torch.Size([50, 2])]
    """
    generator = torch.Generator().manual_seed(seed)
    counts = _shares([own.samples for own in statistics], samples)
    parts = [
        [moments.draw(count, generator) for moments in own.inputs.values()]
        for own, count in zip(statistics, counts, strict=True)
        if count
    ]
    order = torch.randperm(samples, generator=generator)
    columns = [torch.split(torch.cat(list(column))[order], BATCH) for column in zip(*parts, strict=True)]
    return [statistics[0].arranged(list(row)) for row in zip(*columns, strict=True)]


def noise_batches(example_inputs: Inputs, *, samples: int = SAMPLES, seed: int = 0) -> list[Inputs]:
    """Batches shaped like the example inputs: standard normal numbers, and whole ones from among the example's.

    For those who have neither data nor statistics.

    Example:
        >>> noise_batches(torch.zeros(1, 3))[0].shape
        torch.Size([250, 3])
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(example: Tensor) -> Tensor:
        shape = (samples, *example.shape[1:])
        if example.is_floating_point():
            return torch.randn(shape, generator=generator).to(example)
        at = torch.randint(example.numel(), shape, generator=generator)
        return example.flatten()[at.to(example.device)]

    made = pytree.tree_map_only(Tensor, drawn, example_inputs)

    def part(start: int) -> Inputs:
        cut: Inputs = pytree.tree_map_only(Tensor, lambda x: x[start : start + BATCH], made)
        return cut

    return [part(start) for start in range(0, samples, BATCH)]


def calibration_batches(
    calibration: Calibration | None, statistics: Sequence[Statistics] | None, example_inputs: Inputs | None
) -> Batches | None:
    """What methods and recovery look at: the batches given, noise, or inputs drawn from the members' statistics.

    Raises:
        InputError: batches that can be read only once, or a word other than "noise".
    """
    if calibration is None:
        return None if statistics is None else drawn_batches(statistics)
    if isinstance(calibration, str):
        if calibration != "noise" or example_inputs is None:
            raise InputError(f'calibration is {calibration!r}; it is batches, or "noise" beside example inputs')
        return noise_batches(example_inputs)
    check_batches(calibration, name="calibration")
    return calibration


def _shares(sizes: Sequence[int], samples: int) -> list[int]:
    """Whole numbers that add up to `samples`, in proportion to the sizes.

    Example:
        >>> _shares([1, 1, 2], 10)
        [2, 3, 5]
    """
    ends = torch.tensor(sizes, dtype=torch.float64).cumsum(0)
    bounds = (ends / ends[-1] * samples).round().long()
    return torch.diff(bounds, prepend=bounds.new_zeros(1)).tolist()
