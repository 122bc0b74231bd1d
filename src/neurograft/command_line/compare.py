"""`neurograft compare`."""

from pathlib import Path
from typing import Annotated

import typer

from neurograft.command_line.arguments import Fixed, InputShapes
from neurograft.command_line.printing import print_lines
from neurograft.command_line.streaming import Align, Base, MemberFiles, Network, check_decided, recipe_of
from neurograft.errors import OptionError


def compare(
    factory: Network,
    members: MemberFiles = [],  # noqa: B006 - typer reads the default, nothing writes to it
    base: Base = None,
    align: Align = None,
    inputs: InputShapes = [],  # noqa: B006 - as above
    fixed: Fixed = [],  # noqa: B006 - as above
    picture: Annotated[Path | None, typer.Option(help="Draw it too, into an .svg, .png or .pdf file.")] = None,
    seed: Annotated[int, typer.Option(help="The only source of randomness.")] = 0,
) -> None:
    """Show what fine-tunes have changed since their ancestor, and how far they agree, by families of tensors.

    For every family: |member − base| / |base|, the mean cosine between two members' changes, and, of the entries that
    two have changed, the share where signs are opposite.

    Example: `neurograft compare recipe.yaml`

    Example: `neurograft compare llama-code llama-maths --base llama --picture changes.svg`
    """
    from neurograft.command_line.streaming import open_members
    from neurograft.merging.compare import compare as measured

    if (recipe := recipe_of(factory, members)) is not None:
        check_decided({"--base": base, "--align": align, "--fixed": fixed}, "a recipe")
        from neurograft.command_line.plan import by_recipe

        opened, chosen, _ = by_recipe(*recipe, inputs, seed)
        found = measured(opened, align=chosen if chosen.moves else None)
    else:
        if base is None:
            raise OptionError("what members have changed is measured against their ancestor: give --base")
        found = measured(open_members(factory, members, inputs, fixed, seed, base), align=align)
    print_lines(str(found))
    if picture is not None:
        found.draw(picture)
        print_lines(f"wrote {picture}")
