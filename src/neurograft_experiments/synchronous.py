"""Data-parallel training on torch.distributed whose workers are fused into one network after each epoch."""

import copy
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeAlias

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessException, spawn

from neurograft.errors import StudyError, TrainingDiverged
from neurograft.evaluating.evaluation import Scores, evaluate
from neurograft.fusing import fuse
from neurograft.training.finetuning import finetune
from neurograft.training.learning_rates import factor_of
from neurograft_experiments.data import Images, shards
from neurograft_experiments.networks import make_network
from neurograft_experiments.trial_cache import TrialCache, example_of, packed, scores_json, scores_of
from neurograft_experiments.trials import JSON, Task, Tick

WAIT = timedelta(minutes=30)
"""How long a worker waits for the slowest before it gives up."""
Report: TypeAlias = tuple[Scores, float, bytes | None]
"""After an epoch: scores, seconds of fusing, and the network as a safetensors file if it is the best so far."""


@dataclass(eq=False)
class _SynchronousRun:
    """Training with one learning rate; `tensors` is None where the untrained network stayed the best."""

    lr: float
    scores: list[Scores] = field(default_factory=list)
    fuse: float = 0.0
    seconds: float = 0.0
    tensors: bytes | None = None
    diverged: bool = False

    def add(self, report: Report) -> None:
        """An epoch is over."""
        scores, seconds, tensors = report
        self.scores.append(scores)
        self.fuse += seconds
        self.tensors = tensors or self.tensors

    @property
    def epoch(self) -> int:
        """What validation chose."""
        return max(range(len(self.scores)), key=lambda number: self.scores[number].rank)


def synchronous_trial(task: Task, cache: TrialCache, tick: Tick) -> JSON:
    """Train with as many processes as the settings name, at every learning rate, and measure what validation chose.

    Raises:
        StudyError: if a worker fails for another reason than a loss that became infinite, with what it raised.
    """
    settings = task.settings
    images = cache.images(settings["data"])
    found = [_at_learning_rate(settings, lr, images.to("cpu"), tick) for lr in settings["training"]["lr"]]
    best = max(found, key=lambda one: one.scores[one.epoch].rank)
    network = cache.untrained(settings["network"], images, settings["seed"])
    if best.tensors is not None:
        network.load_state_dict(safetensors.torch.load(best.tensors))
    seconds = {"members": 0.0, "fuse": best.fuse, "recover": 0.0, "tune": best.seconds - best.fuse}
    return {
        "lr": best.lr,
        "epoch": best.epoch,
        "curve": [score.accuracy for score in best.scores],
        "tried": [[one.lr, None if one.diverged else max(score.accuracy for score in one.scores)] for one in found],
        "validation": scores_json(best.scores[best.epoch]),
        "test": scores_of(network.to(cache.device), images.test),
        "seconds": seconds | {"search": sum(one.seconds for one in found)},
    }


def _at_learning_rate(settings: JSON, lr: float, images: Images, tick: Tick) -> _SynchronousRun:
    run, started = _SynchronousRun(lr), time.perf_counter()
    workers, epochs = settings["workers"], settings["training"]["epochs"]
    job = {**settings, "lr": lr, "threads": max(1, torch.get_num_threads() // workers)}

    def add(report: Report) -> None:
        run.add(report)
        if len(run.scores) > 1:
            tick(f"epoch {len(run.scores) - 1} of {epochs}")

    try:
        if workers == 1:
            with torch.random.fork_rng():
                train_worker(0, job, images, add)
        else:
            _spawned(job, images, add)
    except TrainingDiverged:
        run.diverged = True
    run.seconds = time.perf_counter() - started
    return run


def _spawned(job: JSON, images: Images, add: Callable[[Report], None]) -> None:
    """Run the workers, each in a process of its own; if one fails, the others are ended."""
    reports = torch.multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="neurograft-workers-") as place:
        given = (job, images, reports, f"file://{place}/meeting")
        start: Any = spawn
        workers = start(_worker, given, job["workers"], join=False, daemon=True)
        failed, over = None, False
        while not over:
            try:
                over = workers.join(timeout=0.1)
            except ProcessException as error:
                failed, over = error, True
            while not reports.empty():
                add(reports.get())
    if failed is not None and TrainingDiverged.__name__ in failed.msg:
        raise TrainingDiverged(failed.msg) from failed
    if failed is not None:
        raise StudyError(f"worker {failed.error_index} of {job['workers']} failed: {failed.msg[-500:]}") from failed


def _worker(number: int, job: JSON, images: Images, reports: Any, meeting: str) -> None:
    torch.set_num_threads(job["threads"])
    with worker_group(number, job["workers"], meeting):
        train_worker(number, job, images, reports.put)
    os._exit(0)  # all is written; the end of an interpreter may meet a thread of gloo's that still runs, and abort


@contextmanager
def worker_group(number: int, workers: int, meeting: str) -> Iterator[None]:
    """A process group of workers on this host; `meeting` is where they find each other, as torch takes it."""
    if "lo" in (name for _, name in socket.if_nameindex()):  # the workers are all here, whatever this host is called
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=number, world_size=workers, timeout=WAIT)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def train_worker(number: int, job: JSON, images: Images, report: Callable[[Report], object]) -> None:
    """One worker: train on its part, give its network to the others, go on from what all were fused into.

    All workers start from the same network. In every epoch each trains on its own part of the images with momentum that
    starts anew, for a fused neuron has none. Worker 0 fuses, measures on the validation images and sends the fused
    network to all. Everything is computed on the CPU.

    Args:
        number: of the worker.
        job: the trial's settings, with `lr` of this run.
        images: all of them.
        report: called by worker 0 before the first and after each epoch.

    Raises:
        TrainingDiverged: if the loss of a worker becomes NaN or infinite.
    """
    training, seed = job["training"], job["seed"]
    torch.manual_seed(seed)
    network = make_network(job["network"], images.shape, images.classes)
    part = shards(images.train, job["parts"], seed=seed)[number]
    factor = factor_of(training["schedule"], training["epochs"])
    best = evaluate(network, images.validation.batches())
    if number == 0:
        report((best, 0.0, None))
    for epoch in range(1, training["epochs"] + 1):
        network = finetune(
            network,
            part.batches(training["batch"], shuffle=True, augment=job["data"]["augment"]),
            epochs=1,
            lr=job["lr"] * factor(epoch - 1),
            momentum=training["momentum"],
            weight_decay=training["weight_decay"],
            seed=(seed * 1000 + number) * 10_000 + epoch,
            progress=False,
        )
        seconds = 0.0
        if job["synchronous"] is not None:
            network, seconds = synchronised(network, job["synchronous"], example_of(images), seed)
        if number == 0:
            scores = evaluate(network, images.validation.batches())
            better = scores.rank > best.rank
            report((scores, seconds, packed(network, {}) if better else None))
            best = scores if better else best


def synchronised(network: nn.Module, method: str, example: Tensor, seed: int = 0) -> tuple[nn.Module, float]:
    """Fuse the networks of all processes of the group; every process gets the same one, and the seconds it took.

    Args:
        network: this process's; all have the same shapes.
        method: of fusing.
        example: what the networks take.
        seed: of fusing.
    """
    started = time.perf_counter()
    first = torch.distributed.get_rank() == 0
    everyone: list[Any] | None = [None] * torch.distributed.get_world_size() if first else None
    mine = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    torch.distributed.gather_object(mine, everyone)
    message: list[Any] = [None]
    if everyone is not None:
        members = [_with_tensors(network, tensors) for tensors in everyone]
        message = [fuse(members, example, method, recover=None, seed=seed).state_dict()]
    torch.distributed.broadcast_object_list(message)
    return _with_tensors(network, message[0]), time.perf_counter() - started


def _with_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    other = copy.deepcopy(network)
    other.load_state_dict(tensors)
    return other
