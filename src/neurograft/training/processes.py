"""Processes that train one network together: who takes which batches, and how they agree on every number."""

import time
from collections.abc import Callable, Iterator, Sized
from itertools import islice
from typing import Any, TypeVar

import numpy
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, DistributedSampler

from neurograft.errors import InputError
from neurograft.evaluating.evaluation import Measure, Scores, evaluate, tally
from neurograft.inputs import Batches
from neurograft.preserve_state import forked_random_state, random_state, seed_all, set_random_state
from neurograft.training.acceleration import Accelerator

Value = TypeVar("Value")
DATA, NETWORK = 0, 1  # what a random state is for


class Processes:
    """The processes of one training, seen from one of them; alone it changes nothing.

    In every round each process takes the next batch, so a round of P processes with batches of B samples is a step
    with P·B samples. All processes draw the same order of batches, and different dropout: both from the seed, the epoch
    and, for dropout, the process.
    """

    def __init__(self, accelerator: Accelerator, seed: int) -> None:
        self.accelerator, self.seed = accelerator, seed
        self.count: int = accelerator.num_processes
        self.index: int = accelerator.process_index

    def rounds(self, batches: Batches, epoch: int) -> Iterator[tuple[Any, bool]]:
        """This process's batch of every round of an epoch, and whether it counts.

        In a last round with fewer batches than processes the others repeat a batch that does not count.
        """
        if self.count == 1:
            for batch in batches:
                yield batch, True
            return
        device = self.accelerator.device
        seed_all(self._seed(epoch, NETWORK + self.index), [device.index] if device.type == "cuda" else [])
        own = None
        for group in self._groups(batches, epoch):
            counted = group[0] is not None
            own = group[0] if counted else own if own is not None else group[1]
            yield own, counted

    def agreed(self, loss: Tensor, inputs: Any, counted: bool) -> tuple[float, Tensor]:
        """The mean loss over the samples of all processes, and what this one must differentiate.

        DDP averages gradients over the P processes; with n samples of N here the loss is weighted by P · n / N, so that
        uneven batches give the gradient of the mean over all samples. Every process learns at once if a loss is NaN.
        """
        value = float(loss.detach())
        if self.count == 1:
            return value, loss
        samples = _samples(inputs) if counted else 0
        mine = [samples, samples * value if counted else 0.0]
        total, summed = self._sum(torch.tensor(mine, dtype=torch.float64)).tolist()
        return summed / total, loss * (self.count * samples / total)

    def evaluate(self, model: nn.Module, batches: Batches, epoch: int, loss: Measure | None) -> Scores:
        """`evaluate`, each process on its share of the batches."""
        if self.count == 1:
            return evaluate(model, batches, loss=loss)
        started = time.perf_counter()
        with forked_random_state(batches=batches):
            mine = (batch for batch, _ in self._groups(batches, epoch) if batch is not None)
            measured = tally(model, mine, loss=loss)
        measured.set_sums(self._sum(measured.sums()))
        return measured.scores(time.perf_counter() - started)

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the running statistics of the first one."""
        if self.count > 1:
            for buffer in model.buffers():
                if buffer.dtype != torch.bool:  # masks, which no step changes
                    torch.distributed.broadcast(buffer, 0)

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What the first process makes, or the error that it meets, in all of them."""
        if self.count == 1:
            return make()
        told: list[Any] = [None, None]
        if self.index == 0:
            try:
                told[0] = make()
            except Exception as error:
                told[1] = error
        torch.distributed.broadcast_object_list(told, 0)
        if told[1] is not None:
            raise told[1]
        made: Value = told[0]
        return made

    def _groups(self, batches: Batches, epoch: int) -> Iterator[tuple[Any, Any]]:
        """For each round: this process's batch or None, and one that can stand for it."""
        if isinstance(getattr(batches, "sampler", None), DistributedSampler):
            raise InputError(
                "the DataLoader has a DistributedSampler: pass one that has all samples, they are shared here"
            )
        stream = _common(self._seed(epoch, DATA))
        if type(batches) is DataLoader and batches.batch_sampler is not None:
            sampler = batches.batch_sampler
            rounds, rest = divmod(len(sampler) if isinstance(sampler, Sized) else 0, self.count)
            if rounds:  # only the indices are read by all, the samples by the process that takes them
                own = stream(_part_of(batches, self.index, self.count))
                yield from ((batch, None) for batch in islice(own, rounds))
                if rest:
                    yield next(own, None), None
                return
        everything = stream(batches)
        while group := list(islice(everything, self.count)):
            yield (group[self.index] if self.index < len(group) else None), group[0]

    def _sum(self, numbers: Tensor) -> Tensor:
        device = self.accelerator.device
        summed: Tensor = self.accelerator.reduce(numbers.to(device), "sum")
        return summed.cpu()

    def _seed(self, epoch: int, purpose: int) -> int:
        return int(numpy.random.SeedSequence((self.seed, epoch, purpose)).generate_state(1, numpy.uint64)[0])


def _common(seed: int) -> Callable[[Batches], Iterator[Any]]:
    """Read batches under a random state of their own that starts from the seed; the outer one stays as it is."""

    def stream(batches: Batches) -> Iterator[Any]:
        with forked_random_state(batches=()):
            seed_all(seed)
            iterator, inner = iter(batches), random_state()
        while True:
            outer = random_state()
            set_random_state(inner)
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                inner = random_state()
                set_random_state(outer)
            yield batch

    return stream


class _Every(torch.utils.data.Sampler[list[int]]):
    """Every P-th list of indices of a batch sampler."""

    def __init__(self, sampler: Any, first: int, step: int) -> None:
        self.sampler, self.first, self.step = sampler, first, step

    def __iter__(self) -> Iterator[list[int]]:
        return islice(iter(self.sampler), self.first, None, self.step)


def _part_of(loader: "DataLoader[Any]", first: int, step: int) -> "DataLoader[Any]":
    """The same loader for every P-th batch. (Accelerate's own would give the caller's sampler another generator.)"""
    return DataLoader(
        loader.dataset,
        batch_sampler=_Every(loader.batch_sampler, first, step),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
    )


def _samples(inputs: Any) -> int:
    first = next(leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
    return len(first) if first.dim() else 1
