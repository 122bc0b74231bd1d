"""From a study to tasks: what is trained and measured, each task known by a key of everything that determines it."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from neurograft.errors import StudyError
from neurograft.escaping import terminal
from neurograft_experiments.rows import Row, looks_at_images, rows_of, starts_of
from neurograft_experiments.store import Store
from neurograft_experiments.study import MemberSettings, Start, StudySettings, Training
from neurograft_experiments.study_file import Point, Study

FORMAT = 1
"""Counted up when the same settings no longer give the same result."""
MOST_TASKS = 50_000
"""Of a study in a preset."""

JSON: TypeAlias = dict[str, Any]
TRAINING = tuple(Training.model_fields)
OF_A_MEMBER = ("continue", "keep", "prune")
"""Starts that are made of one member, which needs no seed."""


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to train or measure.

    Attributes:
        key: of everything that determines the result: equal keys, equal results.
        kind: "member" trains a network that trials share; "trial" gives a row.
        label: for people.
        needs: keys of the members it reads.
        settings: all that the result depends on, as JSON.
        labels: what else the row holds: study, preset, row, varied, … Not part of the key.
        epochs: of training, for progress bars.
    """

    key: str
    kind: Literal["member", "trial"]
    label: str
    needs: tuple[str, ...]
    settings: JSON
    labels: JSON
    epochs: int


Tick: TypeAlias = Callable[[str], None]
"""Called once per epoch with what is being done."""


class MemberNetworks(Protocol):
    """Where a task finds the members it needs: the store, or what Ray carried to another host."""

    @property
    def folder(self) -> Path:
        """The store's."""

    @property
    def unfinished(self) -> Path | None:
        """A folder for the states of trainings that are not done; None if this host has none."""

    def row(self, key: str) -> JSON:
        """The record of a finished member."""

    def tensors(self, key: str) -> bytes:
        """Its tensors, as a safetensors file has them."""


@dataclass(frozen=True, eq=False)
class TaskResult:
    """What a task gives: the row of a trial, or a member's record and its tensors, the bytes of a safetensors file."""

    row: JSON
    tensors: bytes = b""


def tasks_of(study: Study, preset: str, seeds: Sequence[int] | None = None) -> tuple[Task, ...]:
    """All tasks of a preset, each key once, members first.

    Args:
        study: a checked study.
        preset: one of its presets.
        seeds: instead of the preset's own.

    Raises:
        StudyError: if the study has no such preset, or more tasks than anybody can run.

    Example:
        >>> from neurograft_experiments.study_file import load_study
        >>> tasks = tasks_of(load_study("comparison"), "smoke", seeds=[0])
        >>> [task.kind for task in tasks].count("member")
        2
    """
    found: dict[str, Task] = {}
    for task in _all_tasks(study, preset, seeds):
        found.setdefault(task.key, task)
    return tuple(sorted(found.values(), key=lambda task: task.kind != "member"))


def study_rows(study: Study, preset: str, store: Store, seeds: Sequence[int] | None = None) -> list[JSON]:
    """The finished rows of a study in its own order and under its own labels.

    A result that several studies, or several points of one, share is stored once, and comes here under each label.
    """
    return [store.row(task.key) | task.labels for task in trials_of(study, preset, seeds) if store.has(task.key)]


def trials_of(study: Study, preset: str, seeds: Sequence[int] | None = None) -> list[Task]:
    """Every trial of a preset in the study's own order, under each of its labels: what a report has places for."""
    return [task for task in _all_tasks(study, preset, seeds) if task.kind == "trial"]


def _all_tasks(study: Study, preset: str, seeds: Sequence[int] | None) -> Iterator[Task]:
    for number, task in enumerate(_each_task(study, preset, seeds)):
        if number == MOST_TASKS:
            raise StudyError(f"{terminal(study.name)}, preset {preset}: more than {MOST_TASKS:,} trials and members")
        yield task


def _each_task(study: Study, preset: str, seeds: Sequence[int] | None) -> Iterator[Task]:
    for point in study.points(preset):
        for seed in seeds if seeds is not None else point.settings.seeds:
            labels = {
                "study": study.name,
                "preset": preset,
                "case": point.case,
                "network": point.settings.network.get("name", ""),
                "data": point.settings.data.source,
                "seed": seed,
                "members": point.settings.members.count,
                "varied": dict(point.varied),
            }
            yield from _TASKS[point.settings.kind](point, seed, labels)


def _pipeline(point: Point, seed: int, labels: JSON) -> Iterator[Task]:
    settings = point.settings
    members = member_tasks(settings, seed, labels)
    yield from members
    entries = _entries(settings, members)
    pooled = _pooled(settings, seed, labels)
    if any(start.method == "pooled" for start in settings.starts.values()):
        yield pooled
    for row in rows_of(settings):
        needed = _needed(row, entries)
        if row.start.method == "pooled":
            needed = [{"key": pooled.key, "network": settings.network}]
        elif _reads_parts(row, settings):
            parts = [task.settings["part"] for task in members]
            needed = [entry | {"part": part} for entry, part in zip(needed, parts, strict=True)]
        tuning = getattr(settings.tuning, row.tuning) if row.tuning != "none" else None
        epochs = 0
        if tuning is not None:
            spent = row.start.tune_epochs * row.start.steps.count("tune")
            tuning = tuning.model_dump(mode="json") | {"kind": row.tuning, "epochs": max(0, tuning.epochs - spent)}
            if tuning.get("inputs") == "training":  # as it was when there was no choice: keys stay what they were
                del tuning["inputs"]
            epochs = len(tuning["lr"]) * tuning["epochs"]
        own = {
            "data": settings.data.model_dump(mode="json"),
            "network": settings.network,
            "members": needed,
            "start": _start(row.start, settings, seed),
            "recovery": row.recovery,
            "tuning": tuning,
        }
        if _reads_inputs(row, settings):
            own["calibration"] = settings.calibration
            if settings.inputs != "training":
                own["inputs"] = settings.inputs
        if tuning is not None:
            own["seed"] = seed
        named = {"row": row.row, "recovery": row.recovery, "tuning": row.tuning}
        yield _task("trial", own, labels | named, [entry["key"] for entry in needed], epochs)


def member_tasks(settings: StudySettings, seed: int, labels: Mapping[str, Any]) -> list[Task]:
    """The networks that are trained, before any is copied or pruned."""
    members = settings.members
    tasks = []
    for number in range(1 if members.copies != "none" else members.count):
        own = {
            "data": settings.data.model_dump(mode="json", exclude={"test"}),
            "network": settings.network | (dict(members.networks[number]) if members.networks else {}),
            "training": {name: getattr(members, name) for name in TRAINING} | {"lr": members.lr},
            "initial_seed": member_seed(seed, 0 if members.initialisation == "same" else number),
            "seed": member_seed(seed, number),
            "part": _part(members, number, seed),
        }
        tasks.append(_task("member", own, dict(labels) | {"member": number}, (), members.epochs))
    return tasks


def member_seed(seed: int, number: int) -> int:
    """The seed of one member of a study's seed; the first members of a larger ensemble are those of a smaller one."""
    return 1000 * seed + number


def _part(members: MemberSettings, number: int, seed: int) -> JSON | None:
    split = members.split
    if split is None:
        return None
    where = {"kind": split.kind, "number": number, "seed": seed}
    if split.kind == "skill":
        return where | {"skill": split.skill, "share": split.share}
    where["of"] = members.count
    if split.kind == "parts":
        return where
    own = {"others": split.others} if split.kind == "labels" else {"concentration": split.concentration}
    return where | own | {"reserve": split.reserve}


def _pooled(settings: StudySettings, seed: int, labels: Mapping[str, Any]) -> Task:
    """The network that is trained on the images of all members."""
    split = settings.members.split
    members = settings.members.model_copy(update={"split": None, "networks": None, "copies": "same"})
    task = member_tasks(settings.model_copy(update={"members": members}), seed, labels)[0]
    if split is None or split.kind not in ("labels", "dirichlet"):
        return task
    own = {name: value for name, value in task.settings.items() if name not in ("format", "kind")}
    own["part"] = {"kind": "all", "reserve": split.reserve}
    return _task("member", own, dict(labels) | {"member": "of all data"}, (), settings.members.epochs)


def _reads_inputs(row: Row, settings: StudySettings) -> bool:
    """Whether a row depends on the calibration inputs."""
    distill = settings.tuning.distill
    return (
        row.recovery not in ("none", "data_free")
        or looks_at_images(row.start.method, row.start.options)
        or (row.tuning == "distill" and distill is not None and distill.inputs == "calibration")
    )


def _reads_parts(row: Row, settings: StudySettings) -> bool:
    """Whether a row depends on the images that each member was trained on, beside the members themselves."""
    distill = settings.tuning.distill
    return (
        row.start.weights == "samples"
        or bool(row.start.statistics)
        or (settings.inputs == "statistics" and _reads_inputs(row, settings))
        or (row.tuning == "distill" and distill is not None and distill.teachers == "statistics")
    )


def _entries(settings: StudySettings, trained: Sequence[Task]) -> list[JSON]:
    """What a trial reads of its members: the key, the network, and how much of it is pruned away."""
    entries = [{"key": task.key, "network": task.settings["network"]} for task in trained]
    if settings.members.copies == "same":
        return entries * settings.members.count
    if settings.members.copies == "pruned":
        return [entries[0] | {"pruned": settings.members.ratio}, entries[0]]
    return entries


def _needed(row: Row, entries: list[JSON]) -> list[JSON]:
    """Only the members that the row reads, so that rows which agree have one key."""
    if row.start.method == "untrained" and row.tuning != "distill":
        return []
    if row.start.method in ("continue", "prune") and row.start.member != "best" and row.tuning != "distill":
        return [entries[row.start.member]]
    return entries


def _start(start: Start, settings: StudySettings, seed: int) -> JSON:
    """What makes the start: of `Start` only what its method reads."""
    found: JSON = {"method": start.method}
    if start.options:
        found["options"] = start.options
    if start.method in OF_A_MEMBER:
        found["member"] = start.member
    if start.method == "sequence":
        found |= {"steps": list(start.steps), "tune_epochs": start.tune_epochs}
        finetune = settings.tuning.finetune
        if "tune" in start.steps and finetune is not None:
            found["tune"] = finetune.model_dump(mode="json", exclude={"epochs"})
    if start.method not in OF_A_MEMBER:
        if settings.mixing is not None:
            found["mixing"] = settings.mixing
        if start.weights != "method":
            found["weights"] = start.weights
        if start.statistics:
            found["statistics"] = start.statistics
        if start.method != "ensemble":
            found["seed"] = seed
    return found


def _synchronous(point: Point, seed: int, labels: JSON) -> Iterator[Task]:
    settings = point.settings
    assert settings.synchronous is not None
    assert settings.tuning.finetune is not None
    training = settings.tuning.finetune.model_dump(mode="json")
    count = settings.synchronous.workers
    alone: dict[str, tuple[str | None, int, int]] = {"one worker, all images": (None, 1, 1)}
    alone["one worker, its part"] = (None, 1, count)
    for row, (method, workers, parts) in (
        alone | {name: (name, count, count) for name in settings.synchronous.methods}
    ).items():
        own = {
            "synchronous": method,
            "workers": workers,
            "parts": parts,
            "data": settings.data.model_dump(mode="json"),
            "network": settings.network,
            "training": training,
            "seed": seed,
        }
        named = {"row": row, "recovery": "none", "tuning": "finetune", "members": settings.synchronous.workers}
        yield _task("trial", own, labels | named, (), len(training["lr"]) * training["epochs"])


def _costs(point: Point, seed: int, labels: JSON) -> Iterator[Task]:
    settings = point.settings
    for row, start in starts_of(settings).items():
        own = {
            "costs": start.method,
            "options": start.options,
            "data": settings.data.model_dump(mode="json"),
            "network": settings.network,
            "count": settings.members.count,
            "seed": seed,
        }
        yield _task("trial", own, labels | {"row": row, "recovery": "none", "tuning": "none"}, (), 0)


_TASKS = {"pipeline": _pipeline, "synchronous": _synchronous, "costs": _costs}


def _task(kind: Literal["member", "trial"], own: JSON, labels: JSON, needs: Iterable[str], epochs: int) -> Task:
    settings = json.loads(json.dumps({"format": FORMAT, "kind": kind, **own}))
    return Task(key_of(settings), kind, _label(kind, labels), tuple(dict.fromkeys(needs)), settings, labels, epochs)


def key_of(settings: Mapping[str, Any]) -> str:
    """A short key of JSON settings, whatever the order of their keys.

    Example:
        >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
        True
    """
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _label(kind: str, labels: JSON) -> str:
    parts = [labels["network"], labels["data"], *(f"{key} {value}" for key, value in labels["varied"].items())]
    where = f"{', '.join(parts)}, seed {labels['seed']}"
    if kind == "member":
        return f"{where}: training member {labels['member']}"
    how = {"none": "", "finetune": ", fine-tuned", "distill": ", distilled"}[labels["tuning"]]
    recovery = "" if labels["recovery"] == "none" else f" + {labels['recovery']}"
    return f"{where}: {labels['row']}{recovery}{how}"
