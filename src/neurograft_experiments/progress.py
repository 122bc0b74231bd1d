"""How far a run is: a bar with the time left on a terminal, a line per finished task elsewhere."""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from neurograft.escaping import terminal
from neurograft_experiments.store import counted
from neurograft_experiments.trials import Task


class ProgressDisplay:
    """Follows a run; a task weighs its epochs, and about one more for everything else.

    Args:
        console: where to; None for nowhere.
        tasks: that are left when the run starts.
    """

    def __init__(self, console: Console | None, tasks: Collection[Task]):
        self._console = console or Console(quiet=True)
        columns = (BarColumn(24), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        shown = self._console.is_terminal and not self._console.quiet
        self._bar = Progress(
            *columns, console=self._console, transient=True, disable=not shown, speed_estimate_period=1e9
        )
        self._id = self._bar.add_task("", total=sum(_weight(task) for task in tasks))
        self._tasks, self._count = len(tasks), 0
        self._started: dict[str, float] = {}
        self._ticks: dict[str, int] = {}

    def __enter__(self) -> "ProgressDisplay":
        self._bar.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._bar.stop()

    def start(self, task: Task) -> None:
        """A task starts."""
        self._started[task.key] = time.monotonic()
        self._show(task.label, refresh=True)

    def tick(self, task: Task, what: str = "") -> None:
        """An epoch of a running task is over."""
        if self._ticks.get(task.key, 0) < task.epochs:
            self._ticks[task.key] = self._ticks.get(task.key, 0) + 1
            self._show(f"{task.label}: {what}", advance=1)

    def finish(self, task: Task, result: Mapping[str, Any]) -> None:
        """A task has its result."""
        spent = time.monotonic() - self._started[task.key]
        self._leave(task)
        left = self._bar.tasks[0].time_remaining
        facts = [task.label, _figure(result), duration(spent), f"about {duration(left)} left" if left else ""]
        place = f"[{self._count:>{len(str(self._tasks))}}/{self._tasks}]"
        if self._bar.disable:
            self._print(" · ".join([f"{place} {facts[0]}", *filter(None, facts[1:])]))

    def fail(self, task: Task, text: str, lost: Sequence[str]) -> None:
        """A task failed, and those that need it cannot run."""
        self._leave(task)
        cost = f"; {counted(len(lost), 'trial')} that need it left out" if lost else ""
        self._print(f"FAILED {task.label}: {text}{cost}")

    def _leave(self, task: Task) -> None:
        self._count += 1
        self._bar.update(self._id, advance=_weight(task) - self._ticks.pop(task.key, 0))

    def _show(self, text: str, **more: Any) -> None:
        self._bar.update(self._id, description=escape(f"{self._count}/{self._tasks} · {terminal(text)}"), **more)

    def _print(self, text: str) -> None:
        self._console.print(terminal(text), highlight=False, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """A time for people.

    Example:
        >>> duration(50), duration(200), duration(9000)
        ('50 s', '3 min', '2 h 30 min')
    """
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _weight(task: Task) -> int:
    return task.epochs + 1


def _figure(result: Mapping[str, Any]) -> str:
    which = "test" if result.get("test") else "validation"
    accuracy = (result.get(which) or {}).get("accuracy")
    return f"{which} {100 * accuracy:.1f} %" if isinstance(accuracy, int | float) else ""
