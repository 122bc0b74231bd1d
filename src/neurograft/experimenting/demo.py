"""The demonstration: members, fusion, recovery, and a page that shows all of it, in a minute and without a download."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from neurograft.checkpoints import write_checkpoint
from neurograft.errors import InputError
from neurograft.experimenting.comparison import Budget, Comparison, Tick, compare
from neurograft.experimenting.data import Images, load_images
from neurograft.experimenting.demo_page import demo_page, scores_table, takeaway
from neurograft.experimenting.networks import NETWORKS
from neurograft.experimenting.provenance import provenance
from neurograft.planning.methods import METHODS
from neurograft.reporting.tables import terminal_table


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What a demonstration wrote and measured."""

    comparisons: dict[str, Comparison]
    report: Path
    results: Path
    seconds: float


def run_demo(
    source: str,
    output: Path,
    *,
    networks: tuple[str, ...] = tuple(NETWORKS),
    methods: tuple[str, ...] = tuple(METHODS),
    samples: int | None = None,
    budget: Budget | None = None,
    console: Console | None = None,
) -> Demonstration:
    """Train members of each kind of network, fuse them, recover them, and write a page, result rows and checkpoints.

    Args:
        source: "digits", another data set or a folder, see `load_images`.
        output: the folder for `report.html`, `results.jsonl` and the networks; made if it is missing.
        networks: names in `neurograft.experimenting.networks.NETWORKS`.
        methods: names in `neurograft.planning.methods.METHODS`.
        samples: images to train and validate on, None for all.
        budget: epochs, step sizes, members and seed.
        console: where tables and progress go.

    Raises:
        InputError: if the output folder cannot be written to, before any training.
    """
    started = time.perf_counter()
    console = console if console is not None else Console()
    budget = budget if budget is not None else Budget()
    _prepare(output)
    images = load_images(source, samples=samples)
    console.print(_opening(images, budget), highlight=False)
    comparisons = {}
    with _progress(console, len(networks) * _epochs(budget, len(methods))) as say:
        for name in networks:
            title, make = NETWORKS[name]
            comparisons[name] = compare(
                lambda make=make: make(images.shape, images.classes),  # type: ignore[misc]
                images,
                budget,
                methods=methods,
                tick=lambda what, title=title: say(f"{title}: {what}"),  # type: ignore[misc]
            )
            console.print(terminal_table(scores_table(NETWORKS[name][0], comparisons[name], images)))
            console.print(takeaway(comparisons[name], images) + "\n", highlight=False)
            _save_networks(output, name, comparisons[name], budget)
    seconds = time.perf_counter() - started
    settings = {"data": images.name, "splits": _splits(images), **asdict(budget)}
    results = output / "results.jsonl"
    _write(results, "".join(json.dumps(row) + "\n" for row in _rows(comparisons, settings)))
    report = output / "report.html"
    _write(report, demo_page(comparisons, images, settings, provenance(), seconds))
    console.print(f"page     {report}\nresults  {results}\nnetworks {output}/*.safetensors", highlight=False)
    console.print(f"{seconds:.0f} s", highlight=False)
    return Demonstration(comparisons, report, results, seconds)


def _opening(images: Images, budget: Budget) -> str:
    sizes = ", ".join(f"{count} {name}" for name, count in _splits(images).items())
    return f"{images.name}: {sizes} images; {budget.members} members of each network, seed {budget.seed}\n"


def _splits(images: Images) -> dict[str, int]:
    return {"train": len(images.train), "validation": len(images.validation), "test": len(images.test)}


def _epochs(budget: Budget, methods: int) -> int:
    return budget.members * budget.member_epochs + 2 * (1 + methods) * budget.recovery_epochs


def _prepare(output: Path) -> None:
    """Find out now, not after the training, whether the folder can be written to."""
    probe = output / ".writable"
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{output} cannot be written to: {error.strerror}; choose another folder with --output"
        ) from error


@contextmanager
def _progress(console: Console, epochs: int) -> Iterator[Tick]:
    """A bar on a terminal; elsewhere one line per step."""
    if not console.is_terminal:
        seen: set[str] = set()

        def line(what: str) -> None:
            if what not in seen:
                seen.add(what)
                console.print(what, highlight=False)

        yield line
        return
    columns = (BarColumn(24), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=epochs)
        yield lambda what: bar.update(task, description=what, advance=1)


def _rows(comparisons: dict[str, Comparison], settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for network, comparison in comparisons.items():
        for outcome in comparison.outcomes:
            for split in ("validation", "test"):
                scores = asdict(getattr(outcome, split))
                yield {
                    "network": network,
                    "row": outcome.row,
                    "recovery": outcome.recovery,
                    "epoch": outcome.epoch,
                    "split": split,
                    **{key: None if math.isnan(value) else value for key, value in scores.items() if key != "seconds"},
                    "curve": outcome.curve,
                    "seconds": round(outcome.seconds, 3),
                    "seed": settings["seed"],
                    "configuration": settings,
                    **provenance(),
                }


def _save_networks(output: Path, name: str, comparison: Comparison, budget: Budget) -> None:
    """Keep members and fused networks, so that the other commands can be tried on them."""
    common = {"network": name, "seed": budget.seed, "torch": torch.__version__, "commit": provenance()["commit"]}
    for number, member in enumerate(comparison.members):
        write_checkpoint(member, output / f"{name}-member-{number}.safetensors", {**common, "member": number})
    for method, fused in comparison.fused.items():
        write_checkpoint(fused, output / f"{name}-{method}.safetensors", {**common, "method": method})


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
