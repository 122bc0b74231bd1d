"""Which tasks are left to do, and which of them can start now."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from neurograft_experiments.store import Store


class Task(Protocol):
    """What an engine must know of a task."""

    @property
    def key(self) -> str:
        """A hash of everything that determines the result."""

    @property
    def kind(self) -> str:
        """Either "member" or "trial"."""

    @property
    def label(self) -> str:
        """What is being done, for people."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys of the members whose tensors it reads."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that the work on it depends on."""

    @property
    def epochs(self) -> int:
        """How many epochs are trained, for the time that is left."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the tasks of one call.

    Attributes:
        trials: how many trials were asked for.
        before: trials whose rows were there already.
        done: trials that have a row now and had none before, whichever process made it.
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


class Schedule:
    """The tasks that are left: trials without a row, and members that one of those needs and nobody has trained.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from types import SimpleNamespace
        >>> member = SimpleNamespace(key="m", kind="member", label="member", needs=(), settings={}, epochs=3)
        >>> trial = SimpleNamespace(key="t", kind="trial", label="trial", needs=("m",), settings={}, epochs=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = Store(Path(folder))
        ...     schedule = Schedule((member, trial), store)
        ...     [task.label for task in schedule.ready()]
        ['member']
    """

    def __init__(self, tasks: Sequence[Task], store: Store):
        self._store = store
        known = {task.key: task for task in tasks}  # the same trial asked for twice is one
        trials = [task for task in known.values() if task.kind == "trial"]
        open_trials = {task.key for task in trials if not store.has(task.key)}
        wanted = _with_needs(open_trials, known, store)
        self.trials = len(trials)
        self._trial_keys = {task.key for task in trials}
        self.before = len(trials) - len(open_trials)
        self.pending = {key: task for key, task in known.items() if key in wanted}
        self._failed: dict[str, str] = {}
        self._skipped: dict[str, str] = {}
        self._running: set[str] = set()

    def ready(self) -> Iterator[Task]:
        """The tasks that can start now, in their order."""
        for task in tuple(self.pending.values()):
            if task.key in self.pending and task.key not in self._running and not self._waits(task):
                yield task

    def start(self, task: Task) -> None:
        """Say that a task runs in this process or for it."""
        self._running.add(task.key)

    def finish(self, task: Task) -> None:
        """Say that the result of a task is in the store."""
        self._running.discard(task.key)
        self.pending.pop(task.key, None)

    def fail(self, task: Task) -> tuple[str, ...]:
        """Say that a task failed; gives the labels of those that cannot run without it."""
        self.finish(task)
        self._failed[task.key] = task.label
        lost = [other for other in self.pending.values() if set(other.needs) & self._failed.keys()]
        for other in lost:
            self.finish(other)
            self._skipped[other.key] = other.label
        return tuple(other.label for other in lost)

    def refresh(self) -> tuple[Task, ...]:
        """The tasks that other processes have finished meanwhile."""
        found = tuple(task for key, task in self.pending.items() if key not in self._running and self._store.has(key))
        for task in found:
            self.finish(task)
        return found

    def outcome(self) -> Outcome:
        """What became of the tasks."""
        lost = self._failed.keys() | self._skipped.keys() | self.pending.keys()
        done = self.trials - self.before - sum(1 for key in lost if key in self._trial_keys)
        return Outcome(self.trials, self.before, done, tuple(self._failed.values()), tuple(self._skipped.values()))

    def _waits(self, task: Task) -> bool:
        return any(key in self.pending for key in task.needs)


def _with_needs(keys: Collection[str], known: dict[str, Task], store: Store) -> set[str]:
    """The keys, and those of the members they need that are not trained."""
    found: set[str] = set()
    waiting, there = list(keys), set[str]()
    while waiting:
        key = waiting.pop()
        if key in found or key in there:
            continue
        found.add(key)
        for needed in known[key].needs:
            if needed in found or needed in there:
                continue
            if store.has(needed):
                there.add(needed)
            elif needed in known:
                waiting.append(needed)
            else:
                raise KeyError(f"{known[key].label} needs {needed}, which is neither stored nor among the tasks")
    return found
