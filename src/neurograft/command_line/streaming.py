"""What `plan` and `fuse` share when they work on files too large for memory."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neurograft.errors import InputError, OptionError, closest
from neurograft.paths import is_there

if TYPE_CHECKING:
    import torch

    from neurograft.members.members import Members

Network = Annotated[
    str,
    typer.Argument(
        metavar="FACTORY",
        help="How to build the network: `package.module:function`, called without arguments. Leave it out for Hugging "
        "Face model folders, whose config.json says it, and for a recipe of such.",
    ),
]
MemberFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="MEMBERS...",
        help="The members' checkpoints: .safetensors, an index, .pt, or model folders; `FILE#ema` takes a part. Or a "
        "recipe (.yaml), which names them.",
        show_default=False,
    ),
]
Base = Annotated[
    Path | None,
    typer.Option(help="For merge operators: the checkpoint or model folder that all members were trained from."),
]
Align = Annotated[
    str | None,
    typer.Option(metavar="METHOD", help="For merge operators: how members are brought into one basis first."),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Stream from the files, in at most so much working memory, such as `4GB`."),
]

UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}
SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[a-z]*)")
FLOATS = ("float32", "bfloat16", "float16", "float64")


def parse_size(text: str | None, option: str) -> int | None:
    """Bytes from `4GB`, `500MB` or `2GiB`.

    Raises:
        OptionError: if it cannot be read.

    Example:
        >>> parse_size("1.5GB", "--max-memory")
        1500000000
    """
    if text is None:
        return None
    match = SIZE.fullmatch(text.strip().lower())
    if match is None or match["unit"] not in UNITS:
        raise OptionError(f"{option} {text!r} is no size; write 4GB, 500MB or 2GiB")
    size = float(match["number"]) * UNITS[match["unit"]]
    if not 1 <= size < 2**63:
        raise OptionError(f"{option} {text!r:.40} is no size that a machine has; write 4GB, 500MB or 2GiB")
    return int(size)


def parse_dtype(text: str | None) -> "torch.dtype | None":
    """A floating dtype by its name.

    Raises:
        OptionError: if there is none of that name.
    """
    import torch

    if text is None:
        return None
    if text not in FLOATS:
        raise OptionError(f"--dtype {text!r} is not known; {closest(text, FLOATS)}")
    dtype: torch.dtype = getattr(torch, text)
    return dtype


def recipe_of(network: str, members: Sequence[Path]) -> tuple[str, Path] | None:
    """The factory (empty for model folders) and the recipe that the command line names, None if it names members.

    Raises:
        OptionError: a recipe and members beside it.

    Example:
        >>> recipe_of("recipe.yaml", []), recipe_of("package.module:function", [Path("recipe.yaml")])
        (('', PosixPath('recipe.yaml')), ('package.module:function', PosixPath('recipe.yaml')))
    """
    named = [Path(network), *members]
    recipes = [path for path in named if path.suffix.lower() in (".yaml", ".yml")]
    if not recipes:
        return None
    if len(named) > 2 or (len(named) == 2 and recipes != [named[1]]):
        raise OptionError(f"{recipes[0]} is a recipe, which names the members: leave them out")
    return ("" if len(named) == 1 else network), recipes[0]


def check_decided(given: Mapping[str, object], what: str) -> None:
    """Refuse beside a saved plan or a recipe what it has decided.

    Raises:
        OptionError: names the options.
    """
    extra = [name for name, value in given.items() if value]
    if extra:
        raise OptionError(f"{what} has decided on the method and all it takes; leave out {' and '.join(extra)}")


def names_folder(network: str) -> bool:
    """Whether the first argument is a member instead of a factory."""
    return is_there(Path(network))


def open_members(
    network: str,
    members: Sequence[Path],
    inputs: Sequence[str],
    fixed: Sequence[str],
    seed: int,
    base: Path | None = None,
) -> "Members":
    """Open what the command line names, without loading weights.

    Raises:
        InputError: a checkpoint where a factory must stand.
        NeurograftError: as `open_files` and `open_folders`.
    """
    from neurograft.applying.huggingface import is_model_folder
    from neurograft.applying.stored import open_files, open_folders
    from neurograft.command_line.arguments import build, example_inputs

    if not names_folder(network):
        given = example_inputs(inputs, network, seed)
        return open_files(members, lambda: build(network, seed), network, given, fixed, base)
    first = Path(network)
    if not is_model_folder(first):
        raise InputError(
            f"{first} is a checkpoint; name first how its network is built (package.module:function), or give model "
            "folders with a config.json"
        )
    return open_folders([first, *members], example_inputs(inputs, network, seed) if inputs else None, fixed, base)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on the error stream with bytes and the time left; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
