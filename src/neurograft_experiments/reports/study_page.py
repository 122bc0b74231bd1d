"""The report of one study: the claims of its paper, tables, plots, and how all of it was made."""

from collections.abc import Iterator

from neurograft.reporting.document import Document, Heading, Paragraph, Part, Section
from neurograft_experiments.reports.charts import at_once_bars, epochs_chart, gain_bars, over_chart
from neurograft_experiments.reports.made import made_parts
from neurograft_experiments.reports.measures import TUNINGS
from neurograft_experiments.reports.panels import ReportPanel, panels_of
from neurograft_experiments.reports.results import RowGroup, StudyResults, Which
from neurograft_experiments.reports.tables import comparison_table, cost_table, over_table, rival_of, won_back_table
from neurograft_experiments.reports.verdicts import claims_table, judge
from neurograft_experiments.rows import BEST, CONTINUE, ENSEMBLE
from neurograft_experiments.study import About

HOW = {"none": "as it is", "finetune": "fine-tuned", "distill": "distilled"}


def study_document(
    about: About, results: StudyResults, *, name: str, preset: str, commands: tuple[str, ...]
) -> Document:
    """The report of a study.

    Args:
        about: its title, question, claims and plot.
        results: what was measured, and what is missing.
        name: of the study.
        preset: which of its presets.
        commands: what makes the rows and this report.
    """
    sections = []
    if about.claims:
        ours = about.paper == "neurograft"
        title = "What we expected" if ours else f"Claims of the paper on {about.paper}"
        sections.append(Section(title, (claims_table([judge(claim, results) for claim in about.claims]),)))
    measure = about.plot.measure
    x = about.plot.x if about.plot.x not in ("epoch", "row") else None
    for panel in panels_of(results, x, single=measure != "accuracy"):
        over = _accuracy_over(panel) if measure == "accuracy" else _measures_over(panel, measure)
        title = panel.title or (f"Over {panel.x_label}" if panel.x else "Comparison")
        sections.append(Section(title, tuple(_single(panel) if panel.x is None else over)))
    sections.append(Section("How this was made", tuple(made_parts(results, name, preset, commands))))
    return Document(f"{about.title} ({preset})", about.question, tuple(sections))


def _single(panel: ReportPanel) -> Iterator[Part]:
    """One setting: which network validation would choose, the table, bars, curves, costs."""
    if (found := takeaway(panel)) is not None:
        yield Paragraph(found, "takeaway")
    yield comparison_table(panel)
    if (table := won_back_table(panel)) is not None:
        yield table
    yield from at_once_bars(panel)
    yield from gain_bars(panel)
    for tuning in ("finetune", "distill"):
        yield from epochs_chart(panel, tuning)
    yield cost_table(panel)


def _accuracy_over(panel: ReportPanel) -> Iterator[Part]:
    """A varied quantity: per way of training a table and a plot over it, then the curves at each of its values."""
    for tuning in panel.tunings():
        yield Heading(f"{TUNINGS[tuning][:1].upper()}{TUNINGS[tuning][1:]}")
        if found := counts_against_rival(panel, tuning):
            yield Paragraph(found, "takeaway")
        yield over_table(panel, tuning)
        yield from over_chart(panel, tuning)
        if tuning != "none":
            yield from epochs_chart(panel, tuning)
            yield over_table(panel, tuning, "epochs")


def _measures_over(panel: ReportPanel, measure: str) -> Iterator[Part]:
    """Costs over a varied quantity: the study's measure, and the memory where rows have it."""
    remembered = any("memory" in row for row in panel.results.rows)
    for name in (measure, *(["memory"] if remembered and measure != "memory" else [])):
        for tuning in panel.tunings():
            yield over_table(panel, tuning, name)
            yield from over_chart(panel, tuning, name)


def takeaway(panel: ReportPanel) -> str | None:
    """One sentence: what validation would choose, beside what it must be compared with; None if nothing was measured.

    "Not distinguishable" means: closer than the noise over seeds and of the test set's size.
    """
    results, setting = panel.results, panel.settings[0]
    candidates = [group for group in results.in_setting(setting) if _fused(group)]
    if not candidates:
        return None
    chosen = max(candidates, key=lambda group: results.figure(group, "validation").mean)
    rivals = {"the best member": Which(BEST), "the ensemble": Which(ENSEMBLE)}
    for tuning in ("finetune", "distill"):
        rivals[f"the best member continued ({TUNINGS[tuning]})"] = Which(CONTINUE, tuning=tuning)
    groups = [results.find(setting, which) for which in rivals.values()]
    gaps = results.differences([(chosen, group) for group in groups])
    verdicts: dict[str, list[str]] = {}
    for words, group, gap in zip(rivals, groups, gaps, strict=True):
        if gap is not None:
            how = {0: "not distinguishable from", 1: "above", -1: "below"}[gap.sign]
            points = f"{100 * abs(gap.mean):.1f} points " if gap.sign else ""
            verdicts.setdefault(points + how, []).append(f"{words} ({100 * results.figure(group).mean:.1f} %)")
    parts = [f"{verdict} {', '.join(words)}" for verdict, words in verdicts.items()]
    return (
        f"Validation prefers {chosen.which.start}, {HOW[chosen.which.tuning]}: "
        f"{100 * results.figure(chosen).mean:.1f} % on the test images. That is {'; '.join(parts)}."
    )


def _fused(group: RowGroup) -> bool:
    """Whether it is what a practitioner could choose instead of the best member: a network of a member's size."""
    given = group.which.row in (BEST, ENSEMBLE, CONTINUE) or group.which.member
    return bool(group.rows) and not group.reference and not given


def counts_against_rival(panel: ReportPanel, tuning: str) -> str:
    """How often each start is above, equal to and below its rival along the varied quantity."""
    results, words = panel.results, []
    groups = [group for group in panel.groups if group.which.tuning == tuning and not group.reference]
    gaps = dict(zip(groups, results.differences([(own, rival_of(results, own)) for own in groups]), strict=True))
    for which in panel.whiches(tuning):
        signs = [gap.sign for group, gap in gaps.items() if group.which == which and gap is not None]
        if signs:
            words.append(f"{which.start} {signs.count(1)} / {signs.count(0)} / {signs.count(-1)}")
    rival_name = "the best member" if tuning == "none" else f"the best member continued ({TUNINGS[tuning]})"
    return f"Above / not distinguishable from / below {rival_name}: {', '.join(words)}." if words else ""
