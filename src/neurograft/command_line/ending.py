"""What a signal to end does to a command: it stops where it is, and removes the files that are not finished."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from neurograft.command_line.printing import print_error

ENDING = ("SIGTERM", "SIGHUP")


@contextmanager
def tidy_end() -> Iterator[None]:
    """End by an exception at SIGTERM and SIGHUP, so that unfinished files are removed; the exit code is 128 + signal.

    A signal that is ignored (`nohup`) stays ignored; further ones are ignored while the command tidies up.
    """
    numbers = [getattr(signal, name) for name in ENDING if hasattr(signal, name)]
    here = threading.current_thread() is threading.main_thread()  # nobody else may handle signals
    handled = [number for number in numbers if here and signal.getsignal(number) == signal.SIG_DFL]

    def end(number: int, _: FrameType | None) -> None:
        for other in handled:
            signal.signal(other, signal.SIG_IGN)
        with suppress(OSError):  # a terminal that hung up cannot be written to
            print_error(f"ended by {signal.Signals(number).name}: unfinished files are removed")
        sys.exit(128 + number)

    for number in handled:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
