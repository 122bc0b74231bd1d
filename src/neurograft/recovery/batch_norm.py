"""`reestimate_batch_norm`: running statistics that are exactly those of the calibration samples."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurograft.inputs import Batches, call_on_batch, check_model, device_of
from neurograft.preserve_state import copy_of, keeps_random_state, preserve_state
from neurograft.recovery.report import LayerRecovery, Recovered, RecoveryReport
from neurograft.recovery.samples import Samples, read_samples
from neurograft.recovery.statistics import Statistics, check_statistics

BatchNorm = nn.modules.batchnorm._BatchNorm


@keeps_random_state
def reestimate_batch_norm(model: nn.Module, batches: Batches) -> nn.Module:
    """A copy of the network whose BatchNorms hold the exact mean and unbiased variance of what they read.

    Every BatchNorm (1d, 2d, 3d, Sync) normalises each batch by the batch's own statistics, as in training, and the
    running statistics become those of all samples pooled, mean = Σ x / n and variance = Σ (x − mean)² / (n − 1):
    no momentum, and no weight for small batches that is not theirs. Dropout and everything else is in eval mode;
    every other buffer, `num_batches_tracked` and the mode of every module come back as they were. Networks whose
    BatchNorms keep no statistics are copied as they are.

    Args:
        model: the network; it stays as it is.
        batches: a re-iterable of inputs, with or without labels; larger batches are closer to eval mode.

    Raises:
        InputError: batches that are empty, one-shot, hold or lead to NaN, or that the network cannot take.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
        >>> better = reestimate_batch_norm(nn.BatchNorm1d(1), [x[:1], x[1:]])
        >>> better.running_mean, better.running_var
        (tensor([3.]), tensor([4.6667]))

    Source: Jordan et al. 2023, arXiv:2211.08403, section 4 (RESET).
    """
    return reestimated(model, batches).model


def reestimated(model: nn.Module, batches: Batches) -> Recovered:
    """`reestimate_batch_norm` and its report."""
    started = time.perf_counter()
    check_model(model)
    samples = read_samples(batches, device_of(model))
    result = copy_of(model)
    found: dict[BatchNorm, Statistics] = {}
    names = {module: name for name, module in result.named_modules()}
    with preserve_state(result), torch.no_grad(), _in_training(result, found):
        _run(result, samples)
    layers = []
    with torch.no_grad():
        for norm, statistics in found.items():
            check_statistics(statistics, names[norm])
            assert norm.running_mean is not None
            assert statistics.mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(statistics.mean)
            norm.running_var.copy_(statistics.variance())
            layers.append(LayerRecovery(names[norm], "statistics", rows=statistics.count))
    unused = [name for module, name in names.items() if _tracks(module) and module not in found]
    notes = tuple(f"{name} was not reached by the samples and stays as it was" for name in unused)
    seconds = time.perf_counter() - started
    return Recovered(result, RecoveryReport("batch_norm", tuple(layers), samples.total, 1, seconds, notes))


def has_batch_norm(model: nn.Module) -> bool:
    """Whether any BatchNorm of the network keeps running statistics."""
    return any(_tracks(module) for module in model.modules())


def _tracks(module: nn.Module) -> bool:
    return isinstance(module, BatchNorm) and module.running_mean is not None


def _run(model: nn.Module, samples: Samples) -> None:
    for number, batch in enumerate(samples.batches):
        call_on_batch(model, batch, f"batches[{number}]")


@contextmanager
def _in_training(model: nn.Module, found: dict[BatchNorm, Statistics]) -> Iterator[None]:
    """Let BatchNorms, and nothing else, normalise by the batch and pool what they read."""

    def forward(norm: BatchNorm, inputs: Tensor) -> Tensor:
        found.setdefault(norm, Statistics()).add(inputs)
        if inputs.numel() == inputs.shape[1]:  # one entry per channel has no variance: its norm is the shift alone
            shift = torch.zeros_like(inputs[0]) if norm.bias is None else norm.bias.reshape(inputs[0].shape)
            return shift.expand_as(inputs)
        return F.batch_norm(inputs, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)

    changed = [module for module in model.modules() if _tracks(module)]
    try:
        for module in changed:
            module.__dict__["forward"] = lambda inputs, norm=module: forward(norm, inputs)
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]
