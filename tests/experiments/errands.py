"""Tasks that only write numbers, for the tests of the engines."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from neurograft_experiments.trials import TaskResult


@dataclass(frozen=True)
class Errand:
    key: str
    kind: str
    label: str
    needs: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    epochs: int = 1


def errands(members=3, trials=4):
    """`members` members, and for each `trials` trials that need it and its neighbour."""
    first = [Errand(f"m{m}", "member", f"member {m}", settings={"value": m + 1}) for m in range(members)]
    rest = [
        Errand(f"t{m}-{t}", "trial", f"trial {t} of {m}", (f"m{m}", f"m{(m + 1) % members}"), {"factor": t})
        for m in range(members)
        for t in range(trials)
    ]
    return (*first, *rest)


def do(task, members, tick):
    """A member keeps its value as a tensor; a trial reads its members' tensors and records."""
    settings = task.settings
    if "log" in settings:
        with Path(settings["log"]).open("a") as file:
            file.write(f"{task.key} {os.getpid()}\n")
    time.sleep(settings.get("seconds", 0))
    tick("working")
    if settings.get("fails"):
        raise RuntimeError("no such luck\nat all")
    if settings.get("dies"):
        os.kill(os.getpid(), 9)
    if task.kind == "member":
        tensors = safetensors.torch.save({"value": torch.tensor([float(settings["value"])])})
        return TaskResult({"doubled": 2 * settings["value"], "seconds": time.perf_counter()}, tensors)
    values = [float(safetensors.torch.load(members.tensors(key))["value"]) for key in task.needs]
    doubled = [members.row(key)["doubled"] for key in task.needs]
    return TaskResult({"sum": sum(values) * settings["factor"], "doubled": doubled, "seconds": time.perf_counter()})


def table(store):
    """The rows by key, without what differs from run to run."""
    return {row["key"]: (row["sum"], row["doubled"]) for row in store.rows()}
