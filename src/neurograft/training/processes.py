"""Where a training computes, and with whom: in one process, or in those of a launcher, through Accelerate."""

import atexit
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from neurograft.errors import InputError, MissingExtra, OptionError
from neurograft.evaluating.evaluation import Metric, Scores, tally
from neurograft.inputs import Batches
from neurograft.preserve_state import seed_all
from neurograft.training.settings import TrainingSettings

Value = TypeVar("Value")
SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron",
}


class Processes:
    """The processes of one training, seen from one of them; alone it changes nothing and needs no Accelerate.

    Of several, each takes other batches, as Accelerate's `prepare_data_loader` shares them: of a DataLoader or a list
    every P-th (the last round is filled up from the start), of anything else the first process reads P batches and
    sends each process its part. Gradients are averaged over the processes.

    Args:
        settings: `device` counts.
        home: the device of the network, where it is trained unless `device` or a launcher names another.

    Raises:
        OptionError: for a device that this machine does not have, or a launcher that shards networks.
        MissingExtra: for several processes without Accelerate.
    """

    def __init__(self, settings: TrainingSettings, home: torch.device) -> None:
        for variable, name in SHARDED.items():
            if os.environ.get(variable, "").lower() in ("1", "true"):
                raise OptionError(
                    f"{variable} is set, but training copies the network to each GPU: launch without {name}"
                )
        wanted = None if settings["device"] is None else torch.device(settings["device"])
        self.device = wanted or (torch.device("cuda") if _on_gpus() else home)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise OptionError(f"device={str(self.device)!r}: torch finds no GPU on this machine")
        self.seed, self.count, self.index = settings["seed"], int(os.environ.get("WORLD_SIZE", "1")), 0
        if self.count > 1:
            self._accelerator = _accelerator(cpu=self.device.type == "cpu")
            self.count, self.index = self._accelerator.num_processes, self._accelerator.process_index
            own: torch.device = self._accelerator.device
            if wanted is not None and (wanted.type != own.type or wanted.index not in (None, own.index)):
                raise OptionError(f"device={str(wanted)!r}: of several processes each has its own, here {own}")
            self.device = own
        elif self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())

    @property
    def gpus(self) -> list[int]:
        """The index of this process's GPU, if it has one."""
        return [self.device.index] if self.device.type == "cuda" else []

    def prepared(self, network: nn.Module) -> nn.Module:
        """The network, its gradients averaged over all processes; weights are the same objects."""
        if self.count == 1:
            return network
        prepared: nn.Module = self._accelerator.prepare_model(network)
        return prepared

    @contextmanager
    def shared(self, batches: Batches, *, filled: bool = True) -> Iterator[Batches]:
        """This process's share of the batches, new in every pass; the caller's sampler stays as it was.

        Args:
            batches: all of them.
            filled: whether all processes take as many, the first ones again in the last round.
        """
        if self.count == 1:
            yield batches
            return
        from accelerate.data_loader import prepare_data_loader

        sampler: Any = getattr(batches, "sampler", None)
        before = getattr(sampler, "generator", None)
        try:
            yield prepare_data_loader(
                _loader(batches), self.device, put_on_device=True, rng_types=["generator"], even_batches=filled
            )
        finally:
            if hasattr(sampler, "generator"):
                sampler.generator = before  # Accelerate gives a sampler one that all processes share

    def start_epoch(self, number: int) -> None:
        """Let several processes draw other dropout, the same in every run."""
        if self.count > 1:
            words = numpy.random.SeedSequence((self.seed, number, self.index)).generate_state(1, numpy.uint64)
            seed_all(int(words[0]), self.gpus)

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss."""
        if self.count == 1:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self._accelerator.backward(loss)

    def mean(self, loss: Tensor) -> float:
        """The mean of a loss over the processes: each learns at once if it is NaN somewhere."""
        return float(loss.detach() if self.count == 1 else self._accelerator.reduce(loss.detach(), "mean"))

    def evaluate(self, model: nn.Module, batches: Batches, loss: Metric | None) -> Scores:
        """`evaluate`, each process on its own batches of a DataLoader or a list, on all of anything else."""
        started = time.perf_counter()
        if self.count == 1:
            return tally(model, batches, loss=loss).scores(time.perf_counter() - started)
        divided = isinstance(batches, DataLoader | Sequence)
        with self.shared(batches, filled=False) if divided else nullcontext(batches) as own:
            measured = tally(model, own, loss=loss)
        sums = torch.tensor(measured.sums().tolist(), device=self.device, dtype=torch.float64)
        measured.set_sums(self._accelerator.reduce(sums, "sum" if divided else "mean").cpu())
        return measured.scores(time.perf_counter() - started)

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the running statistics of the first one."""
        for buffer in model.buffers() if self.count > 1 else ():
            if buffer.dtype != torch.bool:  # masks, which no step changes
                torch.distributed.broadcast(buffer, 0)

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What the first process makes, or the error that it meets, in all of them."""
        if self.count == 1:
            return make()
        from accelerate.utils import broadcast_object_list

        sent: list[Any] = [None, None]
        if self.index == 0:
            try:
                sent[0] = make()
            except Exception as error:
                sent[1] = error
        broadcast_object_list(sent)
        if sent[1] is not None:
            raise sent[1]
        made: Value = sent[0]
        return made


def _on_gpus() -> bool:
    """Whether a launcher means the GPUs."""
    launched = any(name in os.environ for name in ("LOCAL_RANK", "WORLD_SIZE"))
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    return launched and not on_cpu and torch.cuda.is_available()


def _accelerator(*, cpu: bool) -> Any:
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError as error:
        raise MissingExtra("several processes need accelerate: pip install 'neurograft[train]'") from error
    alone = not torch.distributed.is_initialized()
    accelerator = Accelerator(cpu=cpu, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    if alone:
        atexit.register(torch.distributed.destroy_process_group)  # it serves all trainings of the program
    return accelerator


class _Stream(IterableDataset[Any]):
    """Batches of any kind as a data set that is read from front to back."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def _loader(batches: Batches) -> "DataLoader[Any]":
    if isinstance(getattr(batches, "sampler", None), DistributedSampler):
        raise InputError("the DataLoader has a DistributedSampler: pass one that has all samples, they are shared here")
    if isinstance(batches, DataLoader):
        return batches
    if isinstance(batches, Sequence):
        return DataLoader(batches, batch_size=1, collate_fn=_only)  # type: ignore[arg-type]
    return DataLoader(_Stream(batches), batch_size=None)


def _only(items: list[Any]) -> Any:
    return items[0]
