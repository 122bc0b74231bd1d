"""The report of one study: what its paper says, tables, plots, and how all of it was made."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from neurograft.reporting.document import Document, Heading, Paragraph, Part, Picture, Section
from neurograft_experiments.reports.charts import at_once_bars, epochs_chart, gain_bars, over_chart
from neurograft_experiments.reports.made import made_parts
from neurograft_experiments.reports.measures import difference, summary
from neurograft_experiments.reports.panels import TUNINGS, Panel, panels_of
from neurograft_experiments.reports.results import BEST, CONTINUE, ENSEMBLE, Group, Results, Which
from neurograft_experiments.reports.tables import comparison_table, cost_table, over_table, rival_of, won_back_table
from neurograft_experiments.reports.verdict_tables import claims_table
from neurograft_experiments.reports.verdicts import judge

if TYPE_CHECKING:
    from neurograft_experiments.study import About

HOW = {"none": "as it is", "finetune": "fine-tuned", "distill": "distilled"}


def study_document(about: "About", results: Results, *, name: str, preset: str, commands: tuple[str, ...]) -> Document:
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
        verdicts = tuple(judge(claim, results) for claim in about.claims)
        ours = about.paper == "neurograft"
        title = "What we expected" if ours else f"What the paper on {about.paper} says"
        sections.append(Section(title, (claims_table(verdicts),)))
    x = about.plot.x if about.plot.x not in ("epoch", "row") else None
    measure = about.plot.measure
    panels = panels_of(results, x, single=measure != "accuracy")
    for number, panel in enumerate(panels):
        stem = f"{name}-{number}"
        parts = (
            _single(results, panel, stem)
            if panel.x is None
            else _accuracy_over(results, panel, stem)
            if measure == "accuracy"
            else _measures_over(results, panel, stem, measure)
        )
        title = panel.title or (f"Over {panel.x_label}" if panel.x else "Comparison")
        sections.append(Section(title, tuple(parts)))
    sections.append(Section("How this was made", tuple(made_parts(results, name, preset, commands))))
    return Document(f"{about.title} ({preset})", about.question, tuple(sections))


def _single(results: Results, panel: Panel, stem: str) -> Iterator[Part]:
    """One setting: which network validation would choose, the table, bars, curves, costs."""
    if (found := takeaway(results, panel)) is not None:
        yield Paragraph(found, "takeaway")
    yield comparison_table(results, panel)
    if (table := won_back_table(results, panel)) is not None:
        yield table
    yield from _drawn(
        at_once_bars(results, panel, f"{stem}-at-once"),
        gain_bars(results, panel, f"{stem}-gain"),
        *(epochs_chart(results, [panel], tuning, f"{stem}-epochs-{tuning}") for tuning in ("finetune", "distill")),
    )
    yield cost_table(results, panel)


def _accuracy_over(results: Results, panel: Panel, stem: str) -> Iterator[Part]:
    """A varied quantity: per way of training a table and a plot over it, then the curves at each of its values."""
    for tuning in panel.tunings(results):
        yield Heading(f"{TUNINGS[tuning][:1].upper()}{TUNINGS[tuning][1:]}")
        if found := standings(results, panel, tuning):
            yield Paragraph(found, "takeaway")
        yield over_table(results, panel, tuning)
        yield from _drawn(over_chart(results, panel, tuning, f"{stem}-over-{tuning}"))
        if tuning != "none":
            yield from _drawn(epochs_chart(results, [panel], tuning, f"{stem}-epochs-{tuning}"))
            yield over_table(results, panel, tuning, "epochs")


def _measures_over(results: Results, panel: Panel, stem: str, measure: str) -> Iterator[Part]:
    """Costs over a varied quantity: the study's measure, and the memory where rows have it."""
    remembered = any("memory" in row for row in results.rows)
    for name in (measure, *(["memory"] if remembered and measure != "memory" else [])):
        for tuning in panel.tunings(results):
            yield over_table(results, panel, tuning, name)
            yield from _drawn(over_chart(results, panel, tuning, f"{stem}-{name.replace('.', '-')}", name))


def _drawn(*pictures: Picture | None) -> Iterator[Part]:
    for picture in pictures:
        if picture is not None:
            yield picture


def fused_groups(results: Results, panel: Panel) -> list[Group]:
    """What a practitioner could choose instead of the best member: measured networks of a member's size."""
    given = (BEST, ENSEMBLE, CONTINUE)
    return [
        group
        for group in results.in_setting(panel.settings[0])
        if group.rows and not group.large and group.which.row not in given and not group.which.row.startswith("member ")
    ]


def takeaway(results: Results, panel: Panel) -> str | None:
    """One sentence: what validation would choose, beside what it must be compared with; None if nothing was measured.

    "Not distinguishable" means: closer than the noise over seeds and of the test set's size.
    """
    candidates = fused_groups(results, panel)
    if not candidates:
        return None
    chosen = max(candidates, key=lambda group: summary(results, group, split="validation").mean)
    figure = summary(results, chosen)
    rivals = [("the best member", Which(BEST)), ("the ensemble", Which(ENSEMBLE))]
    rivals += [
        (f"the best member continued ({TUNINGS[tuning]})", Which(CONTINUE, tuning=tuning))
        for tuning in ("finetune", "distill")
    ]
    verdicts: dict[str, list[str]] = {}
    for words, which in rivals:
        rival = results.find(panel.settings[0], which)
        other = summary(results, rival) if rival is not None else None
        gap = difference(figure, other) if other is not None else None
        if other is not None and gap is not None:
            how = {0: "not distinguishable from", 1: "above", -1: "below"}[gap.sign]
            points = f"{100 * abs(gap.mean):.1f} points " if gap.sign else ""
            verdicts.setdefault(points + how, []).append(f"{words} ({100 * other.mean:.1f} %)")
    parts = [f"{verdict} {', '.join(words)}" for verdict, words in verdicts.items()]
    return (
        f"Validation prefers {chosen.which.start}, {HOW[chosen.which.tuning]}: {100 * figure.mean:.1f} % on the test "
        f"images. That is {'; '.join(parts)}."
    )


def standings(results: Results, panel: Panel, tuning: str) -> str:
    """How often each start is above, equal to and below its rival along the varied quantity."""
    words = []
    for which in panel.whiches(results, tuning):
        signs = []
        for group in panel.groups(results, which):
            rival = rival_of(results, group) if group is not None and group.rows and not group.large else None
            gap = difference(summary(results, group), summary(results, rival)) if group and rival else None
            signs += [gap.sign] if gap is not None else []
        if signs:
            words.append(f"{which.start} {signs.count(1)} / {signs.count(0)} / {signs.count(-1)}")
    rival_name = "the best member" if tuning == "none" else f"the best member continued ({TUNINGS[tuning]})"
    return f"Above / not distinguishable from / below {rival_name}: {', '.join(words)}." if words else ""
