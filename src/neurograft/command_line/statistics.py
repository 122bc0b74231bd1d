"""`neurograft statistics`."""

from pathlib import Path
from typing import Annotated

import typer

from neurograft.command_line.arguments import Factory, check_output, pair_of_numbers
from neurograft.command_line.printing import print_lines


def statistics(
    factory: Factory,
    checkpoint: Annotated[Path, typer.Argument(metavar="MODEL", help="The member: .safetensors, or .pt.")],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="Its own images: a folder of parquet files, or of images per class; or a name."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file of statistics: .safetensors.")],
    noise: Annotated[
        str | None,
        typer.Option(
            metavar="EPSILON,DELTA", help="Noise that hides single samples, such as `3,1e-5`.", show_default="none"
        ),
    ] = None,
    clip: Annotated[
        float | None,
        typer.Option(help="With --noise: the norm that inputs are scaled down to.", show_default="√entries"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 256,
    force: Annotated[bool, typer.Option("--force", help="Replace the output file if it exists.")] = False,
) -> None:
    """Compute what a member brings to a fusion instead of its data, from its training images, without their labels.

    The file holds means, covariances and ranges; with one per member `neurograft fuse --statistics FILE`
    needs no data.

    Example: `neurograft statistics package.module:function a.safetensors FOLDER_A --output a-statistics.safetensors`
    """
    from neurograft.checkpoints import load_into
    from neurograft.command_line.arguments import build
    from neurograft.member_statistics.collecting import statistics as collect
    from neurograft.plugins import load_images

    check_output(output, force=force)
    wanted = None if noise is None else pair_of_numbers(noise, "--noise")
    network = load_into(build(factory, 0), checkpoint)
    own = collect(network, load_images(data).train.batches(batch), noise=wanted, clip=clip)
    own.save(output)
    print_lines(str(own))
    print_lines(f"wrote {output}")
