"""What a run says: a bar with the time left on a terminal, a line per finished task elsewhere."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from neurograft_experiments.journal import counted
from neurograft_experiments.schedule import Schedule, Task

RUNNING_SHOWN = 2
"""Labels of running tasks that fit into one line."""


class Watch:
    """Follows a run and tells people about it.

    The time left is the time since the first task was finished (which had to wait for libraries and data), scaled by
    the epochs that are left; it is shown from the second one on.

    Args:
        console: where to; `Console(quiet=True)` for nowhere.
        schedule: the tasks that are left when the run starts.

    Example:
        >>> duration(50), duration(200), duration(9000)
        ('50 s', '3 min', '2 h 30 min')
    """

    def __init__(self, console: Console, schedule: Schedule):
        self._console = console
        self._pending: Mapping[str, Task] = schedule.pending
        self._total = sum(_work(task) for task in schedule.pending.values())
        self._tasks = len(schedule.pending)
        self._done, self._count, self._ticks = 0, 0, 0
        self._first: tuple[float, int] | None = None
        self._waiting = False
        self._running: dict[str, str] = {}
        self._bar: Progress | None = None

    def __enter__(self) -> "Watch":
        if self._console.is_terminal and not self._console.quiet:
            columns = (BarColumn(24), TaskProgressColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._id = self._bar.add_task("", total=max(self._total, 1))
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, task: Task) -> None:
        """A task starts."""
        self._running[task.key] = task.label
        self._ticks = 0
        self._show(at_once=True)

    def tick(self, task: Task, what: str = "") -> None:
        """An epoch of a running task is over."""
        self._ticks = min(self._ticks + 1, task.epochs)
        self._show(what)

    def finish(self, task: Task, result: Mapping[str, Any], seconds: float) -> None:
        """A task has its result."""
        self._leave(task)
        self._done += _work(task)
        self._line(task, _figure(result), duration(seconds))
        self._first = self._first or (time.monotonic(), self._done)

    def elsewhere(self, task: Task) -> None:
        """Another process has finished a task."""
        self._leave(task)
        self._total -= _work(task)
        self._line(task, "done by another process")

    def fail(self, task: Task, text: str, lost: Sequence[str]) -> None:
        """A task failed, and those that need it cannot run."""
        self._leave(task)
        self._total -= _work(task)
        cost = f"; {counted(len(lost), 'trial')} that need it left out" if lost else ""
        self._print(f"FAILED {task.label}: {text}{cost}")

    def wait(self, count: int) -> None:
        """What is left is being done by other processes."""
        text = f"waiting for {counted(count, 'task')} that other processes are working on"
        if self._bar is None and not self._waiting:
            self._print(text)
        self._waiting = True
        self._show(text)

    def _leave(self, task: Task) -> None:
        self._running.pop(task.key, None)
        self._count += 1
        self._ticks = 0

    def _line(self, task: Task, *facts: str) -> None:
        if self._bar is not None:
            self._show()
            return
        place = f"[{self._count:>{len(str(self._tasks))}}/{self._tasks}]"
        self._print(" · ".join(fact for fact in (f"{place} {task.label}", *facts, self._left()) if fact))

    def _left(self) -> str:
        """About how long it will take, empty while that is anybody's guess or nothing is left."""
        left = self._total - self._done - self._ticks
        if self._first is None or left <= 0:
            return ""
        since, before = self._first
        done = self._done + self._ticks - before
        return f"about {duration((time.monotonic() - since) * left / done)} left" if done > 0 else ""

    def _show(self, what: str = "", *, at_once: bool = False) -> None:
        if self._bar is None:
            return
        running = list(self._running.values())
        shown = ", ".join(running[:RUNNING_SHOWN])
        more = f" and {len(running) - RUNNING_SHOWN} more" if len(running) > RUNNING_SHOWN else ""
        place = f"{self._count}/{self._tasks}"
        text = " · ".join(fact for fact in (place, self._left(), what or shown + more) if fact)
        done = self._done + self._ticks
        self._bar.update(self._id, completed=done, total=self._total, description=escape(text), refresh=at_once)

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _work(task: Task) -> int:
    """How much a task weighs: its epochs, and about one for everything else."""
    return task.epochs + 1


def _figure(result: Mapping[str, Any]) -> str:
    scores = result.get("test") or result.get("validation")
    accuracy = scores.get("accuracy") if isinstance(scores, Mapping) else None
    which = "test" if result.get("test") else "validation"
    return f"{which} {100 * accuracy:.1f} %" if isinstance(accuracy, int | float) else ""
