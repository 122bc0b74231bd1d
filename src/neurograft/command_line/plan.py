"""`neurograft plan`."""

from pathlib import Path
from typing import Annotated

import typer

from neurograft.command_line.arguments import Fixed, InputShapes
from neurograft.command_line.printing import say
from neurograft.command_line.streaming import MemberFiles, Network


def plan(
    factory: Network,
    members: MemberFiles,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Read the weights, decide, and save the plan as this .safetensors file."),
    ] = None,
    inputs: InputShapes = [],  # noqa: B006 - typer reads the default, nothing writes to it
    method: Annotated[str, typer.Option(help="How to fuse: average, transplant, …")] = "transplant",
    weights: Annotated[
        str | None,
        typer.Option(
            help="One number per member, such as `0.7,0.3`; or JSON that gives patterns of tensors such numbers."
        ),
    ] = None,
    option: Annotated[
        list[str],
        typer.Option("--option", metavar="NAME=VALUE", help="An option of the method; repeat it for several."),
    ] = [],  # noqa: B006 - as above
    fixed: Fixed = [],  # noqa: B006 - as above
    seed: Annotated[int, typer.Option(help="The only source of randomness.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the output file if it exists.")] = False,
) -> None:
    """Show what fusing checkpoints would do, from their headers and a trace alone; with --output, decide and save it.

    A saved plan carries the members' SHA-256 hashes and is applied with `neurograft fuse --plan`.

    Example: `neurograft plan package.module:function a.safetensors b.safetensors -i 1x3x32x32`
    """
    from neurograft.applying.estimate import estimate
    from neurograft.command_line.arguments import check_output, parse_options, parse_weights
    from neurograft.command_line.streaming import open_members
    from neurograft.methods import method_of
    from neurograft.methods.planner import plan_members
    from neurograft.plans.saving import SavedPlan, save_plan

    chosen, shares = method_of(method, parse_options(option)), parse_weights(weights)
    if output is not None:
        check_output(output, force=force)
    opened = open_members(factory, members, inputs, fixed, seed).weighted(shares)
    say(str(estimate(opened, chosen)))
    if output is not None:
        decided = plan_members(opened, chosen, seed=seed)
        save_plan(SavedPlan(decided, opened.name, opened.fixed, opened.hashes()), output)
        say(f"\n{decided}\nwrote {output}")
