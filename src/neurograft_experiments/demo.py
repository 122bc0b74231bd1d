"""The demonstration: members, fusion, recovery, and a page that shows all of it, in a minute and without a download."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from neurograft.checkpoints.atomic import temporary
from neurograft.errors import InputError, NeurograftError
from neurograft.escaping import terminal
from neurograft.fusing import Fusion
from neurograft.methods import METHODS
from neurograft.reporting.document import Paragraph, Section, html_page
from neurograft.reporting.provenance import provenance
from neurograft.reporting.tables import terminal_table
from neurograft_experiments.data import Images, load_images
from neurograft_experiments.engine import run_in_process
from neurograft_experiments.inside import inside_section
from neurograft_experiments.networks import DEMONSTRATED, demonstrated
from neurograft_experiments.reports.panels import panels_of
from neurograft_experiments.reports.results import StudyResults
from neurograft_experiments.reports.sources import RowFiles
from neurograft_experiments.reports.study_page import study_document, takeaway
from neurograft_experiments.reports.tables import SIGNS, comparison_table
from neurograft_experiments.reports.writing import write_text
from neurograft_experiments.running import run_task, start_of
from neurograft_experiments.store import Store
from neurograft_experiments.study import About, Plot, StudySettings
from neurograft_experiments.study_file import Point, Study
from neurograft_experiments.trial_cache import InitialModel, packed
from neurograft_experiments.trials import Task, study_rows, tasks_of, trials_of

PRESET = "demo"
CLIENTS = 5


@dataclass(frozen=True, slots=True)
class Budget:
    """How long and how fast members are trained and starts tuned: the same for every row.

    Attributes:
        members: how many networks are trained.
        member_epochs: epochs of each member.
        tuning_epochs: epochs of fine-tuning, and of distilling.
        member_lr: learning rate for the members.
        tuning_lr: learning rate for fine-tuning and distilling.
        batch: samples per step.
        seed: of everything.
    """

    members: int = 4
    member_epochs: int = 20
    tuning_epochs: int = 10
    member_lr: float = 0.02
    tuning_lr: float = 0.03
    batch: int = 32
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What a demonstration measured and wrote."""

    results: StudyResults
    page: Path
    rows: Path
    seconds: float


def run_demo(
    source: str,
    output: Path,
    *,
    networks: Sequence[str] = tuple(DEMONSTRATED),
    methods: Sequence[str] = tuple(METHODS),
    samples: int | None = None,
    budget: Budget | None = None,
    console: Console | None = None,
) -> Demonstration:
    """Train members of each kind of network, fuse them, recover them, and write a page, result rows and checkpoints.

    It is a study like those of `neurograft experiment`, run in a folder that is removed afterwards.

    Args:
        source: "digits", another data set or a folder, see `load_images`.
        output: the folder for `report.html`, `results.jsonl` and the networks; made if it is missing.
        networks: names in `neurograft_experiments.networks.DEMONSTRATED`.
        methods: names in `neurograft.methods.METHODS`.
        samples: images to train and validate on, None for all.
        budget: epochs, learning rates, members and seed.
        console: where tables and progress go.

    Raises:
        InputError: if the output folder cannot be written to, before any training.
        NeurograftError: if a network could not be trained or fused.
    """
    started = time.perf_counter()
    console, budget = console or Console(), budget or Budget()
    with _place(output) as place:
        images = load_images(source, samples=samples)
        clients = clients_study(source, images, samples, budget)
        study = demo_study(source, images, networks, methods, samples, budget)
        sizes = f"{len(images.train)} train, {len(images.validation)} validation, {len(images.test)} test images"
        console.print(f"{terminal(images.name)}: {sizes}; seed {budget.seed}\n", markup=False)
        store = Store(place)
        store.prepare()
        found_by_clients = _run(clients, place, store, console)
        results = _run(study, place, store, console)
        console.print(f"{SIGNS}\n", highlight=False)
        page, rows = output / "report.html", output / "results.jsonl"
        lines = [json.dumps(row) for own in (clients, study) for row in study_rows(own, PRESET, store)]
        write_text(rows, "".join(f"{line}\n" for line in lines))
        fused = [t for t in trials_of(study, PRESET) if t.labels["row"] in methods and t.labels["tuning"] == "none"]
        made = [(task, start_of(task, store)) for task in fused]
        _save_networks(output, tasks_of(study, PRESET), made, store)
        command = "neurograft demo" if source == "digits" else f"neurograft demo --data {source}"
        report = study_document(study.about, results, name="demo", preset="digits", commands=(command,))
        first = study_document(clients.about, found_by_clients, name="demo", preset="digits", commands=(command,))
        sections = (
            Section(clients.about.title, first.sections[0].parts),
            Section(study.about.title, (Paragraph(study.about.question),)),
            *report.sections[:-1],
            *_inside(made),
            report.sections[-1],
        )
        write_text(page, html_page(replace(first, title="neurograft: several networks into one", sections=sections)))
        store.close()
    seconds = time.perf_counter() - started
    written = terminal(f"page     {page}\nresults  {rows}\nnetworks {output}/*.safetensors", lines=True)
    console.print(written, highlight=False, markup=False)
    console.print(f"{seconds:.0f} s", highlight=False)
    return Demonstration(results, page, rows, seconds)


def clients_study(source: str, images: Images, samples: int | None, budget: Budget) -> Study:
    """Clients that saw mostly a few classes each: the case in which fusing pays most."""
    kept = min(100, len(images.train) // 4)
    transplant = {"method": "transplant", "options": {"balance": True}}
    settings = {
        "data": {"source": source, "samples": samples},
        "network": {"name": "mlp", "width": 64, "depth": 2, "bias": True},
        "members": {
            "count": CLIENTS,
            "epochs": 2 * budget.member_epochs,
            "lr": 0.05,
            "batch": min(16, budget.batch),
            "split": {"kind": "labels", "reserve": kept},
        },
        "starts": {
            "one-shot FedAvg": {"method": "average", "weights": "samples"},
            "fused": transplant,
            f"fused, {kept} unlabelled images": {**transplant, "recoveries": ["refit"]},
            "fused, clients' statistics": {**transplant, "statistics": "inputs", "recoveries": ["refit"]},
            "ensemble by clients' statistics": {"method": "ensemble", "statistics": True},
            "all data pooled": {"method": "pooled"},
        },
        "calibration": kept,
        "seeds": [budget.seed],
    }
    about = About(
        title=f"{CLIENTS} clients that saw different images",
        question=(
            f"Each of {CLIENTS} clients trained a network on images of mostly {-(-images.classes // CLIENTS)} classes, "
            "from an initialisation of its own, and sends no image. Which single network recognises all classes, made "
            "at once and without a gradient step?"
        ),
        paper="neurograft",
        plot=Plot(x="row"),
    )
    return Study("clients", about, {PRESET: (Point("", {}, StudySettings.model_validate(settings)),)})


def demo_study(
    source: str, images: Images, networks: Sequence[str], methods: Sequence[str], samples: int | None, budget: Budget
) -> Study:
    """The demonstration as a study: a case for each kind of network."""
    tuning = {"epochs": budget.tuning_epochs, "lr": budget.tuning_lr, "batch": budget.batch}
    members = {"count": budget.members, "epochs": budget.member_epochs, "lr": budget.member_lr, "batch": budget.batch}
    settings = {
        "data": {"source": source, "samples": samples},
        "members": members,
        "starts": {method: {} for method in methods},
        "recoveries": ["none", "refit"],
        "calibration": len(images.train),
        "tuning": {"finetune": tuning, "distill": tuning},
        "seeds": [budget.seed],
    }
    points = tuple(
        Point(
            DEMONSTRATED[name],
            {},
            StudySettings.model_validate({**settings, "network": demonstrated(name, images.shape)}),
        )
        for name in networks
    )
    about = About(
        title=f"{budget.members} networks into one",
        question=(
            f"{budget.members} networks were trained from different seeds on the same {len(images.train)} images, "
            "fused into one network of the same size, and trained on. Can that one network stand in for all "
            f"{budget.members}?"
        ),
        paper="neurograft",
    )
    return Study("demo", about, {PRESET: points})


@contextmanager
def _place(output: Path) -> Iterator[Path]:
    """A folder to work in, beside what is written; found out now, not after the training, whether that is possible."""
    with ExitStack() as until_done:
        try:
            output.mkdir(parents=True, exist_ok=True)
            place = until_done.enter_context(temporary(output / "working", folder=True))
        except OSError as error:
            raise InputError(
                f"{output} cannot be written to: {error.strerror}; choose another folder with --output"
            ) from error
        yield place


def _run(study: Study, place: Path, store: Store, console: Console) -> StudyResults:
    """Run a study, print its tables, and return what was measured."""
    console.print(f"{study.about.title}. {study.about.question}\n", highlight=False, markup=False)
    run_in_process(tasks_of(study, PRESET), store, run_task, console=console)
    for failure in store.failures():
        raise NeurograftError(f"{failure['label']}: {failure['error']}")
    results = RowFiles(place).results(study, PRESET)
    _show(results, console)
    return results


def _show(results: StudyResults, console: Console) -> None:
    for panel in panels_of(results, None):
        table = comparison_table(panel)
        title = f"{panel.title}. {table.title}" if panel.title else table.title
        console.print(terminal_table(replace(table, title=title, note="")))
        console.print(f"{takeaway(panel)}\n", highlight=False)


def _inside(made: Sequence[tuple[Task, InitialModel]]) -> Iterator[Section]:
    """A section for each kind of network."""
    cases: dict[str, dict[str, list[Fusion]]] = {}
    for task, start in made:
        if start.fusion is not None:
            cases.setdefault(task.labels["case"], {}).setdefault(task.labels["row"], []).append(start.fusion)
    yield from (inside_section(case, fusions) for case, fusions in cases.items())


def _save_networks(
    output: Path, tasks: Sequence[Task], made: Sequence[tuple[Task, InitialModel]], store: Store
) -> None:
    """Keep members and fused networks, so that the other commands can be tried on them."""
    networks: dict[str, bytes] = {}
    for task in tasks:
        if task.kind == "member":
            networks[f"{task.settings['network']['name']}-member-{task.labels['member']}"] = store.tensors(task.key)
    for task, start in made:
        if task.labels["recovery"] == "none":
            metadata = {"key": task.key, "label": task.label, "commit": provenance()["commit"]}
            networks[f"{task.settings['network']['name']}-{task.labels['row']}"] = packed(start.network, metadata)
    for name, tensors in networks.items():
        (output / f"{name}.safetensors").write_bytes(tensors)
