"""Working through the tasks of a study on Ray: this machine's cores and GPUs, or a cluster that is running already."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from neurograft.errors import MissingExtra, OptionError, StoreError
from neurograft_experiments.engines import POLL, Work
from neurograft_experiments.progress import Watch
from neurograft_experiments.schedule import Outcome, Schedule, Task
from neurograft_experiments.store import Store
from neurograft_experiments.workbench import Answer, Home, perform, remove_leftovers

QUEUED = 2
"""Tasks handed to Ray per task that can run at a time: enough that no worker waits for this process."""


def run_on_ray(
    tasks: Sequence[Task],
    store: Store,
    work: Work,
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
        OptionError: no cluster answers there, or no task fits into it.
        StoreError: the disk is full or gone. What was finished before is safe.
        KeyboardInterrupt: the person has seen enough. As above.
    """
    schedule = Schedule(tasks, store)
    if not schedule.pending:
        return schedule.outcome()
    console = console or Console(quiet=True)
    with _cluster(address) as ray, Watch(console, schedule) as watch:
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
        if not _slots(ray, cpus, gpus):
            _too_small(ray, address, cpus, gpus, console)
        driver = _Driver(ray, schedule, store, work, watch, cpus, gpus, retries)
        with driver:
            while schedule.pending:
                driver.step()
                if fail_fast and schedule.outcome().failed:
                    break
    return schedule.outcome()


@dataclass
class _Driver:
    """Hands tasks to Ray and takes their results; ends what still runs when it is left."""

    ray: Any
    schedule: Schedule
    store: Store
    work: Work
    watch: Watch
    cpus: float
    gpus: float
    retries: int
    running: dict[Any, tuple[Task, ExitStack]] = field(default_factory=dict)
    lent: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> "_Driver":
        self._remote = self.ray.remote(perform)
        self._home = Home(self.store.folder.resolve(), self.store.sign())
        return self

    def __exit__(self, *ended: object) -> None:
        for reference, (_, claim) in self.running.items():
            with suppress(Exception):  # the cluster may be what failed
                self.ray.cancel(reference, force=True)
            claim.close()

    def step(self) -> None:
        """Hand out what there is room for, then take what is finished, waiting a moment for it."""
        slots = max(1, _slots(self.ray, self.cpus, self.gpus))
        self._hand_out(QUEUED * slots)
        if self.running:
            finished, _ = self.ray.wait(list(self.running), num_returns=1, timeout=POLL)
            for reference in finished:
                self._take(reference)
        elif self.schedule.pending:
            self.watch.wait(len(self.schedule.pending))
            time.sleep(POLL)
        if len(self.running) < slots:
            for task in self.schedule.refresh():
                self.watch.elsewhere(task)

    def _hand_out(self, limit: int) -> None:
        for task in self.schedule.ready():
            if len(self.running) >= limit:
                return
            claim = ExitStack()
            if not claim.enter_context(self.store.claim(task.key)):
                claim.close()
                continue
            if self.store.has(task.key):
                claim.close()
                self.schedule.finish(task)
                self.watch.elsewhere(task)
                continue
            self.schedule.start(task)
            self.watch.start(task)
            options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": self.retries, "name": task.label}
            threads = max(1, int(self.cpus))
            records = {key: self.store.row(key) for key in task.needs}
            tensors = [self._lend(key) for key in task.needs]
            reference = self._remote.options(**options).remote(task, self.work, threads, self._home, records, *tensors)
            self.running[reference] = (task, claim)

    def _lend(self, key: str) -> Any:
        """A member's file in the object store, once for all the trials that need it."""
        if key not in self.lent:
            import numpy

            self.lent[key] = self.ray.put(numpy.fromfile(self.store.member_path(key), dtype=numpy.uint8))
        return self.lent[key]

    def _take(self, reference: Any) -> None:
        task, claim = self.running.pop(reference)
        with claim:
            answer = self._answer(reference)
            if answer.full:
                raise StoreError(f"a worker's host cannot go on with {task.label}: {answer.error}. {self.store.safe()}")
            if answer.error is not None:
                self.store.fail(task.key, task.label, answer.error, answer.trace)
                self.watch.fail(task, answer.error, self.schedule.fail(task))
            else:
                if task.kind == "member":
                    self.store.add_member(task.key, answer.result, memoryview(answer.tensors))
                else:
                    self.store.add({**answer.result, "key": task.key})
                self.schedule.finish(task)
                self.watch.finish(task, answer.result, answer.seconds)
        for key in task.needs:
            if not any(key in other.needs for other in self.schedule.pending.values()):
                self.lent.pop(key, None)

    def _answer(self, reference: Any) -> Answer:
        try:
            answer: Answer = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            first = str(error).strip().split("\n")[0]
            text = f"its worker died {self.retries + 1} times, and Ray gave it up ({type(error).__name__}: {first})"
            return Answer(error=text, trace=str(error))
        return answer


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """A Ray that is connected, and left again if it was not connected before."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported: nothing is sent anywhere
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("--engine ray needs ray: pip install 'neurograft[cluster]'") from error
    if ray.is_initialized():
        yield ray
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _connect(ray, address)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"no Ray cluster answers at {address!r}" if address else "Ray does not start on this machine"
        start = "; start one with `ray start --head`, or leave out --address" if address else ""
        raise OptionError(f"{where}: {str(error).strip().splitlines()[0]}{start}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own there
    try:
        yield ray
    finally:
        ray.shutdown()
        if address is None:
            remove_leftovers()


def _connect(ray: Any, address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        ray.init(num_cpus=available_cpus(), include_dashboard=False, **quiet)
    else:
        ray.init(address=address, **quiet)


def available_cpus() -> int:
    """The CPUs this process may use, which under SLURM or taskset are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _slots(ray: Any, cpus: float, gpus: float) -> int:
    """How many tasks fit into the cluster at a time."""
    there = ray.cluster_resources()
    rooms = [there.get(name, 0.0) / each for name, each in (("CPU", cpus), ("GPU", gpus)) if each]
    return int(min(rooms, default=there.get("CPU", 1.0)))


def _too_small(ray: Any, address: str | None, cpus: float, gpus: float, console: Console) -> None:
    there = ray.cluster_resources()
    text = (
        f"a trial asks for {cpus:g} CPUs and {gpus:g} GPUs, the cluster has {there.get('CPU', 0):g} and "
        f"{there.get('GPU', 0):g}"
    )
    if address is None:
        raise OptionError(f"{text}: lower --cpus-per-trial or --gpus-per-trial")
    console.print(f"{text} at present: nothing starts before hosts join it", highlight=False)
