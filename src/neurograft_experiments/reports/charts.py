"""The plots of a study: accuracy over epochs, over the varied quantity, and bars that compare starts."""

import math
from collections.abc import Mapping, Sequence

from neurograft.reporting.document import Picture
from neurograft.reporting.figures import Bars, Line, Scale, bars_picture, lines_picture
from neurograft.reporting.figures import Panel as Axes
from neurograft_experiments.reports.measures import Summary, measure_named, summary
from neurograft_experiments.reports.panels import TUNINGS, Panel
from neurograft_experiments.reports.results import BEST, ENSEMBLE, Group, Results, Which
from neurograft_experiments.reports.tables import digits_of

REFERENCE_STYLES = {BEST: -2, ENSEMBLE: -1}


def styles_of(results: Results) -> Mapping[str, int]:
    """The style of every start, the same in every plot of a study."""
    starts = dict.fromkeys(group.which.start for group in results if not group.which.row.startswith("member "))
    own = [start for start in starts if start not in REFERENCE_STYLES]
    return {start: number for number, start in enumerate(own)} | REFERENCE_STYLES


def over_chart(results: Results, panel: Panel, tuning: str, name: str, measure: str = "accuracy") -> Picture | None:
    """A measure over the varied quantity, a line per start with its spread over seeds; None without two values."""
    styles = styles_of(results)
    references = [Which(BEST), Which(ENSEMBLE)] if measure == "accuracy" else []
    how = measure_named(measure)
    whiches = [which for which in panel.whiches(results, tuning) if not which.row.startswith("member ")]
    lines = []
    for which in [*whiches, *(which for which in references if which not in whiches)]:
        figures = [
            Summary({}) if group is None or not group.rows else _shown(summary(results, group, measure), measure)
            for group in panel.groups(results, which)
        ]
        if any(figures):
            lines.append(_line(which.start, figures, styles[which.start]))
    if not lines or len(panel.ticks) < 2:
        return None
    positive = all(value > 0 for line in lines for value in line.values if not math.isnan(value))
    scale: Scale = (
        "accuracy" if measure == "accuracy" else "logarithmic" if positive and measure != "epochs" else "linear"
    )
    words = "test accuracy" if measure == "accuracy" else how.words
    return lines_picture(
        [Axes(panel.title, panel.ticks, tuple(lines))],
        label=f"{words}{f', {TUNINGS[tuning]}' if measure == 'accuracy' else ''}, over {panel.x_label}{_of(panel)}",
        name=name,
        x_label=panel.x_label,
        y_label=words,
        scale=scale,
    )


def epochs_chart(results: Results, panels: Sequence[Panel], tuning: str, name: str) -> Picture | None:
    """Validation accuracy over the epochs of training, one pair of axes per setting; None if nothing was trained."""
    styles = styles_of(results)
    drawn = []
    for panel in panels:
        for number, setting in enumerate(panel.settings):
            groups = [g for g in results.in_setting(setting) if g.which.tuning == tuning and g.rows]
            lines = [_curve(group, styles[group.which.start]) for group in groups]
            if not lines:
                continue
            for row in (BEST, ENSEMBLE):
                level = results.find(setting, Which(row))
                if level is not None and level.rows:
                    mean = summary(results, level, split="validation").mean
                    lines.append(Line(row, (mean,), style=styles[row]))
            at = f"{panel.x_label} {panel.ticks[number]}" if panel.x is not None else ""
            title = ", ".join(part for part in (panel.title, at) if part)
            longest = max(len(line.values) for line in lines)
            padded = tuple(_padded(line, longest) for line in lines)
            drawn.append(Axes(title, tuple(map(str, range(longest))), padded))
    if not drawn:
        return None
    return lines_picture(
        drawn,
        label=f"validation accuracy over epochs, {TUNINGS[tuning]}",
        name=name,
        x_label="epoch",
        y_label="validation accuracy",
        best=True,
    )


def at_once_bars(results: Results, panel: Panel, name: str) -> Picture | None:
    """Test accuracy of every start before any training, in percent."""
    groups = [group for group in _bar_groups(results, panel) if group.which.tuning == "none"]
    figures = [summary(results, group) for group in groups]
    if len(figures) < 3:
        return None
    return bars_picture(
        [group.which.start for group in groups],
        [_bars("at once", [_scaled(figure) for figure in figures])],
        label=f"test accuracy at once{_of(panel)}",
        name=name,
        x_label="test accuracy at once, %",
        digits=digits_of(groups),
    )


def gain_bars(results: Results, panel: Panel, name: str) -> Picture | None:
    """How many points every trained start is above the best member, seed by seed; None if nothing was trained."""
    best = results.find(panel.settings[0], Which(BEST))
    trained = [group for group in _bar_groups(results, panel) if group.which.tuning != "none"]
    if best is None or not best.rows or not trained:
        return None
    level = summary(results, best)
    ensemble = results.find(panel.settings[0], Which(ENSEMBLE))
    starts = list(dict.fromkeys(group.which.start for group in trained))
    tunings = [tuning for tuning in TUNINGS if any(group.which.tuning == tuning for group in trained)]
    bars = []
    for tuning in tunings:
        own = {group.which.start: group for group in trained if group.which.tuning == tuning}
        gains = [_gain(results, own.get(start), level) for start in starts]
        bars.append(_bars(TUNINGS[tuning], gains))
    above = _gain(results, ensemble, level)
    return bars_picture(
        starts,
        bars,
        label=f"points above the best member after training{_of(panel)}",
        name=name,
        x_label="points of test accuracy above the best member",
        levels={ENSEMBLE: above.mean} if above else {},
        digits=2,
    )


def _bar_groups(results: Results, panel: Panel) -> list[Group]:
    groups = results.in_setting(panel.settings[0])
    return [group for group in groups if group.rows and not group.which.row.startswith("member ")]


def _gain(results: Results, group: Group | None, level: Summary) -> Summary:
    if group is None:
        return Summary({})
    own = summary(results, group).values
    return Summary({seed: 100 * (own[seed] - level.values[seed]) for seed in own if seed in level.values})


def _scaled(figure: Summary, scale: float = 100) -> Summary:
    return Summary({seed: scale * value for seed, value in figure.values.items()})


def _shown(figure: Summary, measure: str) -> Summary:
    """In the unit of the axis; accuracies stay shares, their axis makes percents of them."""
    return figure if measure == "accuracy" else _scaled(figure, measure_named(measure).scale)


def _bars(name: str, figures: Sequence[Summary]) -> Bars:
    return Bars(name, tuple(figure.mean for figure in figures), tuple(figure.deviation for figure in figures))


def _line(name: str, figures: Sequence[Summary], style: int) -> Line:
    deviations = tuple(0.0 if math.isnan(figure.deviation) else figure.deviation for figure in figures)
    return Line(name, tuple(figure.mean for figure in figures), deviations if any(deviations) else (), style)


def _curve(group: Group, style: int) -> Line:
    """The mean curve over seeds; a seed that stopped early keeps its last value."""
    curves = [tuple(row["curve"]) for row in group.rows.values()]
    longest = max(map(len, curves))
    full = [curve + curve[-1:] * (longest - len(curve)) for curve in curves]
    figures = [Summary(dict(enumerate(values))) for values in zip(*full, strict=True)]
    single = len(group.rows) == 1
    line = _line(group.which.start, figures, style)
    chosen = int(next(iter(group.rows.values()))["epoch"]) if single else None
    return Line(line.name, line.values, line.deviations, style, chosen)


def _padded(line: Line, longest: int) -> Line:
    """Lines of one picture have one length; levels stay levels."""
    more = longest - len(line.values)
    if more == 0 or len(line.values) == 1:
        return line
    spread = line.deviations + (math.nan,) * more if line.deviations else ()
    return Line(line.name, line.values + (math.nan,) * more, spread, line.style, line.chosen)


def _of(panel: Panel) -> str:
    return f" ({panel.title})" if panel.title else ""
