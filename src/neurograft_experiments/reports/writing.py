"""Reports as files: a page with plots, Markdown, and the rows, for every study, and an index over them."""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from neurograft.checkpoints.atomic import whole
from neurograft.errors import CheckpointError, InputError
from neurograft.escaping import address
from neurograft.reporting.document import Document, Links, Section, html_page
from neurograft.reporting.tables import Table
from neurograft_experiments.reports.markdown import markdown_page
from neurograft_experiments.reports.results import StudyResults
from neurograft_experiments.reports.sources import RowFiles
from neurograft_experiments.reports.study_page import study_document
from neurograft_experiments.reports.verdicts import STATES, judge
from neurograft_experiments.study_file import Study


@dataclass(frozen=True, eq=False)
class Reported:
    """One study's results in one preset."""

    study: Study
    preset: str
    results: StudyResults

    @property
    def measured(self) -> int:
        """How many results are there."""
        return sum(len(group.rows) for group in self.results)

    @property
    def expected(self) -> int:
        """How many there should be."""
        return self.measured + self.results.missing

    @property
    def there(self) -> str:
        """How many results are there, in words."""
        return f"{self.measured} of {self.expected}" if self.measured else "not run"


def write_reports(
    studies: Sequence[Study], preset: str, source: RowFiles, target: Path, seeds: Sequence[int] | None = None
) -> tuple[Reported, ...]:
    """Write for every study STUDY.html with plots, STUDY.md with the tables, STUDY.jsonl, and index.html over all.

    Args:
        studies: what to report on.
        preset: of each of them.
        source: where the rows are.
        target: the folder to write to; it is made if it is missing.
        seeds: instead of the preset's own.

    Raises:
        StudyError: a study has no such preset.
        InputError: nothing at all was measured, or the folder cannot be written to.
    """
    reported = tuple(Reported(study, preset, source.results(study, preset, seeds)) for study in studies)
    if not any(one.measured for one in reported):
        names = " ".join(study.name for study in studies)
        raise InputError(
            f"{source.folder} holds no results of {names} (preset {preset}); "
            f"neurograft experiment run {names} --preset {preset} --output {source.folder} makes them"
        )
    for one in reported:
        document = _document(one, source.folder, seeds)
        write_text(target / f"{one.study.name}.html", html_page(document))
        write_text(target / f"{one.study.name}.md", markdown_page(document))
        write_text(target / f"{one.study.name}.jsonl", "".join(f"{line}\n" for line in _lines(one.results)))
    write_text(target / "index.html", html_page(index_document(reported, preset)))
    return reported


def index_document(reported: Sequence[Reported], preset: str) -> Document:
    """The question of each study, how much of each was measured, and how many of its paper's claims held."""
    links = Links(
        tuple((one.study.about.title, address(f"{one.study.name}.html"), one.study.about.question) for one in reported)
    )
    rows = []
    for one in reported:
        states = [judge(claim, one.results).state for claim in one.study.about.claims]
        words = "; ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
        rows.append((one.study.about.title, one.study.about.paper, one.there, words or "–"))
    table = Table(f"What was measured, preset {preset}", ("study", "paper", "results", "claims"), tuple(rows))
    return Document(
        f"neurograft: studies ({preset})",
        "Each study has a page with its tables, plots, and how they were made.",
        (Section("Studies", (links, table)),),
    )


def _document(one: Reported, source: Path, seeds: Sequence[int] | None) -> Document:
    name, preset = one.study.name, one.preset
    asked = [name, "--preset", preset, *(["--seeds", ",".join(map(str, seeds)) + ","] if seeds is not None else [])]
    asked += ["--output", str(source)]
    commands = tuple(shlex.join(["neurograft", "experiment", verb, *asked]) for verb in ("run", "report"))
    return study_document(one.study.about, one.results, name=name, preset=preset, commands=commands)


def _lines(results: StudyResults) -> Iterator[str]:
    """The rows of a study, under its own labels, in its own order."""
    for row in results.rows:
        yield json.dumps(row)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, its folder too if there is none.

    Raises:
        InputError: it cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as part:
            part.write_text(text, encoding="utf-8")
    except (OSError, CheckpointError) as error:
        raise InputError(f"{path} cannot be written: {error}; choose another place with --to or --claims") from error
