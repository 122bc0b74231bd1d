"""`neurograft merge-adapters`."""

from pathlib import Path
from typing import Annotated, cast

import typer

from neurograft.command_line.arguments import parse_options
from neurograft.command_line.printing import print_lines
from neurograft.errors import OptionError


def merge_adapters(
    adapters: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTERS...", help="Folders of LoRA, rsLoRA or DoRA adapters, as PEFT writes."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write, new or empty.")],
    method: Annotated[str, typer.Option(help="How products are combined: linear, task_arithmetic, ties, …")] = "linear",
    option: Annotated[
        list[str],
        typer.Option("--option", metavar="NAME=VALUE", help="An option of the method; repeat it for several."),
    ] = [],  # noqa: B006 - typer reads the default, nothing writes to it
    rank: Annotated[
        str | None,
        typer.Option(
            metavar="RANK",
            help="Of the merged adapter: a number, or `exact` for the factors side by side (linear, task_arithmetic).",
            show_default="the largest of the adapters",
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="The folder of the base, for --into-base and for adapters with magnitudes (DoRA)."),
    ] = None,
    into_base: Annotated[
        bool, typer.Option("--into-base", help="Write the base with the merged products added, not an adapter.")
    ] = False,
    seed: Annotated[int, typer.Option(help="The only source of randomness.")] = 0,
) -> None:
    """Merge adapters of one base into one adapter, or into the base, by what they add to its weights.

    Example: `neurograft merge-adapters lora-a lora-b --method ties --option density=0.3 --rank 16 -o lora-merged`
    """
    from neurograft.command_line.arguments import check_folder
    from neurograft.merging.merge_adapters import Rank
    from neurograft.merging.merge_adapters import merge_adapters as merge

    wanted: str | int | None = int(rank) if rank is not None and rank.isascii() and rank.isdigit() else rank
    if isinstance(wanted, str) and wanted != "exact":
        raise OptionError(f"--rank {rank!r:.40} is a number, or exact")
    check_folder(output)
    options = parse_options(option)
    done = merge(
        adapters, output, method, base=base, rank=cast(Rank, wanted), into_base=into_base, seed=seed, **options
    )
    print_lines(str(done))
