"""Inputs without labels, for recoveries, methods and distilling: training images, parts of them, others, or noise."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from neurograft_experiments.data import Images, Split
from neurograft_experiments.trial_cache import TrialCache

BATCH = 250
SEED = 0
"""Of crops and noise: the same inputs in every trial."""


def unlabelled(settings: Mapping[str, Any], images: Images, cache: TrialCache) -> Sequence[Tensor]:
    """The calibration inputs of a trial in batches, each of shape `(samples, channels, height, width)`."""
    count, kind = settings["calibration"], settings.get("inputs", "training")
    if kind == "training":
        inputs = images.train.examples(count)
    elif kind == "crops":
        inputs = crops(images.train.examples(count))
    elif kind == "noise":
        inputs = torch.randn(count, *images.shape, generator=torch.Generator().manual_seed(SEED))
    else:
        others = cache.images({**settings["data"], "source": kind, "samples": None, "normalization": "train"})
        inputs = resized(others.train.examples(count), images.shape)
    return torch.split(inputs.to(images.train.labels.device), BATCH)


def without_labels(inputs: Sequence[Tensor]) -> Split:
    """Inputs as a split to train on; its labels are all 0 and must not be read."""
    joined = torch.cat(list(inputs))
    return Split(joined, torch.zeros(len(joined), dtype=torch.long, device=joined.device))


def crops(images: Tensor) -> Tensor:
    """Of each image a random square of half its side, brought to the size of the image; shape and seed stay.

    Example:
        >>> crops(torch.rand(3, 1, 8, 8)).shape
        torch.Size([3, 1, 8, 8])
    """
    height, width = images.shape[-2:]
    random = torch.Generator().manual_seed(SEED)
    tops = torch.randint(height - height // 2 + 1, (len(images),), generator=random).tolist()
    lefts = torch.randint(width - width // 2 + 1, (len(images),), generator=random).tolist()
    parts = [
        image[:, top : top + height // 2, left : left + width // 2]
        for image, top, left in zip(images, tops, lefts, strict=True)
    ]
    return F.interpolate(torch.stack(parts), (height, width), mode="bilinear", antialias=True)


def resized(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Images of another data set at a size and with a number of channels.

    Example:
        >>> resized(torch.rand(2, 3, 32, 32), (1, 28, 28)).shape
        torch.Size([2, 1, 28, 28])
    """
    channels, height, width = shape
    if images.shape[1] != channels:
        images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    return F.interpolate(images, (height, width), mode="bilinear", antialias=True)
