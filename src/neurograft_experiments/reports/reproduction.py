"""`docs/reproduction.md`: every claim of the two papers, point by point, beside what was measured."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from neurograft.reporting.document import Code, Document, Heading, Paragraph, Part, Section
from neurograft.reporting.tables import Table
from neurograft_experiments.reports.markdown import markdown_page
from neurograft_experiments.reports.panels import panels_of
from neurograft_experiments.reports.sources import RowFiles
from neurograft_experiments.reports.tables import comparison_table
from neurograft_experiments.reports.verdicts import findings_table, judge
from neurograft_experiments.reports.writing import Reported, write_text
from neurograft_experiments.study import PRESETS
from neurograft_experiments.study_file import Study

PAPERS = {
    "neuron transplantation": "Model Fusion via Neuron Transplantation (arXiv 2502.06849)",
    "optimal transport": "Model Fusion via Optimal Transport (arXiv 1910.05653)",
    "neurograft": "Our own studies",
}
LEAD = (
    "Each claim of the two papers, and of our own studies, beside what was measured here. Every measured figure comes "
    "from the rows in results/, of the preset that has most of a study; a study that was not run is marked, and trials "
    "that presets share count in each. A difference counts if it exceeds the noise over seeds and of the test set's "
    "size (± in the tables); closer figures are called equal."
)
GPU = "paper-short"


def reproduction_document(reported: Mapping[str, Sequence[Reported]], commands: Sequence[str]) -> Document:
    """The whole comparison.

    Args:
        reported: preset -> its studies, smaller presets first. Claims are judged on the preset that has most results
            of a study, of several with as many on the largest.
        commands: what makes the rows and this page.
    """
    studies: dict[str, list[Reported]] = {}
    for entries in reported.values():
        for one in entries:
            studies.setdefault(one.study.name, []).append(one)
    chosen = [max(reversed(presets), key=lambda one: one.measured) for presets in studies.values()]
    sections = [Section("In one table", (_overview(studies), _summary(chosen)))]
    for paper, title in PAPERS.items():
        parts = [part for one in chosen if one.study.about.paper == paper for part in _study(one)]
        if parts:
            sections.append(Section(title, tuple(parts)))
    gpu = [part for one in reported.get(GPU, ()) for part in _tables(one)]
    if gpu:
        sections.append(Section("On a GPU (preset paper-short)", tuple(gpu)))
    sections.append(Section("How this page was made", (Code("\n".join(commands)),)))
    return Document("The papers' claims, and what was measured", LEAD, tuple(sections))


def write_reproduction(
    studies: Sequence[Study], source: RowFiles, path: Path, seeds: Sequence[int] | None = None
) -> None:
    """Write the comparison as Markdown, from the results of every preset but smoke.

    Args:
        studies: whose papers' claims are judged.
        source: where the rows are.
        path: the Markdown file.
        seeds: instead of the presets' own.

    Raises:
        InputError: the file cannot be written.
    """
    reported: dict[str, list[Reported]] = {
        preset: [
            Reported(study, preset, source.results(study, preset, seeds))
            for study in studies
            if preset in study.presets
        ]
        for preset in PRESETS
        if preset != "smoke"
    }
    commands = []
    for preset, entries in reported.items():
        names = " ".join(one.study.name for one in entries if one.measured and not one.results.missing)
        if names:
            run = f"{names} --preset {preset} --output runs/{preset}"
            commands.append(f"neurograft experiment run {run}")
            commands.append(f"neurograft experiment report {run} --to {source.folder / preset}")
    everything = " ".join(study.name for study in studies)
    commands.append(f"neurograft experiment report {everything} --output {source.folder} --claims {path}")
    write_text(path, markdown_page(reproduction_document(reported, commands)))


def _overview(studies: Mapping[str, Sequence[Reported]]) -> Table:
    """How much of each study was run, in every preset."""
    presets = list(dict.fromkeys(one.preset for entries in studies.values() for one in entries))
    rows = []
    for name, entries in studies.items():
        there = {one.preset: one.there for one in entries}
        rows.append((name, *(there.get(preset, "–") for preset in presets)))
    return Table("Results, of those a preset has", ("study", *presets), tuple(rows))


def _summary(chosen: Sequence[Reported]) -> Table:
    """Every claim in a line."""
    rows = []
    for one in chosen:
        for claim in one.study.about.claims:
            verdict = judge(claim, one.results)
            rows.append((one.study.name, claim.text, verdict.text, verdict.difference_text))
    return Table("Claims", ("study", "claim", "verdict", "by how much"), tuple(rows))


def _study(one: Reported) -> Iterator[Part]:
    about = one.study.about
    yield Heading(f"{about.title} ({one.preset}: {one.there} results)")
    yield Paragraph(about.question)
    for claim in about.claims:
        verdict = judge(claim, one.results)
        yield Paragraph(f"“{claim.text}” ({claim.source}): {verdict.text}.", "takeaway")
        if verdict.state != "not measured":
            yield findings_table(one.results, verdict)


def _tables(one: Reported) -> Iterator[Part]:
    yield Heading(f"{one.study.about.title}: {one.there}")
    for panel in panels_of(one.results, None):
        if panel.title:
            yield Paragraph(f"{panel.title}:")
        yield comparison_table(panel)
