"""The plots of a study: accuracy over epochs, over the varied quantity, and bars that compare starts."""

import math
from collections.abc import Iterator, Mapping, Sequence

from neurograft.reporting.document import Picture
from neurograft_experiments.reports.figures import AxisScale, Line, PlotAxes, bars_picture, lines_picture
from neurograft_experiments.reports.measures import TUNINGS, measure_named
from neurograft_experiments.reports.panels import ReportPanel
from neurograft_experiments.reports.results import Figure, RowGroup, StudyResults, Which
from neurograft_experiments.reports.tables import digits_of
from neurograft_experiments.rows import BEST, ENSEMBLE

REFERENCE_STYLES = {BEST: -2, ENSEMBLE: -1}


def styles_of(results: StudyResults) -> Mapping[str, int]:
    """The style of every start, the same in every plot of a study."""
    starts = dict.fromkeys(group.which.start for group in results if not group.which.member)
    own = [start for start in starts if start not in REFERENCE_STYLES]
    return {start: number for number, start in enumerate(own)} | REFERENCE_STYLES


def over_chart(panel: ReportPanel, tuning: str, measure: str = "accuracy") -> Iterator[Picture]:
    """A measure over the varied quantity, a line per start with its spread over seeds; nothing without two values."""
    results, how, accuracy = panel.results, measure_named(measure), measure == "accuracy"
    styles = styles_of(results)
    whiches = [which for which in panel.whiches(tuning) if not which.member]
    references = [which for which in (Which(BEST), Which(ENSEMBLE)) if accuracy and which not in whiches]
    lines = []
    for which in [*whiches, *references]:
        figures = [results.figure(group, measure) for group in panel.along(which)]
        if any(figures):
            lines.append(_line(which.start, figures, styles[which.start], 1.0 if accuracy else how.scale))
    if not lines or len(panel.ticks) < 2:
        return
    positive = all(value > 0 for line in lines for value in line.values if not math.isnan(value))
    scale: AxisScale = "accuracy" if accuracy else "log" if positive and measure != "epochs" else "linear"
    words = "test accuracy" if accuracy else how.words
    yield lines_picture(
        [PlotAxes(panel.title, panel.ticks, tuple(lines))],
        label=f"{words}{f', {TUNINGS[tuning]}' if accuracy else ''}, over {panel.x_label}{_of(panel)}",
        x_label=panel.x_label,
        y_label=words,
        scale=scale,
    )


def epochs_chart(panel: ReportPanel, tuning: str) -> Iterator[Picture]:
    """Validation accuracy over the epochs of training, axes for each setting; nothing if nothing was trained."""
    results, drawn = panel.results, []
    styles = styles_of(results)
    for number, setting in enumerate(panel.settings):
        groups = [group for group in results.in_setting(setting) if group.which.tuning == tuning and group.rows]
        lines = [_curve(group, styles[group.which.start]) for group in groups]
        longest = max((len(line.values) for line in lines), default=0)
        for row in (BEST, ENSEMBLE):
            if lines and (level := results.figure(results.find(setting, Which(row)), "validation")):
                lines.append(Line(row, (level.mean,), style=styles[row]))
        if lines:
            at = f"{panel.x_label} {panel.ticks[number]}" if panel.x is not None else ""
            title = ", ".join(part for part in (panel.title, at) if part)
            drawn.append(PlotAxes(title, tuple(map(str, range(longest))), tuple(lines)))
    if drawn:
        label = f"validation accuracy over epochs, {TUNINGS[tuning]}{_of(panel)}"
        yield lines_picture(drawn, label=label, x_label="epoch", y_label="validation accuracy")


def at_once_bars(panel: ReportPanel) -> Iterator[Picture]:
    """Test accuracy of every start before any training, in percent."""
    groups = [group for group in _bar_groups(panel) if group.which.tuning == "none"]
    if len(groups) >= 3:
        yield bars_picture(
            [group.which.start for group in groups],
            {"at once": [_scaled(panel.results.figure(group)) for group in groups]},
            label=f"test accuracy at once{_of(panel)}",
            x_label="test accuracy at once, %",
            digits=digits_of(groups),
        )


def gain_bars(panel: ReportPanel) -> Iterator[Picture]:
    """How many points every trained start is above the best member, seed by seed; nothing if nothing was trained."""
    results, setting = panel.results, panel.settings[0]
    best = results.find(setting, Which(BEST))
    trained = {(g.which.start, g.which.tuning): g for g in _bar_groups(panel) if g.which.tuning != "none"}
    if best is None or not best.rows or not trained:
        return
    starts = list(dict.fromkeys(start for start, _ in trained))
    bars = {
        TUNINGS[tuning]: [_gain(trained.get((start, tuning)), best) for start in starts]
        for tuning in TUNINGS
        if any(own == tuning for _, own in trained)
    }
    above, _ = _gain(results.find(setting, Which(ENSEMBLE)), best)
    yield bars_picture(
        starts,
        bars,
        label=f"points above the best member after training{_of(panel)}",
        x_label="points of test accuracy above the best member",
        levels={} if math.isnan(above) else {ENSEMBLE: above},
        digits=2,
    )


def _bar_groups(panel: ReportPanel) -> list[RowGroup]:
    return [group for group in panel.results.in_setting(panel.settings[0]) if group.rows and not group.which.member]


def _gain(group: RowGroup | None, best: RowGroup) -> tuple[float, float]:
    import pandas

    own, level = (
        pandas.Series({seed: row["test"]["accuracy"] for seed, row in of.rows.items()}, dtype=float)
        for of in (group or RowGroup(-1, (), Which("")), best)
    )
    return 100 * (own - level).mean(), 100 * (own - level).std()


def _scaled(figure: Figure) -> tuple[float, float]:
    return 100 * figure.mean, 100 * figure.deviation


def _line(name: str, figures: Sequence[Figure], style: int, scale: float = 1.0) -> Line:
    means = tuple(scale * figure.mean for figure in figures)
    deviations = tuple(0.0 if math.isnan(figure.deviation) else scale * figure.deviation for figure in figures)
    return Line(name, means, deviations if any(deviations) else (), style)


def _curve(group: RowGroup, style: int) -> Line:
    """The mean curve over seeds; a seed that stopped early keeps its last value."""
    import pandas

    curves = pandas.DataFrame([row["curve"] for row in group.rows.values()]).ffill(axis=1)
    line = _line(group.which.start, [Figure(*pair) for pair in zip(curves.mean(), curves.std(), strict=True)], style)
    chosen = int(next(iter(group.rows.values()))["epoch"]) if len(group.rows) == 1 else None
    return Line(line.name, line.values, line.deviations, style, chosen)


def _of(panel: ReportPanel) -> str:
    return f" ({panel.title})" if panel.title else ""
