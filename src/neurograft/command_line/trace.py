"""`neurograft trace`."""

from pathlib import Path
from typing import Annotated

import typer

from neurograft.command_line.arguments import Factory, Fixed, InputShapes
from neurograft.command_line.printing import print_lines


def trace(
    factory: Factory,
    checkpoint: Annotated[
        Path | None,
        typer.Argument(metavar="[CHECKPOINT]", help="Weights for the proof: .safetensors or .pt."),
    ] = None,
    inputs: InputShapes = [],  # noqa: B006 - typer reads the default, nothing writes to it
    fixed: Fixed = [],  # noqa: B006 - as above
    strict: Annotated[bool, typer.Option("--strict", help="Stop at an op that no rule describes.")] = False,
    verify: Annotated[bool, typer.Option(help="Prove the groups by permuting the neurons.")] = True,
    edges: Annotated[bool, typer.Option("--edges", help="Show also what every use of a weight reads.")] = False,
    seed: Annotated[int, typer.Option(help="Of the network's random start and the example inputs.")] = 0,
) -> None:
    """Show which neurons of a network belong together, and which may move.

    Example: `neurograft trace neurograft_experiments.networks:digits_mlp --input 1x1x8x8`
    """
    from neurograft.checkpoints import load_into
    from neurograft.command_line.arguments import build, example_inputs
    from neurograft.tracing.tracer import trace as trace_network

    network = build(factory, seed)
    if checkpoint is not None:
        load_into(network, checkpoint)
    graph = trace_network(network, example_inputs(inputs, factory, seed), fixed=fixed, strict=strict, verify=verify)
    print_lines(str(graph))
    if edges:
        print_lines(f"\n{graph.flow}")
