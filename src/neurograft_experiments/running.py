"""`run_task`: train a member, or make, recover, tune and measure the network of a trial."""

import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from neurograft.evaluating.ensemble import Ensemble
from neurograft.reporting.provenance import provenance
from neurograft_experiments.costs import costs_trial
from neurograft_experiments.data import Images, Split, label_groups, shards, special_class
from neurograft_experiments.devices import choose_device
from neurograft_experiments.initial_models import Ingredients, make_start
from neurograft_experiments.synchronous import synchronous_trial
from neurograft_experiments.trial_cache import InitialModel, TrialCache, cache_of, packed, scores_of
from neurograft_experiments.trials import JSON, MemberNetworks, Task, TaskResult, Tick
from neurograft_experiments.tunings import Tuned, finetuned, outputs_of, tuned
from neurograft_experiments.unlabelled import without_labels


def run_task(
    task: Task,
    members: MemberNetworks,
    tick: Tick = lambda _: None,
    *,
    data_folder: Path | None = None,
    device: str = "cpu",
) -> TaskResult:
    """Do one task; every random number comes from the seeds in its settings.

    Args:
        task: what to do.
        members: those a trial needs.
        tick: called with a few words after every epoch of training.
        data_folder: where local copies of data sets lie.
        device: as `choose_device` takes it, on the host that does the work.

    Returns:
        A row for a trial; for a member its record, and its tensors.

    Raises:
        NeurograftError: as data, networks, fusion and training do.
    """
    cache = cache_of(members.folder, data_folder, choose_device(device))
    tensors = b""
    if task.kind == "member":
        found, tensors = _member(task, cache, members, tick)
    elif "costs" in task.settings:
        tick("measuring in a process of its own")
        found = costs_trial(task, torch.get_num_threads())
    elif "synchronous" in task.settings:
        found = synchronous_trial(task, cache, tick)
    else:
        found = _trial(task, cache, members, tick)
    named = {"key": task.key, "kind": task.kind, **task.labels}
    return TaskResult({**named, **found, "configuration": task.settings, **provenance()}, tensors)


def _member(task: Task, cache: TrialCache, members: MemberNetworks, tick: Tick) -> tuple[JSON, bytes]:
    settings = task.settings
    images = cache.images(settings["data"])
    started = time.perf_counter()
    network = cache.untrained(settings["network"], images, settings["initial_seed"])
    training = settings["training"] | {"lr": [settings["training"]["lr"]], "augment": settings["data"]["augment"]}
    part = part_of(images.train, settings["part"])
    states = _states(task, members)
    trained = finetuned(network, training, images, seed=settings["seed"], tick=tick, part=part, checkpoint=states)
    seconds = {"members": time.perf_counter() - started}
    tensors = packed(trained.network, {"key": task.key, "label": task.label, "commit": provenance()["commit"]})
    return _training_of(trained) | {"seconds": seconds}, tensors


def _states(task: Task, members: MemberNetworks) -> Path | None:
    """Where the state of a long training is kept, so that one that was killed goes on."""
    return None if members.unfinished is None else members.unfinished / f"{task.key}.pt"


def part_of(split: Split, part: JSON | None) -> Split:
    """The part of the training images that a member sees, drawn by the seed in the settings."""
    if part is None:
        return split
    seed: int = part.get("seed", 0)
    if part["kind"] == "parts":
        return shards(split, part["of"], seed=seed)[part["number"]]
    if part["kind"] == "skill":
        return special_class(split, part["skill"], share=part["share"], seed=seed)[part["number"]]
    divided = split.subset(range(part["reserve"], len(split)))
    if part["kind"] == "all":
        return divided
    if part["kind"] == "labels":
        return label_groups(divided, part["of"], others=part["others"], seed=seed)[part["number"]]
    return shards(divided, part["of"], concentration=part["concentration"], seed=seed)[part["number"]]


def start_of(task: Task, members: MemberNetworks) -> InitialModel:
    """What a trial measures or trains on, with its plan: the same network that `run_task` made for its row."""
    return make_start(_ingredients(task, cache_of(members.folder, None, torch.device("cpu")), members))


def _ingredients(task: Task, cache: TrialCache, members: MemberNetworks, tick: Tick = lambda _: None) -> Ingredients:
    images = cache.images(task.settings["data"])
    entries = task.settings["members"]
    networks = [cache.member(entry, images, members) for entry in entries]
    records = [_record(entry, members, network, images) for entry, network in zip(entries, networks, strict=True)]
    parts = [part_of(images.train, entry["part"]) for entry in entries if "part" in entry]
    return Ingredients(task.settings, images, parts, networks, records, cache, tick)


def _record(entry: JSON, members: MemberNetworks, network: nn.Module, images: Images) -> JSON:
    """What training a member gave; a pruned copy is measured on validation anew."""
    record = members.row(entry["key"])
    return record if "pruned" not in entry else record | {"validation": scores_of(network, images.validation)}


def _trial(task: Task, cache: TrialCache, members: MemberNetworks, tick: Tick) -> JSON:
    settings = task.settings
    of = _ingredients(task, cache, members, tick)
    made = make_start(of)
    trained = {entry["key"]: r["seconds"]["members"] for entry, r in zip(settings["members"], of.records, strict=True)}
    if settings["tuning"] is None:
        validation = scores_of(made.network, of.images.validation)
        found: JSON = {"lr": None, "epoch": 0, "curve": [validation["accuracy"]], "validation": validation}
        network, tune, search = made.network, 0.0, 0.0
    else:
        tuning = {**settings["tuning"], "augment": settings["data"]["augment"]}
        asked = {name: settings.get(name) for name in ("members", "data", "calibration", "inputs")}
        asked |= {f"tuning {name}": tuning.get(name) for name in ("teachers", "inputs")}
        images = of.images
        if tuning.get("inputs") == "calibration":
            images = replace(images, train=without_labels(of.unlabelled))
        result = tuned(
            made.network,
            tuning,
            images,
            of.members,
            gated=Ensemble(of.members, statistics=of.statistics) if tuning.get("teachers") == "statistics" else None,
            seed=settings["seed"],
            tick=tick,
            checkpoint=_states(task, members),
            outputs=lambda teacher, split: cache.keep("outputs", asked, lambda: outputs_of(teacher, split)),
        )
        found, network = _training_of(result), result.network
        tune, search = result.seconds, result.search
    seconds = {"members": sum(trained.values()), "fuse": made.fuse, "recover": made.recover, "tune": tune}
    test = scores_of(network, of.images.test)
    return found | {"test": test, "training": len(of.images.train), "seconds": seconds | {"search": search}}


def _training_of(result: Tuned) -> JSON:
    return {
        "lr": result.lr,
        "epoch": result.epoch,
        "curve": list(result.curve),
        "validation": result.validation,
        "tried": [[lr, accuracy] for lr, accuracy in result.tried.items()],
    }
