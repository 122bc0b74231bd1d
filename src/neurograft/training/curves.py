"""What a training shows while it runs: a bar on the terminal, and curves for TensorBoard."""

from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from neurograft.errors import MissingExtra, OptionError
from neurograft.training.settings import Epoch, TrainingSettings


@contextmanager
def tracked(settings: TrainingSettings, *, first: bool) -> Iterator[Callable[[Epoch, float], None]]:
    """Writes epochs and their learning rates for TensorBoard, if the settings name a folder; only the first process.

    Raises:
        MissingExtra: without TensorBoard.
        OptionError: for a folder that cannot be written to.
    """
    folder = settings["tracker"]
    if folder is None or not first:
        yield lambda *_: None
        return
    if find_spec("tensorboard") is None:
        raise MissingExtra("tracker= needs TensorBoard: pip install 'neurograft[train]'")
    from torch.utils.tensorboard import SummaryWriter

    try:
        writer: Any = SummaryWriter(str(folder))
    except OSError as error:
        raise OptionError(f"tracker={str(folder)!r} cannot be written to: {error.strerror or error}") from error

    def write(epoch: Epoch, lr: float) -> None:
        values = {"learning rate": lr}
        if epoch.number > 0:
            values["loss/training"] = epoch.train_loss
        if epoch.validation is not None:
            values["loss/validation"] = epoch.validation.loss
            values["accuracy/validation"] = epoch.validation.accuracy
        for name, value in values.items():
            writer.add_scalar(name, value, epoch.number)
        writer.flush()

    with writer:
        yield write


@contextmanager
def bar(settings: TrainingSettings, batches: Any, done: int, *, first: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on the terminal's error stream, advanced by calling; nothing where there is no terminal.

    Args:
        settings: `epochs` and `progress` count.
        batches: of one epoch.
        done: epochs that were trained before.
        first: whether this is the first process, which alone shows it.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not (first and settings["progress"] and console.is_terminal and settings["epochs"]):
        yield lambda: None
        return
    steps = len(batches) if isinstance(batches, Sized) else None
    with Progress(console=console, transient=True) as shown:
        task = shown.add_task("training", total=None if steps is None else steps * settings["epochs"])
        shown.advance(task, (steps or 0) * done)
        yield lambda: shown.advance(task)
