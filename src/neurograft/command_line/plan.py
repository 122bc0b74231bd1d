"""`neurograft plan`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neurograft.command_line.arguments import Fixed, InputShapes
from neurograft.command_line.printing import print_lines
from neurograft.command_line.streaming import Align, Base, MemberFiles, Network, check_decided, recipe_of

if TYPE_CHECKING:
    from neurograft.members.members import Members
    from neurograft.methods.method import Method
    from neurograft.operators.operator import Operator


def plan(
    factory: Network,
    members: MemberFiles = [],  # noqa: B006 - typer reads the default, nothing writes to it
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Read the weights, decide, and save the plan as this .safetensors file."),
    ] = None,
    inputs: InputShapes = [],  # noqa: B006 - typer reads the default, nothing writes to it
    method: Annotated[
        str | None,
        typer.Option(help="How to fuse: average, transplant, … or ties, slerp, …", show_default="transplant"),
    ] = None,
    base: Base = None,
    align: Align = None,
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

    A saved plan carries the members' SHA-256 hashes and is applied with `neurograft fuse --plan`. A recipe is
    read as by `neurograft fuse`.

    Example: `neurograft plan package.module:function a.safetensors b.safetensors -i 1x3x32x32`
    """
    from neurograft.applying.estimate import estimate
    from neurograft.command_line.arguments import check_output, parse_options, parse_weights
    from neurograft.command_line.streaming import open_members
    from neurograft.methods import choice_of
    from neurograft.methods.planner import plan_members
    from neurograft.plans.saving import SavedPlan, save_plan

    if output is not None:
        check_output(output, force=force)
    combining: Operator | None
    if (recipe := recipe_of(factory, members)) is not None:
        given = {"--method": method, "--option": option, "--weights": weights, "--fixed": fixed}
        check_decided({**given, "--base": base, "--align": align}, "a recipe")
        opened, chosen, combining = by_recipe(*recipe, inputs, seed)
    else:
        chosen, combining = choice_of(method or "transplant", parse_options(option), align)
        opened = open_members(factory, members, inputs, fixed, seed, base).weighted(parse_weights(weights))
    print_lines(str(estimate(opened, chosen, combining)))
    if output is not None:
        decided = plan_members(opened, chosen, combining, seed=seed)
        save_plan(SavedPlan(decided, opened.name, opened.fixed, opened.hashes()), output)
        print_lines(f"\n{decided}\nwrote {output}")


def by_recipe(factory: str, path: Path, inputs: list[str], seed: int) -> "tuple[Members, Method, Operator]":
    """The models of a recipe, and what is done to them."""
    from neurograft.command_line.arguments import build, example_inputs
    from neurograft.merging.merge import open_models
    from neurograft.merging.recipe import Recipe
    from neurograft.methods.average import Average

    recipe = Recipe.read(path)
    given = example_inputs(inputs, factory, seed) if factory or inputs else None
    opened = open_models(recipe, (lambda: build(factory, seed)) if factory else None, factory, given)
    return opened, recipe.align or Average(), recipe.operator
