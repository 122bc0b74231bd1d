"""What other distributions add to the command line: commands and data sets, found by entry points, never imported."""

from importlib.metadata import entry_points
from typing import Any

from neurograft.errors import OptionError

COMMANDS = "neurograft.commands"
DATA = "neurograft.data"


def added_commands() -> list[Any]:
    """Functions and Typer applications that are registered as commands, in the order of their names."""
    return [entry.load() for entry in sorted(entry_points(group=COMMANDS), key=lambda entry: entry.name)]


def load_images(name: str, **options: Any) -> Any:
    """The labelled images that a data set's name or a folder stands for.

    Args:
        name: a known data set, or a folder.
        options: what the loader takes: `samples`, `folder`.

    Raises:
        OptionError: nothing that loads images is installed.
    """
    found = list(entry_points(group=DATA, name="images"))
    if not found:
        raise OptionError("data sets by name need the package neurograft_experiments, which is not installed")
    return found[0].load()(name, **options)
