"""`neurograft advise`."""

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neurograft.command_line.arguments import check_folder, check_output
from neurograft.command_line.printing import print_lines
from neurograft.command_line.streaming import MemberFiles, Network, names_folder
from neurograft.errors import InputError
from neurograft.escaping import terminal
from neurograft.paths import is_folder

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from neurograft.advising.result import Advice


def advise(
    factory: Network,
    members: MemberFiles,
    data: Annotated[
        str,
        typer.Option(
            help="`digits` (ships inside scikit-learn); `mnist`, `fashion_mnist`, `svhn`, `cifar10`, `cifar100` or "
            "another name on the Hugging Face hub; or a folder of parquet files, or of images per class."
        ),
    ] = "digits",
    data_folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where local copies of data sets lie, such as FOLDER/mnist."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=10, help="Images to train and validate on, at most.", show_default="all")
    ] = None,
    epochs: Annotated[
        int, typer.Option(min=0, help="How long any recipe may train; 0: what can be done without training.")
    ] = 20,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Of the whole search, instead of --epochs: as many epochs as fit.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A fusion method to try; repeat it for several.", show_default="all that need no data"),
    ] = None,
    lr: Annotated[
        list[float] | None,
        typer.Option(help="A learning rate to try; repeat it for several.", show_default="0.01 and 0.03"),
    ] = None,
    batch: Annotated[int, typer.Option(min=2, help="Samples per step.")] = 64,
    augment: Annotated[bool, typer.Option("--augment", help="Random crops and flips of the training images.")] = False,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of distilling.")] = 2.0,
    test: Annotated[
        bool, typer.Option("--test/--no-test", help="Read the test images once, for the networks in the final table.")
    ] = True,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the recommended network: a .safetensors file, or a folder for model folders."
        ),
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Write a page about it: an .html file.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to train: `cpu`, `cuda`.", show_default="where the members are: the CPU")
    ] = None,
    seed: Annotated[int, typer.Option(help="The only source of randomness.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the output file if it exists.")] = False,
) -> None:
    """Find out whether fusing pays for your members, and by which recipe.

    Every way to fuse them is tried a little on labelled images, the best further, beside the best member trained on for
    as long, fine-tuned and taught by the ensemble. Validation images choose. The verdict may be "do not fuse".

    Example: `neurograft advise package.module:function a.safetensors b.safetensors --data FOLDER --epochs 10`

    Example: `neurograft advise vit-a vit-b --data FOLDER --minutes 30 --output vit-fused --page advice.html`
    """
    from rich.console import Console

    from neurograft.advising.advice import USUAL
    from neurograft.advising.advice import advise as find
    from neurograft.plugins import load_images

    folders = names_folder(factory)
    _check_targets(output, page, folders=folders, force=force)
    paths = [Path(factory), *members] if folders else list(members)
    networks = [_folder_network(path) for path in paths] if folders else _networks(factory, members, seed)
    images = load_images(data, samples=samples, folder=data_folder)
    with _progress_line(Console(stderr=True)) as progress:
        advice = find(
            networks,
            images.train.batches(batch, shuffle=True, augment=augment),
            images.validation.batches(),
            images.test.batches() if test else None,
            epochs=epochs,
            minutes=minutes,
            methods=tuple(method or USUAL),
            lr=tuple(lr or (0.01, 0.03)),
            temperature=temperature,
            calibration=images.train.batches(),
            example_inputs=images.train.examples(2),
            seed=seed,
            device=device,
            progress=progress,
        )
    print_lines(str(advice))
    if output is not None:
        _write_network(advice, output, factory, paths, seed)
        print_lines(f"network  {output}")
    if page is not None:
        _write_page(advice, page, images, paths, seed)
        print_lines(f"page     {page}")


def _check_targets(output: Path | None, page: Path | None, *, folders: bool, force: bool) -> None:
    """Find out before the search whether its results can be written."""
    from neurograft.checkpoints.atomic import check_target

    if output is not None and folders:
        if not (force and is_folder(output)):
            check_folder(output)
    elif output is not None:
        check_output(output, force=force)
    if page is not None:
        if page.suffix != ".html":
            raise InputError(f"--page {page} must end in .html")
        check_target(page)


def _networks(factory: str, checkpoints: list[Path], seed: int) -> "list[nn.Module]":
    from neurograft.checkpoints import load_into
    from neurograft.command_line.arguments import build

    return [load_into(build(factory, seed), path) for path in checkpoints]


def _folder_network(folder: Path) -> "nn.Module":
    """A Hugging Face model with its weights."""
    from neurograft.applying.huggingface import open_folder

    kind: Any = type(open_folder(folder).network)
    network: nn.Module = kind.from_pretrained(str(folder), local_files_only=True, attn_implementation="eager")
    return network.eval()


def _write_network(advice: "Advice", output: Path, factory: str, paths: list[Path], seed: int) -> None:
    from neurograft.applying.huggingface import carried
    from neurograft.checkpoints import open_checkpoint, sha256, write_checkpoint

    network: Any = advice.network
    if names_folder(factory):
        network.save_pretrained(str(output))
        for file in carried(paths[0]):  # tokenizer, preprocessing: what transformers does not write with a network
            if not (output / file.name).exists():
                shutil.copyfile(file, output / file.name)
        return
    recipe = advice.recipe
    record = {"network": factory, "recipe": recipe.name, "fused": advice.fuse, "seed": seed}
    files = {path.name: open_checkpoint(path).files for path in paths}
    hashes = {name: {file.name: sha256(file) for file in own} for name, own in files.items()}
    write_checkpoint(network, output, record | {"members": hashes})


def _write_page(advice: "Advice", page: Path, images: Any, paths: list[Path], seed: int) -> None:
    from neurograft.advising.page import advice_document
    from neurograft.checkpoints.atomic import whole
    from neurograft.reporting.document import html_page
    from neurograft.reporting.provenance import computer_text, provenance

    made = provenance()
    sizes = f"{len(images.train)} training, {len(images.validation)} validation, {len(images.test)} test images"
    facts = {
        "command": shlex.join(["neurograft", *sys.argv[1:]]),
        "members": ", ".join(map(str, paths)),
        "data": f"{images.name}: {sizes}",
        "seed": str(seed),
        "commit": made["commit"],
        "versions": ", ".join(f"{name} {version}" for name, version in made["versions"].items()),
        "hardware": computer_text(made["hardware"]),
    }
    with whole(page) as part:
        part.write_text(html_page(advice_document(advice, facts)), encoding="utf-8")


@contextmanager
def _progress_line(console: "Console") -> Iterator[Callable[[str], None]]:
    """What is being done, on one line of a terminal; nothing elsewhere."""
    if not console.is_terminal:
        yield lambda _: None
        return
    from rich.text import Text

    with console.status("measuring the members") as status:
        yield lambda text: status.update(Text(terminal(text)))
