"""Run a model in eval mode and give everything back exactly as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def untouched(*models: nn.Module) -> Iterator[None]:
    """Run `models` in eval mode; afterwards every module's mode and buffer and torch's random state are as before.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> with untouched(net):
        ...     net.training
        False
        >>> net.training, net[1].training
        (True, True)
    """
    modes = {module: module.training for model in models for module in model.modules()}
    buffers = [(module, name, value, _kept(value)) for module in modes for name, value in module._buffers.items()]
    try:
        with forked_random_state(*models):
            for model in models:
                model.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for module, name, value, kept in buffers:
                module._buffers[name] = value
                if value is not None and kept is not None:
                    value.copy_(kept)


@contextmanager
def forked_random_state(*models: nn.Module, batches: Any = None, seed: int | None = None) -> Iterator[None]:
    """Give torch's random state back at the end, on the CPU, on the models' devices and in the batches' own generators.

    Args:
        models: networks whose CUDA devices count.
        batches: a DataLoader whose generator and whose sampler's generator count too; anything else has none.
        seed: where torch's random state starts inside; None goes on from the caller's.

    Example:
        >>> before = torch.get_rng_state()
        >>> with forked_random_state(seed=1):
        ...     _ = torch.rand(3)
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    devices = sorted({p.device.index for model in models for p in model.parameters() if p.is_cuda})
    owners = (batches, getattr(batches, "sampler", None))
    generators = [g for owner in owners if isinstance(g := getattr(owner, "generator", None), torch.Generator)]
    states = [generator.get_state() for generator in generators]
    try:
        with torch.random.fork_rng(devices=devices):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
                for index in devices:
                    with torch.cuda.device(index):
                        torch.cuda.manual_seed(seed)
            yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _kept(buffer: Tensor | None) -> Tensor | None:
    return None if buffer is None or buffer.is_meta else buffer.detach().clone()
