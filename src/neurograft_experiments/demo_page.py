"""The demonstration's page: a study's report, and what happened inside the networks."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from neurograft.plans.plan import FusionPlan
from neurograft.recovery.report import RecoveryReport
from neurograft.reporting.document import Document, Heading, Paragraph, Part, Picture, Section
from neurograft.reporting.groups import groups_table
from neurograft.reporting.origins import origins_picture
from neurograft.reporting.recovery import axis_end, recovery_picture, recovery_words
from neurograft_experiments.reports.results import Results
from neurograft_experiments.reports.study_page import study_document
from neurograft_experiments.study import About
from neurograft_experiments.trial_cache import Made
from neurograft_experiments.trials import Task

_REFITTED = (
    "How far each layer's output is from what the members say it should be: the ring before, the dot after (a dot "
    "alone where the weights were kept), as a share of what it should be. Orange layers add to a residual stream, and "
    "should give what is missing in it."
)
_OWNED = (
    "One strip per member: the stronger a cell, the more of that neuron went into the fused network; the faintest were "
    "left out, or share a fused neuron with many others. The strip below is the fused layer."
)
_ALIGNED = (
    "Every fused neuron is the mean of one neuron (or a mixture) of each member. Columns are the fused neurons; the "
    "shade says which neuron of the member arrives there, from its first (faint) to its last (strong). A smooth strip "
    "has kept its order."
)


def demo_document(
    about: About, results: Results, made: Sequence[tuple[Task, Made]], commands: tuple[str, ...]
) -> Document:
    """The report of the demonstration.

    Args:
        about: its title and question.
        results: what was measured.
        made: every fused network, as it came and refitted, with the trial that it belongs to.
        commands: what makes all of it.
    """
    report = study_document(about, results, name="demo", preset="digits", commands=commands)
    cases = dict.fromkeys(task.labels["case"] for task, _ in made)
    inside = [_inside(case, [(t, m) for t, m in made if t.labels["case"] == case]) for case in cases]
    return replace(
        report, title=f"neurograft: {about.title}", sections=(*report.sections[:-1], *inside, report.sections[-1])
    )


def _inside(case: str, made: Sequence[tuple[Task, Made]]) -> Section:
    """Of one kind of network: what refitting did, where neurons came from, and which groups there are."""
    name = made[0][0].settings["network"]["name"]
    fusions = [(task.labels["row"], start.fusion) for task, start in made if start.fusion is not None]
    plans = {row: fusion.plan for row, fusion in fusions if not fusion.recoveries}
    reports = {row: found for row, fusion in fusions if (found := fusion.report.recovery)}
    parts: list[Part] = [*_refitted(name, reports)]
    for method, plan in plans.items():
        parts += _origins(name, method, plan)
    graph = next(iter(plans.values())).graph
    parts += [Heading(f"The {len(graph)} neuron groups"), groups_table(graph)]
    return Section(f"{case}: inside", tuple(parts))


def _refitted(name: str, reports: dict[str, RecoveryReport]) -> Iterator[Part]:
    """How far every layer was from the members before and after it was refitted, one picture per method."""
    yield Heading("Refitting, layer by layer")
    yield Paragraph(_REFITTED, "soft")
    end = axis_end(reports.values())
    for method, report in reports.items():
        yield Paragraph(f"{method}: {recovery_words(report)}", "soft")
        if picture := recovery_picture(report, end):
            yield Picture(picture, f"relative error of every layer of {method}", f"{name}-{method}-refit")


def _origins(name: str, method: str, plan: FusionPlan) -> Iterator[Part]:
    if picture := origins_picture(plan):
        yield Heading(f"Where each fused neuron came from: {method}")
        yield Paragraph(_OWNED if plan.owned else _ALIGNED, "soft")
        yield Picture(picture, f"where each neuron of {method} came from", f"{name}-{method}-origins")
    for text in plan.warnings:
        yield Paragraph(f"Warning: {text}", "note")
