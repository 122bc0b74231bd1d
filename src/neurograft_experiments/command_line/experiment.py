"""`neurograft experiment list | run | report`."""

import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from neurograft.command_line.printing import print_error, print_lines
from neurograft.errors import OptionError
from neurograft_experiments.command_line import check_installed

if TYPE_CHECKING:
    from rich.console import Console

    from neurograft_experiments.engine import Outcome
    from neurograft_experiments.store import Store
    from neurograft_experiments.study_query import StudyQuery
    from neurograft_experiments.trials import Task

FAILURES_SHOWN = 5
RAY = "With --engine ray"

experiment = typer.Typer(
    name="experiment",
    help="Run the papers' studies, or your own, and report on them: `list`, `run`, `report`.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Studies = Annotated[
    list[str],
    typer.Argument(
        metavar="STUDY...",
        help="Names from `neurograft experiment list`, paths of YAML files of your own, or `all` (all that have the "
        "preset).",
    ),
]
Preset = Annotated[
    str,
    typer.Option(
        metavar="PRESET",
        help="How long it may take: `smoke` (seconds, shows only that it works), `small` (two cores, 90 "
        "minutes for all studies), `medium` (more images, epochs and seeds), `paper-short` (one GPU), `paper`.",
    ),
]
Seeds = Annotated[
    str | None,
    typer.Option(
        metavar="SEEDS",
        help="How many (`5` is 0 to 4) or which (`3-5`, `0,7`).",
        show_default="those of the preset",
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="FOLDER", help="Folder for results and members. Several studies and runs share one."
    ),
]
Only = Annotated[
    list[str],
    typer.Option(
        metavar="PATTERN",
        help="Only trials whose label (see the lines of a run) contains this, or matches it where it has `*` or `?`; "
        "repeat it for several.",
    ),
]
OUTPUT = Path("runs/experiments")


@experiment.callback()
def _check() -> None:
    check_installed("experiments", "matplotlib", "pandas", "pydantic", "safetensors", "yaml")


@experiment.command("list")
def list_studies() -> None:
    """Show the studies, the question of each, and the presets it has."""
    from rich.console import Console

    from neurograft.reporting.tables import Table, terminal_table
    from neurograft_experiments.study_file import study_summaries

    rows = tuple((name, question, ", ".join(presets)) for name, (_, question, presets) in study_summaries().items())
    Console().print(terminal_table(Table("Studies", ("study", "question", "presets"), rows)))
    print_lines("Run one: neurograft experiment run STUDY --preset smoke")


@experiment.command()
def run(
    studies: Studies,
    preset: Preset = "smoke",
    seeds: Seeds = None,
    only: Only = [],  # noqa: B006 - typer reads the default, nothing writes to it
    output: Output = OUTPUT,
    data_folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where local copies of data sets lie, such as FOLDER/mnist; what is not there comes from the Hugging "
            "Face hub. On a cluster: the same path on every host.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="`cpu`, `cuda`, `cuda:1`, `mps`, or `auto`: a GPU where there is one.")
    ] = "auto",
    engine: Annotated[
        Literal["in-process", "ray"],
        typer.Option(help="One trial after the other in this process, or many at a time on Ray."),
    ] = "in-process",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="A running cluster: `auto`, `host:6379` or `ray://host:10001`.",
            show_default="this machine",
            rich_help_panel=RAY,
        ),
    ] = None,
    cpus_per_trial: Annotated[
        float,
        typer.Option(min=0.1, metavar="N", help="CPUs of a trial, and its threads.", rich_help_panel=RAY),
    ] = 1,
    gpus_per_trial: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="N",
            help="GPUs of a trial; `0.5` lets two share one.",
            show_default="1 if the cluster has GPUs",
            rich_help_panel=RAY,
        ),
    ] = None,
    retries: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="How often a trial runs again when its worker dies.", rich_help_panel=RAY
        ),
    ] = 3,
    fail_fast: Annotated[
        bool,
        typer.Option("--fail-fast", help="Stop at the first trial that fails instead of going on with the others."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show how much there is to do and how much is done; run nothing.")
    ] = False,
) -> None:
    """Train members, fuse them, train on, and keep one row per trial.

    What is finished is never run again: stop it whenever you like (Ctrl-C, a job that ends, a power cut), and give the
    same command again.

    Exit code 0: every trial has its row. 1: some failed. 2: it could not be run. 130: interrupted.

    Example: `neurograft experiment run comparison --preset smoke`

    Example: `neurograft experiment run all --preset small --engine ray --data-folder data`
    """
    from rich.console import Console

    from neurograft_experiments.devices import AUTO, check_device, choose_device
    from neurograft_experiments.engine import run_in_process
    from neurograft_experiments.running import run_task
    from neurograft_experiments.store import Store
    from neurograft_experiments.study_query import ask, parse_seeds

    _check_engine(engine, address, gpus_per_trial)
    check_device(device)
    asked = ask(studies, preset, parse_seeds(seeds), only)
    tasks = tuple({task.key: task for one in asked for task in one.tasks}.values())
    store, console = Store(output), Console()
    if dry_run:
        _show_standing(asked, store, console, preset)
        return
    part = address is None or not address.startswith("ray://")  # else this machine is no part of the cluster
    _prepare(tasks, store, data_folder, look=part)
    device = "cpu" if device == AUTO and gpus_per_trial == 0 else device
    work = partial(run_task, data_folder=data_folder, device=device)
    with _interruptible(store):
        if engine == "ray":
            from neurograft_experiments.cluster import run_on_ray

            outcome = run_on_ray(
                tasks,
                store,
                work,
                address=address,
                cpus=cpus_per_trial,
                gpus=gpus_per_trial,
                retries=retries,
                fail_fast=fail_fast,
                console=console,
            )
        else:
            choose_device(device)
            outcome = run_in_process(tasks, store, work, fail_fast=fail_fast, console=console)
    _show_outcome(asked, outcome, store)
    where = [] if output == OUTPUT else ["--output", str(output)]
    print_lines(
        f"Tables and plots: {shlex.join(['neurograft', 'experiment', 'report', *studies, '--preset', preset, *where])}"
    )
    if outcome.left:
        raise typer.Exit(1)


def _prepare(tasks: "Sequence[Task]", store: "Store", data_folder: Path | None, *, look: bool) -> None:
    """Find out before the work whether factories and data sets are there, and results can be written and will fit."""
    from neurograft_experiments.disk_space import room_for
    from neurograft_experiments.engine import TaskQueue
    from neurograft_experiments.study_query import check_data, check_factories

    store.prepare()
    if look:
        left = tuple(TaskQueue(tasks, store).pending.values())
        check_factories(left)
        check_data(left, data_folder)
    store.check_room(room_for(tasks, store, imports=look))


def _check_engine(engine: str, address: str | None, gpus: float | None) -> None:
    if engine == "ray":
        return
    if address is not None:
        raise OptionError("--address belongs to --engine ray")
    if gpus is not None:
        raise OptionError("--gpus-per-trial belongs to --engine ray; in this process --device names where to compute")


@contextmanager
def _interruptible(store: "Store") -> Iterator[None]:
    """Ctrl-C and SIGTERM (a job that ends) print how to go on, and end with exit code 130.

    What was interrupted may raise another error than KeyboardInterrupt, or none: a library that it was in catches it.
    """
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    received = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal received
        received = True
        raise KeyboardInterrupt

    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # `nohup` stays that
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    except BaseException as error:
        if not received and not isinstance(error, KeyboardInterrupt):
            raise
        received = True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        print_error(f"\nstopped. {store.safe()}:\n  {shlex.join(['neurograft', *sys.argv[1:]])}")
        raise typer.Exit(130)


def _show_standing(asked: "Sequence[StudyQuery]", store: "Store", console: "Console", preset: str) -> None:
    """How much there is to do, per study and in all."""
    from neurograft.checkpoints.writing import size_text
    from neurograft.reporting.tables import Table, terminal_table
    from neurograft_experiments.disk_space import room_for
    from neurograft_experiments.study_query import progress_of

    everything = tuple({task.key: task for one in asked for task in one.tasks}.values())
    rows = [(one.name, progress_of(one.tasks, store)) for one in asked]
    if len(rows) > 1:
        rows.append(("all together", progress_of(everything, store)))
    table = Table(
        title=f"Preset {preset}, results in {store.folder}",
        columns=("study", "trials", "done", "failed", "members to train", "epochs left"),
        rows=tuple((name, *(str(n) for n in (s.trials, s.done, s.failed, s.members, s.epochs))) for name, s in rows),
        numeric=5,
        rules=frozenset({len(rows) - 2}) if len(rows) > 1 else frozenset(),
        note="Members and trials that studies share count in each of them, and once in all together."
        if len(rows) > 1
        else "",
    )
    console.print(terminal_table(table))
    print_lines(f"{size_text(room_for(everything, store, imports=False))} will be written. Nothing was run.")


def _show_outcome(asked: "Sequence[StudyQuery]", outcome: "Outcome", store: "Store") -> None:
    """What is there now, and what failed."""
    from neurograft_experiments.store import DATABASE, counted

    for one in asked:
        done = sum(store.has(task.key) for task in one.trials)
        print_lines(f"{one.name}: {done} of {len(one.trials)} trials")
    failures = [failure for failure in store.failures() if failure["label"] in outcome.failed]
    for failure in failures[:FAILURES_SHOWN]:
        print_error(f"failed: {failure['label']}: {failure['error']}")
    if outcome.failed:
        more = f", {counted(len(outcome.skipped), 'trial')} that need them left out" if outcome.skipped else ""
        print_error(
            f"{counted(len(outcome.failed), 'task')} failed{more}: tracebacks are in the table failures of "
            f"{store.folder / DATABASE}. The same command tries again"
        )


@experiment.command()
def report(
    studies: Studies,
    preset: Preset = "smoke",
    seeds: Seeds = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where the rows are: the folder of a run, done or not."),
    ] = OUTPUT,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where the pages are written.", show_default="report in the folder of the rows"
        ),
    ] = None,
    claims: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.md",
            help="Instead of pages, write one Markdown file: each claim of the papers beside what was measured, in all "
            "presets but smoke.",
        ),
    ] = None,
) -> None:
    """Write tables, plots and verdicts: a page, Markdown and the rows of each study, and an index over them.

    It may be given while a run is going on: what is not there yet is shown as not run.

    Example: `neurograft experiment report comparison --preset smoke`
    """
    from neurograft_experiments.reports.reproduction import write_reproduction
    from neurograft_experiments.reports.sources import RowFiles
    from neurograft_experiments.reports.writing import write_reports
    from neurograft_experiments.study_query import parse_seeds, studies_named

    wanted, found = parse_seeds(seeds), studies_named(studies, None if claims is not None else preset)
    source = RowFiles(output)
    for damaged in source.left_out:
        print_error(f"warning: {damaged}")
    if claims is not None:
        write_reproduction(tuple(found.values()), source, claims, wanted)
        print_lines(f"wrote {claims}")
        return
    target = output / "report" if to is None else to
    reported = write_reports(tuple(found.values()), preset, source, target, wanted)
    for one in reported:
        print_lines(f"{one.study.name} ({preset}): {one.there} results")
    print_lines(f"wrote {target / 'index.html'}")
