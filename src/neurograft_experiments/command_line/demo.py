"""`neurograft demo`."""

from pathlib import Path
from typing import Annotated

import typer

from neurograft_experiments.command_line import check_installed


def demo(
    data: Annotated[
        str,
        typer.Option(
            help="`digits` (ships inside scikit-learn); `mnist`, `fashion_mnist`, `svhn`, `cifar10`, `cifar100` or "
            "another name on the Hugging Face hub; or a folder of parquet files, or of images per class."
        ),
    ] = "digits",
    output: Annotated[Path, typer.Option(help="Folder for the page, the result rows and the networks.")] = Path(
        "runs/demo"
    ),
    network: Annotated[
        list[str] | None, typer.Option(help="`mlp` or `convnet`; repeat it for several. Default: both.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="How to fuse; repeat it for several. Default: every method there is.")
    ] = None,
    members: Annotated[int, typer.Option(min=2, help="Networks to train and fuse.")] = 4,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each member.")] = 20,
    tuning_epochs: Annotated[int, typer.Option(min=1, help="Epochs of fine-tuning, and of distilling.")] = 10,
    samples: Annotated[
        int, typer.Option(min=100, help="Images to train and validate on, at most; keeps big data sets short.")
    ] = 6000,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
) -> None:
    """Train small networks, fuse them, fine-tune, and write a page about it.

    First five clients that saw different images, fused at once; then networks from different seeds on the same images,
    fused, recovered and trained on, beside the members, their ensemble, plain averaging and "continue the best member"
    on the same budget. It needs no download and takes less than a minute.
    """
    check_installed("demo", "matplotlib", "pandas", "pydantic", "safetensors", "sklearn", "yaml")
    import torch
    from rich.console import Console

    from neurograft.errors import OptionError, closest
    from neurograft.methods import METHODS
    from neurograft_experiments.demo import Budget, run_demo
    from neurograft_experiments.networks import DEMONSTRATED

    networks = tuple(network or DEMONSTRATED)
    for name in networks:
        if name not in DEMONSTRATED:
            raise OptionError(f"unknown network {name!r}; {closest(name, DEMONSTRATED)}")
    methods = tuple(method or METHODS)
    for name in methods:
        if name not in METHODS:
            raise OptionError(f"unknown method {name!r}; {closest(name, METHODS)}")
    if data == "digits":
        torch.set_num_threads(1)  # for networks this small, several threads wait for each other more than they work
    budget = Budget(members=members, member_epochs=epochs, tuning_epochs=tuning_epochs, seed=seed)
    run_demo(data, output, networks=networks, methods=methods, samples=samples, budget=budget, console=Console())
