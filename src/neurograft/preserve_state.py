"""Run a model in eval mode and give everything back exactly as it was; copy it."""

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy
import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def preserve_state(*models: nn.Module) -> Iterator[None]:
    """Run `models` in eval mode; afterwards every module's mode and buffer and torch's random state are as before.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> with preserve_state(net):
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
        for module, name, value, kept in buffers:
            module._buffers[name] = value
            if value is not None and kept is not None:
                give_back(value, kept)


def copy_of(model: Network, memo: Mapping[int, Any] | None = None) -> Network:
    """A deep copy of a network, its sparse buffers included.

    Args:
        model: the network.
        memo: what stands for an object in the copy, by the object's id.
    """
    # copy.deepcopy asks compressed sparse tensors for a storage, which they have not
    sparse = {id(x): x.detach().clone() for x in model.buffers() if x.layout != torch.strided}
    return copy.deepcopy(model, {**sparse, **(memo or {})})


def give_back(buffer: Tensor, kept: Tensor) -> None:
    """Write a buffer's former entries, if it has others now."""
    if not same_entries(buffer, kept):
        with torch.inference_mode(buffer.is_inference()), torch.no_grad():
            buffer.copy_(kept)


def same_entries(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape hold the same, sparse ones in the same places."""
    if a.layout != b.layout or a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.layout == torch.strided:
        return bool(torch.equal(a, b))
    if a.layout == torch.sparse_coo:
        a, b = a.coalesce(), b.coalesce()
        return torch.equal(a.indices(), b.indices()) and torch.equal(a.values(), b.values())
    rows = a.layout in (torch.sparse_csr, torch.sparse_bsr)
    bounds, places = ("crow_indices", "col_indices") if rows else ("ccol_indices", "row_indices")
    return all(torch.equal(getattr(a, part)(), getattr(b, part)()) for part in (bounds, places, "values"))


@contextmanager
def forked_random_state(*models: nn.Module, batches: Any = None, seed: int | None = None) -> Iterator[None]:
    """Give torch's random state back at the end, on the CPU and on the models' devices.

    Args:
        models: networks whose CUDA devices count.
        batches: what is read inside, if anything: the random state of numpy and of Python, which data sets draw from,
            comes back too, and that of the generators that a DataLoader and its samplers own.
        seed: where all that is random starts inside; None goes on from the caller's state.

    Example:
        >>> before = torch.get_rng_state()
        >>> with forked_random_state(seed=1):
        ...     _ = torch.rand(3)
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    devices = sorted({p.device.index for model in models for p in model.parameters() if p.is_cuda})
    generators = [(generator, generator.get_state()) for generator in _generators(batches)]
    others = None if batches is None else (random.getstate(), numpy.random.get_state())  # noqa: NPY002 - data sets use it
    try:
        with torch.random.fork_rng(devices=devices):
            if seed is not None:
                seed_all(seed, devices)
            yield
    finally:
        for generator, state in generators:
            generator.set_state(state)
        if others is not None:
            random.setstate(others[0])
            numpy.random.set_state(others[1])  # noqa: NPY002


def random_state(devices: Sequence[int] = (), batches: Any = None) -> dict[str, Any]:
    """What decides all random numbers to come: tensors, numbers and strings only, so that it can be stored.

    Args:
        devices: indices of CUDA devices that count.
        batches: a DataLoader whose generators count.
    """
    numpy_state = numpy.random.get_state(legacy=False)  # noqa: NPY002 - data sets draw from the global state
    assert isinstance(numpy_state, dict)
    return {
        "torch": torch.get_rng_state(),
        "cuda": {index: torch.cuda.get_rng_state(index) for index in devices},
        "numpy": {
            **numpy_state,
            "state": {
                "key": torch.from_numpy(numpy_state["state"]["key"].astype(numpy.int64)),
                "pos": numpy_state["state"]["pos"],
            },
        },
        "python": random.getstate(),
        "batches": [generator.get_state() for generator in _generators(batches)],
    }


def set_random_state(state: Mapping[str, Any], batches: Any = None) -> None:
    """Go on from a state that `random_state` gave."""
    torch.set_rng_state(state["torch"])
    for index, kept in state["cuda"].items():
        torch.cuda.set_rng_state(kept, index)
    words = state["numpy"]["state"]
    key = words["key"].numpy().astype(numpy.uint32)
    numpy.random.set_state({**state["numpy"], "state": {"key": key, "pos": words["pos"]}})  # noqa: NPY002
    random.setstate(state["python"])
    for generator, kept in zip(_generators(batches), state["batches"], strict=True):
        generator.set_state(kept)


def seed_all(seed: int, devices: Sequence[int] = ()) -> None:
    """Start the random state of torch, on the CPU and on CUDA devices, numpy and Python from a seed."""
    torch.default_generator.manual_seed(seed)
    for index in devices:
        with torch.cuda.device(index):
            torch.cuda.manual_seed(seed)
    numpy.random.seed(seed % 2**32)  # noqa: NPY002 - data sets draw from the global state
    random.seed(seed)


def _generators(batches: Any) -> list[torch.Generator]:
    """The generators that a DataLoader and its samplers own, each once."""
    batch_sampler = getattr(batches, "batch_sampler", None)
    owners = (batches, getattr(batches, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [g for owner in owners if isinstance(g := getattr(owner, "generator", None), torch.Generator)]
    return list({id(generator): generator for generator in found}.values())


def _kept(buffer: Tensor | None) -> Tensor | None:
    return None if buffer is None or buffer.is_meta else buffer.detach().clone()
