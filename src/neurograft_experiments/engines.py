"""Working through the tasks of a study in this process, sharing them with other processes on the same folder."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.console import Console

from neurograft.errors import NeurograftError, StoreError
from neurograft_experiments.devices import choose_device
from neurograft_experiments.journal import of_the_disk
from neurograft_experiments.progress import Watch
from neurograft_experiments.schedule import Outcome, Schedule, Task
from neurograft_experiments.store import Store

if TYPE_CHECKING:
    from neurograft_experiments import trials

Tick: TypeAlias = Callable[[str], None]
"""Called once per epoch with what is being done."""
Work: TypeAlias = Callable[[Any, Store, Tick], Mapping[str, Any]]
"""Does a task: gives the row of a trial, or writes a member's tensors to `store.member_path` and gives its record."""

POLL = 1.0
"""Seconds between two looks at what other processes have finished."""


def run_in_process(
    tasks: Sequence[Task], store: Store, work: Work, *, fail_fast: bool = False, console: Console | None = None
) -> Outcome:
    """Do every task whose result is not in the store yet, one after the other.

    A task is claimed while it runs. Tasks that another process holds are left to it; if it dies, its claims are free
    again and its tasks are done here. So the same call may run in any number of processes that share the folder.

    A task that raises an error is written down among the failures, and the others go on without it and without the
    trials that need it.

    Args:
        tasks: members and trials; a trial starts when its members are there.
        store: where results are kept, prepared.
        work: does one task.
        fail_fast: stop at the first failure.
        console: where the progress is shown.

    Raises:
        StoreError: the disk is full or gone. What was finished before is safe.
        KeyboardInterrupt: the person has seen enough. As above.
    """
    schedule = Schedule(tasks, store)
    with Watch(console or Console(quiet=True), schedule) as watch:
        while schedule.pending:
            if not _one(schedule, store, work, watch):
                time.sleep(POLL)
                for task in schedule.refresh():
                    watch.elsewhere(task)
                watch.wait(len(schedule.pending))
            if fail_fast and schedule.outcome().failed:
                break
    return schedule.outcome()


def _one(schedule: Schedule, store: Store, work: Work, watch: Watch) -> bool:
    """Do the first task that is ready and nobody else is at; False if there is none."""
    for task in schedule.ready():
        with store.claim(task.key) as mine:
            if not mine:
                continue
            if store.has(task.key):
                schedule.finish(task)
                watch.elsewhere(task)
                return True
            schedule.start(task)
            watch.start(task)
            began = time.perf_counter()
            try:
                result = work(task, store, lambda what, task=task: watch.tick(task, what))  # type: ignore[misc]
                keep(task, store, result)
            except Exception as error:
                note_failure(task, store, error)
                watch.fail(task, explain(error), schedule.fail(task))
                return True
            schedule.finish(task)
            watch.finish(task, result, time.perf_counter() - began)
            return True
    return False


def study_work(
    task: "trials.Task", store: Store, tick: Tick, *, data_folder: Path | None, device: str
) -> Mapping[str, Any]:
    """Do a task of a study.

    Args:
        task: what to do.
        store: where its members are.
        tick: called once per epoch.
        data_folder: where local copies of data sets lie.
        device: as `choose_device` takes it, on the host that does the work.
    """
    from neurograft_experiments.running import run_task

    return run_task(task, store, data_folder=data_folder, device=choose_device(device), tick=tick)


def keep(task: Task, store: Store, result: Mapping[str, Any]) -> None:
    """Put the result of a task into the store."""
    if task.kind == "member":
        store.add_member(task.key, result)
    else:
        store.add({**result, "key": task.key})


def note_failure(task: Task, store: Store, error: Exception) -> None:
    """Write down that a task failed, or stop everything if no task can succeed.

    Raises:
        StoreError: the error is one of the disk, which every other task would meet as well.
    """
    if isinstance(error, StoreError):
        raise error
    if of_the_disk(error):
        raise StoreError(f"{task.label}: {error}. {store.safe()}") from error
    store.fail(task.key, task.label, error)


def explain(error: Exception) -> str:
    """An error in one line: what was raised on purpose says all itself."""
    text = str(error) if isinstance(error, NeurograftError) else f"{type(error).__name__}: {error}"
    return text.strip().split("\n")[0]
