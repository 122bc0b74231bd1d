"""Data-parallel training on torch.distributed whose workers are fused into one network after each epoch."""

import copy
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neurograft.checkpoints.loading import load_into
from neurograft.checkpoints.writing import write_checkpoint
from neurograft.errors import StudyError, TrainingDiverged
from neurograft.evaluating.evaluation import Scores, evaluate
from neurograft.fusing import fuse
from neurograft.training.finetuning import finetune
from neurograft.training.learning_rates import factor_of
from neurograft_experiments.data import Images, shards
from neurograft_experiments.trial_cache import Lab, Tick, example_of, make_network, rank, scores_json, scores_of
from neurograft_experiments.trials import JSON, Task

POLL = 0.2
"""Seconds between two looks at how far the workers are."""
WAIT = timedelta(minutes=30)
"""How long a worker waits for the slowest before it gives up."""


def synchronous_trial(task: Task, lab: Lab, tick: Tick) -> JSON:
    """Train with as many processes as the settings say, at every step size, and measure what validation chose."""
    settings = task.settings
    images = lab.images(settings["data"])
    found = [_at_step_size(settings, lr, lab, tick) for lr in settings["training"]["lr"]]
    best = max(found, key=lambda one: rank(one.validation))
    network = lab.untrained(settings["network"], images, settings["seed"])
    if best.tensors is not None:
        load_into(network, best.tensors)
    test = scores_of(network.to(lab.device), images.test)
    for one in found:
        one.folder.cleanup()
    return {
        "lr": best.lr,
        "epoch": best.epoch,
        "curve": best.curve,
        "tried": [[one.lr, None if one.diverged else max(one.curve)] for one in found],
        "validation": best.validation,
        "test": test,
        "seconds": {
            "members": 0.0,
            "fuse": best.fuse,
            "recover": 0.0,
            "tune": best.seconds - best.fuse,
            "search": sum(one.seconds for one in found),
        },
    }


@dataclass(frozen=True, eq=False)
class _Run:
    """What training at one step size left behind; `tensors` is None where the untrained network stayed the best."""

    lr: float
    epoch: int
    curve: list[float]
    validation: JSON
    diverged: bool
    fuse: float
    seconds: float
    tensors: Path | None
    folder: "tempfile.TemporaryDirectory[str]"


def _at_step_size(settings: JSON, lr: float, lab: Lab, tick: Tick) -> _Run:
    folder = tempfile.TemporaryDirectory(prefix="neurograft-workers-")
    place, started = Path(folder.name), time.perf_counter()
    workers = settings["workers"]
    images = lab.images(settings["data"]).to("cpu")
    job = {**settings, "lr": lr, "threads": max(1, torch.get_num_threads() // workers)}
    report, seen = place / "epochs.jsonl", 0
    for _ in _alone(job, images, place) if workers == 1 else _running(job, images, place):
        for line in _lines(report)[seen:]:
            seen += 1
            if line["epoch"]:
                tick(f"epoch {line['epoch']} of {settings['training']['epochs']}")
    lines = _lines(report)
    scores = [line["validation"] for line in lines]
    chosen = max(range(len(scores)), key=lambda number: rank(scores[number]))
    return _Run(
        lr=lr,
        epoch=chosen,
        curve=[score["accuracy"] for score in scores],
        validation=scores[chosen],
        diverged=(place / "diverged").exists(),
        fuse=sum(line["fuse"] for line in lines),
        seconds=time.perf_counter() - started,
        tensors=place / "best.safetensors" if chosen else None,
        folder=folder,
    )


def _alone(job: JSON, images: Images, place: Path) -> Iterator[None]:
    """What one worker does needs no process of its own."""
    with torch.random.fork_rng(), suppress(TrainingDiverged):
        _epochs(0, job, images, place)
    yield


def _running(job: JSON, images: Images, place: Path) -> Iterator[None]:
    """Start the workers, and come back now and then until all are done.

    Raises:
        StudyError: if a worker fails for another reason than a loss that became infinite, with the end of what it said.
    """
    workers = job["workers"]
    torch.save(images, place / "images.pt")
    (place / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-W", "ignore", "-m", "neurograft_experiments.synchronous", str(place)]
    errors = [place / f"worker-{number}.txt" for number in range(workers)]
    started = []
    try:
        for number, said in enumerate(errors):
            with said.open("wb") as file:
                started.append(subprocess.Popen([*command, str(number)], stdin=subprocess.DEVNULL, stderr=file))
        while any(worker.poll() is None for worker in started):
            failed = [number for number, worker in enumerate(started) if worker.returncode]
            if failed:
                break
            time.sleep(POLL)
            yield
        failed = [number for number, worker in enumerate(started) if worker.returncode]
        if failed and not (place / "diverged").exists():
            end = errors[failed[0]].read_text(encoding="utf-8", errors="replace").strip()[-500:]
            raise StudyError(f"worker {failed[0]} of {workers} failed: {end or 'it was killed'}")
        yield
    finally:
        for worker in started:
            worker.kill()
            worker.wait()


def _lines(file: Path) -> list[JSON]:
    """The whole lines of a file that is being written."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def work(place: Path, number: int) -> None:
    """One worker: train on its part, give its network to the others, go on from what all were fused into.

    All workers start from the same network. In every epoch each trains on its own part of the images with momentum that
    starts anew, for a fused neuron has none. Worker 0 fuses, measures on the validation images and sends the fused
    network to all. Everything is computed on the CPU.

    Args:
        place: a folder with `job.json` and `images.pt`; worker 0 writes its report and the best network there.
        number: of the worker.

    Raises:
        TrainingDiverged: if the loss of a worker becomes NaN or infinite; a file "diverged" says so to who started it.
    """
    settings = json.loads((place / "job.json").read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    images = torch.load(place / "images.pt", weights_only=False, mmap=True)
    with _group(number, settings["workers"], place):
        _epochs(number, settings, images, place)


@contextmanager
def _group(number: int, workers: int, place: Path) -> Iterator[None]:
    if "lo" in (name for _, name in socket.if_nameindex()):  # the workers are all here, whatever this host is called
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    start = f"file://{place / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=start, rank=number, world_size=workers, timeout=WAIT)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _epochs(number: int, settings: JSON, images: Images, place: Path) -> None:
    training, seed, parent = settings["training"], settings["seed"], os.getppid()
    torch.manual_seed(seed)
    network = make_network(settings["network"], images.shape, images.classes)
    part = shards(images.train, settings["parts"], seed=seed)[number]
    factor = factor_of(training["schedule"], training["epochs"])
    best = _report(place, 0, network, images, 0.0, None) if number == 0 else None
    for epoch in range(1, training["epochs"] + 1):
        if os.getppid() != parent:  # who started this is gone: nobody will read the result
            return
        try:
            network = finetune(
                network,
                part.batches(training["batch"], shuffle=True, augment=settings["data"]["augment"]),
                epochs=1,
                lr=settings["lr"] * factor(epoch - 1),
                momentum=training["momentum"],
                weight_decay=training["weight_decay"],
                seed=(seed * 1000 + number) * 10_000 + epoch,
                progress=False,
            )
        except TrainingDiverged:
            (place / "diverged").touch()
            raise
        seconds = 0.0
        if settings["synchronous"] is not None:
            network, seconds = synchronised(network, settings["synchronous"], example_of(images), seed)
        if number == 0:
            best = _report(place, epoch, network, images, seconds, best)


def synchronised(network: nn.Module, method: str, example: Tensor, seed: int = 0) -> tuple[nn.Module, float]:
    """Fuse the networks of all processes of the group; every process gets the same one, and the seconds it took.

    Args:
        network: this process's; all have the same shapes.
        method: of fusing.
        example: what the networks take.
        seed: of fusing.
    """
    started = time.perf_counter()
    mine = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    first = torch.distributed.get_rank() == 0
    everyone: list[Any] | None = [None] * torch.distributed.get_world_size() if first else None
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


def _report(place: Path, epoch: int, network: nn.Module, images: Images, seconds: float, best: Scores | None) -> Scores:
    """Write a line about an epoch, and the network if it is the best so far; gives the scores of the best."""
    scores = evaluate(network, images.validation.batches())
    found = scores_json(scores)
    if best is not None and rank(found) > rank(scores_json(best)):
        write_checkpoint(network, place / "best.safetensors", {})
        best = scores
    line = json.dumps({"epoch": epoch, "validation": found, "fuse": seconds})
    with (place / "epochs.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    return scores if best is None else best


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
