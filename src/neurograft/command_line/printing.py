"""What reaches a terminal: names in it are spelt, never obeyed, and what its encoding lacks is spelt too."""

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from neurograft.escaping import terminal


def print_lines(text: str) -> None:
    """Print lines of text on the standard output."""
    typer.echo(terminal(text, lines=True))


def print_error(text: str) -> None:
    """Print lines of text on the error stream."""
    typer.echo(terminal(text, lines=True), err=True)


@contextmanager
def plain_printing() -> Iterator[None]:
    """Spell what a terminal cannot show instead of failing, and print each warning as one line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    before = warnings.showwarning
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = before


def _show_warning(message: Warning | str, *_: object) -> None:
    print_error(f"warning: {message}")
