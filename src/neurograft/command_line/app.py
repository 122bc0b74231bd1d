"""The `neurograft` command: it registers the subcommands and turns an error into one message and exit code 2."""

import sys
from typing import Annotated

import typer

from neurograft._version import __version__
from neurograft.command_line.advise import advise
from neurograft.command_line.compare import compare
from neurograft.command_line.ending import tidy_end
from neurograft.command_line.evaluate import evaluate
from neurograft.command_line.fuse import fuse
from neurograft.command_line.merge_adapters import merge_adapters
from neurograft.command_line.plan import plan
from neurograft.command_line.printing import plain_printing, print_error
from neurograft.command_line.statistics import statistics
from neurograft.command_line.trace import trace
from neurograft.errors import NeurograftError
from neurograft.plugins import added_commands

app = typer.Typer(
    name="neurograft",
    help="Fuse several trained PyTorch networks into one of the same architecture and size.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"neurograft {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Fuse several trained PyTorch networks into one of the same architecture and size."""


for command in (trace, plan, compare, statistics, fuse, merge_adapters, evaluate, advise):
    app.command()(command)
for added in added_commands():
    if isinstance(added, typer.Typer):
        app.add_typer(added)
    else:
        app.command()(added)


def main() -> None:
    """Run the command line; an error on purpose becomes one message on the error stream and exit code 2."""
    with plain_printing(), tidy_end():
        try:
            app(prog_name="neurograft")
        except NeurograftError as error:
            print_error(f"error: {error}")
            sys.exit(2)
