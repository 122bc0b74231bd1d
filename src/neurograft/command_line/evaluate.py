"""`neurograft evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from neurograft.command_line.arguments import Factory


def evaluate(
    factory: Factory,
    checkpoints: Annotated[
        list[Path], typer.Argument(metavar="CHECKPOINTS...", help="Checkpoints to measure: .safetensors, or .pt.")
    ],
    data: Annotated[
        str,
        typer.Option(
            help="`digits` (ships inside scikit-learn); `mnist`, `fashion_mnist`, `svhn`, `cifar10`, `cifar100` or "
            "another name on the Hugging Face hub; or a folder of parquet files, or of images per class."
        ),
    ] = "digits",
    split: Annotated[
        str, typer.Option(help="`validation` to choose, `test` once at the end, or `train`.")
    ] = "validation",
    vote: Annotated[
        str | None, typer.Option(help="Add their ensemble: `average`, `probabilities`, `majority` or `energy`.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 256,
) -> None:
    """Measure checkpoints on labelled images: accuracy, loss and calibration error.

    Example: `neurograft evaluate neurograft_experiments.networks:digits_mlp runs/demo/mlp-*.safetensors`
    """
    from typing import cast

    from rich.console import Console

    from neurograft.checkpoints import load_into
    from neurograft.command_line.arguments import build
    from neurograft.evaluating.ensemble import Ensemble, Vote
    from neurograft.evaluating.evaluation import Scores
    from neurograft.evaluating.evaluation import evaluate as measure
    from neurograft.plugins import load_images
    from neurograft.reporting.tables import Table, terminal_table

    batches = load_images(data).split(split).batches(batch)
    names = [path.name for path in checkpoints]
    networks = {
        path.name if names.count(path.name) == 1 else str(path): load_into(build(factory, 0), path)
        for path in checkpoints
    }
    if vote is not None:
        networks[f"ensemble ({vote})"] = Ensemble(list(networks.values()), cast(Vote, vote))

    def cells(scores: Scores) -> tuple[str, ...]:
        figures = (f"{100 * scores.accuracy:.2f}", f"{scores.loss:.4f}", f"{100 * scores.calibration_error:.2f}")
        return (*figures, str(scores.samples), f"{scores.seconds:.2f}")

    table = Table(
        title=f"{data}, {split}",
        columns=("network", "accuracy, %", "loss, nats", "calibration error, %", "samples", "seconds"),
        rows=tuple((name, *cells(measure(network, batches))) for name, network in networks.items()),
        numeric=5,
    )
    Console().print(terminal_table(table))
