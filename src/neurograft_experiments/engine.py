"""Working through the tasks of a study: what is left, what can start, and the loop that does it, here or on Ray."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from rich.console import Console

from neurograft.errors import NeurograftError, StoreError
from neurograft_experiments.progress import ProgressDisplay
from neurograft_experiments.store import Store, is_disk_error
from neurograft_experiments.trials import MemberNetworks, Task, TaskResult, Tick

TaskFunction: TypeAlias = Callable[[Task, MemberNetworks, Tick], TaskResult]
"""Does a task."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the tasks of one call.

    Attributes:
        trials: how many there are.
        before: trials whose rows were there already.
        done: trials that have a row now and had none before.
        failed: labels of the tasks that raised an error.
        skipped: labels of the trials that a failed member was needed for.
    """

    trials: int
    before: int
    done: int
    failed: tuple[str, ...]
    skipped: tuple[str, ...]

    @property
    def left(self) -> int:
        """Trials without a row."""
        return self.trials - self.before - self.done


class TaskQueue:
    """The tasks that are left: trials without a row, and members that one of those needs and nobody has trained."""

    def __init__(self, tasks: Sequence[Task], store: Store):
        known = {task.key: task for task in tasks}  # the same trial named twice is one
        self._trials = {key for key, task in known.items() if task.kind == "trial"}
        wanted = _with_needs({key for key in self._trials if not store.has(key)}, known, store)
        self.before = len(self._trials) - len(wanted & self._trials)
        self.pending = {key: task for key, task in known.items() if key in wanted}
        self._failed: dict[str, str] = {}
        self._skipped: dict[str, str] = {}
        self._running: set[str] = set()

    @property
    def trials(self) -> int:
        """How many trials there are in all."""
        return len(self._trials)

    def next(self) -> Task | None:
        """The first task that can start now; from then on it counts as running."""
        for key, task in self.pending.items():
            if key not in self._running and not any(needed in self.pending for needed in task.needs):
                self._running.add(key)
                return task
        return None

    def finish(self, task: Task) -> None:
        """Note that the result of a task is in the store."""
        self._running.discard(task.key)
        del self.pending[task.key]

    def fail(self, task: Task) -> tuple[str, ...]:
        """Note that a task failed; gives the labels of those that cannot run without it."""
        self.finish(task)
        self._failed[task.key] = task.label
        lost = [other for other in self.pending.values() if task.key in other.needs]
        for other in lost:
            self.finish(other)
            self._skipped[other.key] = other.label
        return tuple(other.label for other in lost)

    def outcome(self) -> Outcome:
        """What became of the tasks."""
        lost = self._failed.keys() | self._skipped.keys() | self.pending.keys()
        done = self.trials - self.before - len(lost & self._trials)
        return Outcome(self.trials, self.before, done, tuple(self._failed.values()), tuple(self._skipped.values()))


def _with_needs(keys: Collection[str], known: Mapping[str, Task], store: Store) -> set[str]:
    """The keys, and those of the members they need that are not trained."""
    needed = {member for key in keys for member in known[key].needs}
    missing = {member for member in needed if not store.has(member)}
    for member in sorted(missing - known.keys()):
        lonely = next(known[key].label for key in keys if member in known[key].needs)
        raise KeyError(f"{lonely} needs {member}, which is neither stored nor among the tasks")
    return set(keys) | missing


class Pool(Protocol):
    """Who does the tasks: this process, or a cluster."""

    @property
    def room(self) -> int:
        """How many more tasks may be handed over now."""

    def start(self, task: Task) -> None:
        """Hand over a task."""

    def finished(self) -> Iterator[tuple[Task, TaskResult | Exception]]:
        """Tasks that are done by now, after waiting for the first one, and what they gave or raised."""


@dataclass
class InProcess:
    """Tasks one after the other in this process."""

    store: Store
    work: TaskFunction
    watch: ProgressDisplay
    waiting: list[Task] = field(default_factory=list)

    @property
    def room(self) -> int:
        """One at a time."""
        return 1 - len(self.waiting)

    def start(self, task: Task) -> None:
        """Remember what is next."""
        self.waiting.append(task)

    def finished(self) -> Iterator[tuple[Task, TaskResult | Exception]]:
        """Do it."""
        task = self.waiting.pop()
        try:
            yield task, self.work(task, self.store, lambda what: self.watch.tick(task, what))
        except Exception as error:
            yield task, error


def run_in_process(
    tasks: Sequence[Task], store: Store, work: TaskFunction, *, fail_fast: bool = False, console: Console | None = None
) -> Outcome:
    """Do every task whose result is not in the store yet, one after the other.

    A task that raises an error is written down among the failures, and the others go on without it and without the
    trials that need it.

    Args:
        tasks: members and trials; a trial starts when its members are there.
        store: where results are kept, prepared.
        work: does one task.
        fail_fast: stop at the first failure.
        console: where the progress is shown.

    Raises:
        StoreError: another run is at work on the store; the disk is full or gone. What was finished before is safe.
        KeyboardInterrupt: the person has seen enough. As above.
    """
    queue = TaskQueue(tasks, store)
    with ProgressDisplay(console, queue.pending.values()) as watch:
        return work_through(queue, store, InProcess(store, work, watch), watch, fail_fast=fail_fast)


def work_through(queue: TaskQueue, store: Store, pool: Pool, watch: ProgressDisplay, *, fail_fast: bool) -> Outcome:
    """Hand tasks to the pool while it has room, and keep what they give, until none is left."""
    with store.working():
        while queue.pending:
            while pool.room > 0 and (task := queue.next()) is not None:
                watch.start(task)
                pool.start(task)
            for task, result in pool.finished():
                _settle(task, result, queue, store, watch)
            if fail_fast and queue.outcome().failed:
                break
    return queue.outcome()


def _settle(task: Task, result: TaskResult | Exception, queue: TaskQueue, store: Store, watch: ProgressDisplay) -> None:
    """Keep what a task gave, or write down that it failed.

    Raises:
        StoreError: the disk takes no more, which every other task would meet as well.
    """
    if isinstance(result, TaskResult):
        if task.kind == "member":
            store.add_member(task.key, result.row, result.tensors)
        else:
            store.add({**result.row, "key": task.key})
        queue.finish(task)
        watch.finish(task, result.row)
        return
    if isinstance(result, StoreError):
        raise result
    if is_disk_error(result):
        raise StoreError(f"{task.label}: {result}. {store.safe()}") from result
    store.fail(task.key, task.label, result)
    watch.fail(task, explain(result), queue.fail(task))


def explain(error: Exception) -> str:
    """An error in one line: the message of what was raised on purpose is enough."""
    text = str(error) if isinstance(error, NeurograftError) else f"{type(error).__name__}: {error}"
    return text.strip().split("\n")[0]
