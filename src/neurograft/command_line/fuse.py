"""`neurograft fuse`."""

from pathlib import Path
from typing import Annotated

import typer

from neurograft.command_line.arguments import Factory, Fixed, InputShapes

CALIBRATION = 2000
"""Images that methods look at, a fifth of them apart for validation."""


def fuse(
    factory: Factory,
    members: Annotated[
        list[Path],
        typer.Argument(
            metavar="MEMBERS...", help="The members' checkpoints: .safetensors, or .pt with nothing but tensors."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The fused checkpoint, a .safetensors file.")],
    inputs: InputShapes = [],  # noqa: B006 - typer reads the default, nothing writes to it
    method: Annotated[str, typer.Option(help="How to fuse: average, transplant, …")] = "transplant",
    weights: Annotated[str | None, typer.Option(help="One number per member, such as `0.7,0.3`.")] = None,
    option: Annotated[
        list[str],
        typer.Option("--option", metavar="NAME=VALUE", help="An option of the method; repeat it for several."),
    ] = [],  # noqa: B006 - as above
    fixed: Fixed = [],  # noqa: B006 - as above
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images for methods that look at activations: `digits`, or a folder of parquet files as for `demo`.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The only source of randomness.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the output file if it exists.")] = False,
) -> None:
    """Fuse checkpoints of one network into one checkpoint of the same size.

    The file is written completely or not at all; its metadata hold the members' SHA-256 hashes, the method, its
    options, the seed and the version.

    Example: `neurograft fuse package.module:function a.safetensors b.safetensors -i 1x3x32x32 -o fused.safetensors`
    """
    import torch

    from neurograft import __version__
    from neurograft.applying.application import apply
    from neurograft.checkpoints import load_into, sha256, write_checkpoint
    from neurograft.command_line.arguments import build, check_output, example_inputs, parse_options, parse_weights
    from neurograft.experimenting.data import load_images
    from neurograft.planning.planner import check_method, plan

    options, shares = parse_options(option), parse_weights(weights)
    check_method(method, options)
    check_output(output, force=force)
    networks = [load_into(build(factory, seed), path) for path in members]
    images = None if calibration is None else load_images(calibration, samples=CALIBRATION).train.batches()
    decided = plan(
        networks,
        example_inputs(inputs, factory, seed),
        method,
        shares,
        calibration=images,
        fixed=fixed,
        seed=seed,
        **options,
    )
    provenance = {
        "version": __version__,
        "torch": torch.__version__,
        "factory": factory,
        "method": method,
        "options": options,
        "weights": list(decided.weights),
        "fixed": list(fixed),
        "calibration": calibration,
        "seed": seed,
        "members": [{"file": path.name, "sha256": sha256(path)} for path in members],
    }
    write_checkpoint(apply(decided, networks), output, provenance)
    typer.echo(str(decided))
    typer.echo(f"wrote {output}")
