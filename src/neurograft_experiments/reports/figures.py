"""Lines and bars with their spread over seeds, by matplotlib."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy

from neurograft.escaping import figure_text, terminal
from neurograft.reporting.document import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AxisScale: TypeAlias = Literal["accuracy", "log", "linear"]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8518f", "#a87900", "#3f8fbf", "#7a5cc4", "#5c6b73")
"""Distinct for colour-blind people too. Source of the hues: Okabe & Ito 2008."""
STYLES = ("-", "--", ":", "-.", (0, (5, 2)), (0, (1, 2)), (0, (12, 3)), (0, (4, 4)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*")
"""One more than there are colours: the ninth line has the first one's colour and dashes, but another marker."""
SOFT, INK = "#5b6870", "#1c2429"
WIDTH, LEAST_ERROR, FEW = 9.0, 5e-4, 4
ACCURACIES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999)


@dataclass(frozen=True, slots=True)
class Line:
    """Figures over epochs or over a varied quantity.

    Attributes:
        name: in the legend.
        values: one per tick; nan where there is none; a single value is drawn as a level across.
        deviations: the standard deviation over seeds at each value, empty if there is one seed.
        style: which colour, dashes and marker, the same in every picture of a page; -1 and -2 are for what others are
            compared with: grey and without markers.
        chosen: the tick that stands out.
    """

    name: str
    values: tuple[float, ...]
    deviations: tuple[float, ...] = ()
    style: int = 0
    chosen: int | None = None


@dataclass(frozen=True, slots=True)
class PlotAxes:
    """One pair of axes: its title, the names of its ticks, and its lines."""

    title: str
    ticks: tuple[str, ...]
    lines: tuple[Line, ...]


def lines_picture(
    axes: Sequence[PlotAxes], *, label: str, x_label: str, y_label: str = "", scale: AxisScale = "accuracy"
) -> Picture:
    """Lines on one pair of axes or several, with one legend.

    Accuracies (0 to 1) are spaced by the logarithm of the error, so that 20 % and 99 % are both readable.

    Args:
        axes: what to draw.
        label: what the picture shows, in words.
        x_label: under the axes.
        y_label: beside them.
        scale: of the vertical axis.
    """
    columns = min(3, len(axes))
    rows, names = -(-len(axes) // columns), {line.name for axis in axes for line in axis.lines}
    figure = new_figure((4.0 if rows == 1 else 0.5 + 2.7 * rows) + 0.07 * len(names))
    drawn = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for place, axis in zip(drawn.flat, axes, strict=False):
        for line in axis.lines:
            _draw(place, line, len(axis.ticks))
        place.set_title(figure_text(axis.title), fontsize=10, loc="left")
        place.set_xlabel(figure_text(x_label))
        step = -(-len(axis.ticks) // 11)
        place.set_xticks(range(0, len(axis.ticks), step), list(map(figure_text, axis.ticks[::step])))
        place.grid(axis="y")
    for place in drawn.flat[len(axes) :]:
        place.set_visible(False)
    for place in drawn[:, 0]:
        place.set_ylabel(figure_text(y_label))
    _scale(drawn[0, 0], scale, [value for axis in axes for line in axis.lines for value in line.values])
    named = {line.get_label(): line for place in drawn.flat for line in place.get_legend_handles_labels()[0]}
    figure.legend(handles=list(named.values()), loc="outside lower center", ncols=4, handlelength=3.2)
    return picture_of(figure, label)


def _draw(place: "Axes", line: Line, ticks: int) -> None:
    if len(line.values) == 1:
        place.axhline(
            line.values[0], color=INK, linestyle=STYLES[line.style], linewidth=1.2, label=figure_text(line.name)
        )
        return
    color, kind = COLOURS[line.style % len(COLOURS)], MARKERS[line.style % len(MARKERS)]
    if line.style < 0:
        color, kind = INK, ""
    every = max(1, ticks // 10)
    place.plot(
        range(len(line.values)),
        line.values,
        color=color,
        linestyle=STYLES[line.style % len(STYLES)],
        marker=kind,
        markevery=(max(0, line.style) % every, every),  # apart on long lines, and not all at the same places
        label=figure_text(line.name),
    )
    if line.deviations:
        low, high = ([v + s * d for v, d in zip(line.values, line.deviations, strict=True)] for s in (-1, 1))
        place.fill_between(range(len(low)), low, high, color=color, alpha=0.13, linewidth=0)
    if line.chosen is not None:
        place.plot([line.chosen], [line.values[line.chosen]], color=color, marker=kind, markersize=9)


def _scale(place: "Axes", scale: AxisScale, values: Sequence[float]) -> None:
    """The vertical axis of all."""
    if scale != "accuracy":
        place.set_yscale(scale)
        return
    heights = _error_digits(numpy.asarray(values))
    low, high = numpy.nanmin(heights), numpy.nanmax(heights)
    margin = 0.06 * (high - low) or 0.1
    ticks: list[float] = []
    for tick in reversed(ACCURACIES):  # from the highest on, those that keep their distance
        at = _error_digits(tick)
        if low - margin <= at <= high + margin and not (ticks and _error_digits(ticks[-1]) - at < margin):
            ticks.append(tick)
    limits = [1 - 10 ** -float(height) for height in (low - margin, high + margin)]
    if len(ticks) < FEW:
        from matplotlib.ticker import MaxNLocator

        ticks = [tick for tick in MaxNLocator(6).tick_values(*limits) if limits[0] <= tick <= limits[1]]
    place.set_yscale("function", functions=(_error_digits, lambda height: 1 - 10.0**-height))
    place.set_ylim(*limits)
    place.set_yticks(ticks, [f"{100 * tick:.4g} %" for tick in ticks])
    place.minorticks_off()


def _error_digits(accuracy: Any) -> Any:
    """Decimals of the error: 90 % is 1, 99 % is 2."""
    return -numpy.log10(numpy.clip(1 - accuracy, LEAST_ERROR, None))


def bars_picture(
    names: Sequence[str],
    groups: Mapping[str, Sequence[tuple[float, float]]],
    *,
    label: str,
    x_label: str,
    levels: Mapping[str, float] = {},
    digits: int = 1,
) -> Picture:
    """Horizontal bars from zero, one row per name and in it one bar per group, each with its value written beside it.

    Args:
        names: of the rows, from top to bottom.
        groups: name -> value (nan for none) and standard deviation (nan for none) of every row.
        label: what the picture shows, in words.
        x_label: under the axis.
        levels: name -> value that all are compared with, drawn as a line from top to bottom.
        digits: decimals of the values.
    """
    figure = new_figure(0.9 + len(names) * (0.14 + 0.24 * len(groups)))
    axis = figure.subplots()
    thick = 0.84 / len(groups)
    for g, (name, bars) in enumerate(groups.items()):
        places = [n + (g - (len(groups) - 1) / 2) * thick for n in range(len(names))]
        values = [value for value, _ in bars]
        errors = None if all(math.isnan(deviation) for _, deviation in bars) else [deviation for _, deviation in bars]
        drawn = axis.barh(places, values, thick * 0.86, xerr=errors, color=COLOURS[g], label=figure_text(name))
        axis.bar_label(drawn, ["" if math.isnan(value) else f"{value:.{digits}f}" for value in values], padding=5)
    for name, value in levels.items():
        axis.axvline(value, color=INK, linestyle="--", label=f"{figure_text(name)} {value:.{digits}f}")
    axis.set_yticks(range(len(names)), list(map(figure_text, names)))
    axis.set_axisbelow(True)
    axis.invert_yaxis()
    axis.axvline(0, color=SOFT, linewidth=1)
    axis.grid(axis="x")
    axis.margins(x=0.12)
    axis.set_xlabel(figure_text(x_label))
    if len(groups) + len(levels) > 1:
        figure.legend(loc="outside lower center", ncols=4)
    return picture_of(figure, label)


def new_figure(height: float) -> "Figure":
    """An empty figure of the page's width, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def picture_of(figure: "Figure", label: str) -> Picture:
    """A figure as it is drawn; the same figure gives the same bytes."""
    import matplotlib

    drawn = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": terminal(label)}):
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(drawn.getvalue(), label)
