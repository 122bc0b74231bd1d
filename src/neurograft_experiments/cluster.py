"""Tasks of a study on Ray: this machine's cores and GPUs, or a cluster that is running already."""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from neurograft.errors import MissingExtra, OptionError, StudyError
from neurograft_experiments.engine import Outcome, TaskFunction, TaskQueue, work_through
from neurograft_experiments.progress import ProgressDisplay
from neurograft_experiments.store import Store
from neurograft_experiments.trials import Task, TaskResult

QUEUED = 2
"""Tasks handed to Ray per task that can run at a time: enough that no worker waits for this process."""
POLL = 1.0
"""Seconds between two looks at how large the cluster is."""


def run_on_ray(
    tasks: Sequence[Task],
    store: Store,
    work: TaskFunction,
    *,
    address: str | None = None,
    cpus: float = 1.0,
    gpus: float | None = None,
    retries: int = 3,
    fail_fast: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Do every task whose result is not in the store yet, as many at a time as the cluster has room for.

    Only this process reads and writes the store. Members travel to the workers through Ray's object store and back, so
    that the hosts need not share a disk (each must find the data sets by itself, in the same place). A trial starts as
    soon as its members are there; a member that several trials need is trained once. A worker that dies takes its task
    with it: Ray runs that task again, up to `retries` times, and then it counts as failed.

    Args:
        tasks: members and trials.
        store: where results are kept, prepared.
        work: does one task; every host must be able to import it.
        address: of a cluster (`auto`, `host:port` or `ray://host:port`); None starts one on this machine, without a
            dashboard, and ends it afterwards.
        cpus: CPUs of each task, and torch's threads in it (one at least).
        gpus: GPUs of each task; fractions share a GPU. None: 1 if the cluster has any, else 0.
        retries: how often a task is run again when its worker dies.
        fail_fast: stop at the first failure.
        console: where the progress is shown.

    Raises:
        MissingExtra: ray is not installed.
        OptionError: no cluster responds there, or no task fits into it.
        StoreError: as `run_in_process`.
        KeyboardInterrupt: the person has seen enough. What was finished before is safe.
    """
    queue = TaskQueue(tasks, store)
    if not queue.pending:
        return queue.outcome()
    with _cluster(address) as (ray, ours), ProgressDisplay(console, queue.pending.values()) as watch:
        each = {"CPU": cpus, "GPU": float("GPU" in ray.cluster_resources()) if gpus is None else gpus}
        pool = _Workers(ray, queue, store, work, each, retries, ours)
        if not pool.slots and address is None:
            raise OptionError(f"{pool.demand}: lower --cpus-per-trial or --gpus-per-trial")
        if not pool.slots and console is not None:
            console.print(f"{pool.demand} at present: nothing starts before hosts join it", highlight=False)
        with pool:
            return work_through(queue, store, pool, watch, fail_fast=fail_fast)


@dataclass(frozen=True)
class WorkerShare:
    """The members that a task needs, in Ray's object store; `folder` is the driver's, which this host may not see."""

    folder: Path
    records: Mapping[str, dict[str, Any]]
    references: Mapping[str, Any]

    @property
    def unfinished(self) -> Path | None:
        """States that are left there survive this worker."""
        return self.folder / "unfinished" if (self.folder / "unfinished").is_dir() else None

    def row(self, key: str) -> dict[str, Any]:
        """The record of a member."""
        return self.records[key]

    def tensors(self, key: str) -> bytes:
        """Its tensors; they travel when they are read."""
        import ray

        found: bytes = ray.get(self.references[key])
        return found


def perform(task: Task, work: TaskFunction, threads: int, members: WorkerShare) -> TaskResult:
    """Do one task in a worker process."""
    import torch

    torch.set_num_threads(threads)
    return work(task, members, lambda _: None)


@dataclass
class _Workers:
    """Hands tasks to Ray and takes their results; ends what still runs when it is left.

    Leaving a cluster ends our tasks there, so that they are cancelled only where we stay in it: Ray 2.60 ends the
    whole process if a task that is being cancelled completes at that moment.
    """

    ray: Any
    queue: TaskQueue
    store: Store
    work: TaskFunction
    each: Mapping[str, float]
    retries: int
    ours: bool
    running: dict[Any, Task] = field(default_factory=dict)
    lent: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *ended: object) -> None:
        for reference in () if self.ours else self.running:
            with suppress(Exception):  # the cluster may be what failed
                self.ray.cancel(reference)

    @property
    def slots(self) -> int:
        """How many tasks fit into the cluster at a time."""
        there = self.ray.cluster_resources()
        return int(min(there.get(name, 0.0) / count for name, count in self.each.items() if count))

    @property
    def demand(self) -> str:
        """What a trial requires, beside what there is."""
        there = self.ray.cluster_resources()
        return (
            f"a trial requires {self.each['CPU']:g} CPUs and {self.each['GPU']:g} GPUs, the cluster has "
            f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}"
        )

    @property
    def room(self) -> int:
        """How many more tasks may be handed over now."""
        return QUEUED * max(1, self.slots) - len(self.running)

    def start(self, task: Task) -> None:
        """Send a task, with references to the members it needs."""
        needed = {key for other in self.queue.pending.values() for key in other.needs}
        self.lent = {key: reference for key, reference in self.lent.items() if key in needed}
        for key in set(task.needs) - self.lent.keys():
            self.lent[key] = self.ray.put(self.store.tensors(key))
        records = {key: self.store.row(key) for key in task.needs}
        lent = WorkerShare(self.store.folder.resolve(), records, {key: self.lent[key] for key in task.needs})
        options = {"num_cpus": self.each["CPU"], "num_gpus": self.each["GPU"], "max_retries": self.retries}
        remote = self.ray.remote(perform).options(name=task.label, **options)
        self.running[remote.remote(task, self.work, max(1, int(self.each["CPU"])), lent)] = task

    def finished(self) -> Iterator[tuple[Task, TaskResult | Exception]]:
        """What has ended, after waiting a moment for it."""
        ended, _ = self.ray.wait(list(self.running), num_returns=1, timeout=POLL)
        for reference in ended:
            task = self.running.pop(reference)
            yield task, self._result(reference)

    def _result(self, reference: Any) -> TaskResult | Exception:
        try:
            result: TaskResult = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            cause: Exception = error.cause
            cause.__cause__ = error  # its traceback in the worker
            return cause
        except self.ray.exceptions.RayError as error:
            first = str(error).strip().split("\n")[0]
            died = f"its worker died {self.retries + 1} times, and Ray gave it up ({type(error).__name__}: {first})"
            return StudyError(died)
        return result


@contextmanager
def _cluster(address: str | None) -> Iterator[tuple[Any, bool]]:
    """A Ray that is connected, and left again if it was not connected before (second item)."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported: nothing is sent anywhere
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("--engine ray needs ray: pip install 'neurograft[cluster]'") from error
    if ray.is_initialized():
        yield ray, False
        return
    handler = signal.getsignal(signal.SIGTERM)
    here = {"num_cpus": available_cpus(), "include_dashboard": False}
    try:
        there: dict[str, Any] = here if address is None else {"address": address}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **there)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"no Ray cluster responds at {address!r}" if address else "Ray does not start on this machine"
        start = "; start one with `ray start --head`, or leave out --address" if address else ""
        raise OptionError(f"{where}: {str(error).strip().splitlines()[0]}{start}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own there
    try:
        yield ray, True
    finally:
        with suppress(Exception):  # what was computed is safe, whatever Ray meets on its way out
            ray.shutdown()


def available_cpus() -> int:
    """The CPUs this process may use, which under SLURM or taskset are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
