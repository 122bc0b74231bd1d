"""`run_task`: train a member, or make, recover, tune and measure what a trial asks for."""

import time
from functools import lru_cache
from pathlib import Path

import torch

from neurograft.checkpoints.writing import write_checkpoint
from neurograft.reporting.provenance import provenance
from neurograft_experiments.costs import costs_trial
from neurograft_experiments.data import Images, Split, shards, special_class
from neurograft_experiments.initial_models import Ingredients, make_start
from neurograft_experiments.synchronous import synchronous_trial
from neurograft_experiments.trial_cache import ANSWERS_KEPT, Lab, Made, MemberStore, Tick, keep, scores_of
from neurograft_experiments.trials import JSON, Task, key_of
from neurograft_experiments.tunings import Tuned, answers_of, finetuned, tuned


def run_task(
    task: Task,
    store: MemberStore,
    *,
    data_folder: Path | None = None,
    device: torch.device | str = "cpu",
    tick: Tick = lambda _: None,
) -> JSON:
    """Do one task; every random number comes from the seeds in its settings.

    Args:
        task: what to do.
        store: holds the members a trial needs; a member's tensors are written to `store.member_path(key)`.
        data_folder: where local copies of data sets lie.
        device: where to compute.
        tick: called with a few words after every epoch of training.

    Returns:
        A row for a trial; for a member its record, which the store keeps beside the tensors.

    Raises:
        NeurograftError: as data, networks, fusion and training do.
    """
    lab = _lab(store, data_folder, torch.device(device))
    result = _member(task, lab, tick) if task.kind == "member" else _TRIALS[_kind(task)](task, lab, tick)
    return {"key": task.key, "kind": task.kind, **task.labels, **result, "configuration": task.settings} | provenance()


@lru_cache(maxsize=1)
def _lab(store: MemberStore, data_folder: Path | None, device: torch.device) -> Lab:
    return Lab(store, data_folder, device)


def _kind(task: Task) -> str:
    return next(name for name in _TRIALS if name in task.settings)


def _member(task: Task, lab: Lab, tick: Tick) -> JSON:
    settings = task.settings
    images = lab.images(settings["data"])
    started = time.perf_counter()
    network = lab.untrained(settings["network"], images, settings["initial_seed"])
    augment = settings["data"]["augment"]
    training = {**settings["training"], "lr": [settings["training"]["lr"]], "augment": augment}
    part = part_of(images.train, settings["part"])
    checkpoint = lab.store.unfinished_path(task.key)
    trained = finetuned(network, training, images, seed=settings["seed"], tick=tick, part=part, checkpoint=checkpoint)
    path = lab.store.member_path(task.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(
        trained.network.cpu(), path, {"key": task.key, "label": task.label, "commit": provenance()["commit"]}
    )
    return _training_of(trained) | {"seconds": {"members": time.perf_counter() - started}}


def part_of(split: Split, part: JSON | None) -> Split:
    """The part of the training images that a member sees, drawn by the seed in the settings."""
    if part is None:
        return split
    if part["kind"] == "parts":
        return shards(split, part["of"], seed=part["seed"])[part["number"]]
    return special_class(split, part["skill"], share=part["share"], seed=part["seed"])[part["number"]]


def start_of(
    task: Task, store: MemberStore, *, data_folder: Path | None = None, device: torch.device | str = "cpu"
) -> Made:
    """What a trial measures or trains on, with its plan: the same network that `run_task` made for its row."""
    return make_start(_ingredients(task, _lab(store, data_folder, torch.device(device))))


def _ingredients(task: Task, lab: Lab, tick: Tick = lambda _: None) -> Ingredients:
    images = lab.images(task.settings["data"])
    entries = task.settings["members"]
    members = [lab.member(entry, images) for entry in entries]
    records = [_record(lab, entry, member, images) for entry, member in zip(entries, members, strict=True)]
    return Ingredients(task.settings, images, members, records, lab, tick)


def _trial(task: Task, lab: Lab, tick: Tick) -> JSON:
    settings = task.settings
    entries = settings["members"]
    found_in = _ingredients(task, lab, tick)
    images, members, records = found_in.images, found_in.members, found_in.records
    made = make_start(found_in)
    spent = sum(
        {entry["key"]: float(r["seconds"]["members"]) for entry, r in zip(entries, records, strict=True)}.values()
    )
    if settings["tuning"] is None:
        validation = scores_of(made.network, images.validation)
        found: JSON = {"lr": None, "epoch": 0, "curve": [validation["accuracy"]], "validation": validation}
        network, tune, search = made.network, 0.0, 0.0
    else:
        tuning = {**settings["tuning"], "augment": settings["data"]["augment"]}
        teachers = key_of({"members": entries, "data": settings["data"], "chosen": tuning.get("teachers")})
        result = tuned(
            made.network,
            tuning,
            images,
            members,
            seed=settings["seed"],
            tick=tick,
            checkpoint=lab.store.unfinished_path(task.key),
            ask=lambda teacher, split: keep(lab.answers, teachers, lambda: answers_of(teacher, split), ANSWERS_KEPT),
        )
        found, network = _training_of(result), result.network
        tune, search = result.seconds, result.search
    seconds = {"members": spent, "fuse": made.fuse, "recover": made.recover, "tune": tune, "search": search}
    return found | {
        "test": scores_of(network, images.test),
        "training": len(images.train),
        "seconds": seconds,
    }


def _record(lab: Lab, entry: JSON, member: torch.nn.Module, images: Images) -> JSON:
    """What training a member gave; a pruned copy is measured on validation anew."""
    record = lab.store.row(entry["key"])
    return record if "pruned" not in entry else record | {"validation": scores_of(member, images.validation)}


def _training_of(result: Tuned) -> JSON:
    return {
        "lr": result.lr,
        "epoch": result.epoch,
        "curve": list(result.curve),
        "validation": result.validation,
        "tried": [[lr, accuracy] for lr, accuracy in result.tried.items()],
    }


def _costs(task: Task, _: Lab, tick: Tick) -> JSON:
    tick("measuring in a process of its own")
    return costs_trial(task, torch.get_num_threads())


_TRIALS = {"start": _trial, "synchronous": synchronous_trial, "costs": _costs}
"""What a task's settings have -> how it is done."""
