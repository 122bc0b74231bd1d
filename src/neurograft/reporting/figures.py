"""Lines and bars with their spread over seeds, drawn by matplotlib in the colours of the page."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from neurograft.errors import MissingExtra
from neurograft.reporting.document import Picture
from neurograft.reporting.palette import DASHES, INKS, LIGHT, MARKERS, themed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scale: TypeAlias = Literal["accuracy", "logarithmic", "linear"]
WIDTH, HEIGHT = 9.0, 4.4
LEAST_ERROR = 5e-4
ACCURACIES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999)
FEW = 3
REFERENCES = ((1.0, 1.6), (4.0, 2.5))  # dashes of the styles -2 and -1
HATCHES = ("", "////", "....", "xxxx")


@dataclass(frozen=True, slots=True)
class Line:
    """Figures over epochs or over a varied quantity.

    Attributes:
        name: written at its end, or in the legend.
        values: one per tick; nan where there is none; a single value is drawn as a level across.
        deviations: the standard deviation over seeds at each value, empty if there is one seed.
        style: which colour, dash and marker; lines of one name have the same style in every picture of a page. -1
            and -2 are for what others are compared with: the ink of the text, dashed and dotted.
        chosen: the tick that stands out.
    """

    name: str
    values: tuple[float, ...]
    deviations: tuple[float, ...] = ()
    style: int = 0
    chosen: int | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes: its title, the names of its ticks, and its lines."""

    title: str
    ticks: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Bars:
    """One row of bars per name: `values[i]` (nan for none) for every name, and the deviations beside it."""

    name: str
    values: tuple[float, ...]
    deviations: tuple[float, ...] = ()


def lines_picture(
    panels: Sequence[Panel],
    *,
    label: str,
    name: str,
    x_label: str,
    y_label: str = "",
    scale: Scale = "accuracy",
    best: bool = False,
) -> Picture:
    """Lines in one panel with their names at their ends, or in several panels with one legend.

    Accuracies (0 to 1) are spaced by the logarithm of the error, so that 20 % and 99 % are both readable.

    Args:
        panels: what to draw.
        label: what the picture shows, in words.
        name: of its file.
        x_label: under the axes.
        y_label: beside them.
        scale: of the vertical axis.
        best: write each line's highest accuracy beside its name.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(HEIGHT if rows == 1 else 0.5 + 2.7 * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    bounds = _bounds([line for panel in panels for line in panel.lines], scale)
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, panel, scale, bounds)
        axis.set_xlabel(x_label)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[::columns]:
        axis.set_ylabel(y_label)
    if len(panels) == 1:
        longest = max((len(line.name) for line in panels[0].lines), default=0) + 5 * best
        top, right = (0.92 if panels[0].title else 0.97), max(0.5, 0.95 - 0.0085 * longest)
        figure.subplots_adjust(left=0.085, right=right, top=top, bottom=0.13)
        _end_labels(axes[0], panels[0], scale, bounds, best)
    else:
        _legend(figure, panels)
    return _picture(figure, label, name)


def bars_picture(
    names: Sequence[str],
    groups: Sequence[Bars],
    *,
    label: str,
    name: str,
    x_label: str,
    levels: Mapping[str, float] = {},
    digits: int = 1,
) -> Picture:
    """Horizontal bars from zero, one row per name and in it one bar per group, each with its value written beside it.

    Args:
        names: of the rows, from top to bottom.
        groups: the bars; each has a value for every row.
        label: what the picture shows, in words.
        name: of its file.
        x_label: under the axis.
        levels: name -> value that all are compared with, drawn as a line from top to bottom.
        digits: decimals of the values.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure = _figure(0.9 + len(names) * (0.14 + 0.24 * len(groups)))
    axis = figure.subplots()
    thick = 0.84 / len(groups)
    for g, group in enumerate(groups):
        for n, value in enumerate(group.values):
            if math.isnan(value):
                continue
            y = n + (g - (len(groups) - 1) / 2) * thick
            deviation = group.deviations[n] if group.deviations and not math.isnan(group.deviations[n]) else 0.0
            color, hatch = LIGHT[g % len(LIGHT)], HATCHES[g % len(HATCHES)]
            axis.barh(y, value, thick * 0.86, color=color, hatch=hatch, edgecolor=INKS["ground"], linewidth=0)
            if deviation:
                axis.errorbar(value, y, xerr=deviation, color=INKS["ink"], linewidth=1.1, capsize=2.5)
            right = value >= 0
            axis.annotate(
                f"{value:.{digits}f}",
                (value + (deviation if right else -deviation), y),
                xytext=(5 if right else -5, 0),
                textcoords="offset points",
                ha="left" if right else "right",
                va="center",
                fontsize=8.5,
                color=INKS["ink"],
            )
    for level, value in levels.items():
        axis.axvline(value, color=INKS["ink"], linewidth=1.4, dashes=REFERENCES[-1])
        axis.annotate(
            f"{level} {value:.{digits}f}",
            (value, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=INKS["ink"],
        )
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.axvline(0, color=INKS["soft"], linewidth=1)
    axis.grid(visible=True, axis="x", color=INKS["line"], linewidth=0.8)
    axis.margins(x=0.12)
    axis.set_xlabel(x_label)
    _plain(axis)
    if len(groups) > 1:
        from matplotlib.patches import Patch

        keys = [
            Patch(facecolor=LIGHT[g % 8], hatch=HATCHES[g % 4], edgecolor=INKS["ground"], linewidth=0, label=group.name)
            for g, group in enumerate(groups)
        ]
        figure.legend(handles=keys, loc="lower center", ncols=len(keys), frameon=False, labelcolor=INKS["ink"])
    line = 0.24 / figure.get_figheight()
    figure.tight_layout(rect=(0, line * (len(groups) > 1), 1, 1 - line * bool(levels)))
    return _picture(figure, label, name)


def _figure(height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("plots need matplotlib: pip install 'neurograft[plots]'") from error
    return Figure(figsize=(WIDTH, height))


def _height(value: float, scale: Scale) -> float:
    """Where a value stands on the vertical axis."""
    if math.isnan(value) or scale == "linear":
        return value
    if scale == "logarithmic":
        return math.log10(value) if value > 0 else math.nan
    return -math.log10(max(1 - value, LEAST_ERROR))


def _bounds(lines: Sequence[Line], scale: Scale) -> tuple[float, float]:
    heights = [h for line in lines for value in line.values if not math.isnan(h := _height(value, scale))] or [0.0, 1.0]
    low, high = min(heights), max(heights)
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + margin


def _draw_panel(axis: "Axes", panel: Panel, scale: Scale, bounds: tuple[float, float]) -> None:
    last = max(1, len(panel.ticks) - 1)
    for line in panel.lines:
        color, dash, marker = _style(line.style)
        level = len(line.values) == 1
        values = line.values * (last + 1) if level else line.values
        heights = [_height(value, scale) for value in values]
        places = range(len(values))
        every = max(1, -(-len(values) // 10))  # markers apart on long lines, and not all at the same places
        axis.plot(
            places,
            heights,
            color=color,
            dashes=dash,
            linewidth=1.9,
            marker=marker,
            markersize=5,
            markevery=(max(0, line.style) % every, every),
        )
        if line.deviations and not level:
            low = [_height(v - d, scale) for v, d in zip(values, line.deviations, strict=True)]
            high = [_height(v + d, scale) for v, d in zip(values, line.deviations, strict=True)]
            axis.fill_between(places, low, high, color=color, alpha=0.13, linewidth=0)
        if line.chosen is not None:
            axis.plot([line.chosen], [heights[line.chosen]], color=color, marker=marker, markersize=8)
    if panel.title:
        axis.set_title(panel.title, fontsize=10, color=INKS["ink"], loc="left")
    step = max(1, math.ceil(len(panel.ticks) / 11))
    axis.set_xticks(range(0, len(panel.ticks), step), panel.ticks[::step])
    axis.set_xlim(-0.02 * last, 1.02 * last)
    axis.set_ylim(*bounds)
    ticks = _ticks(bounds, scale)
    axis.set_yticks([_height(tick, scale) for tick in ticks], [_tick_name(tick, scale) for tick in ticks])
    axis.grid(visible=True, axis="y", color=INKS["line"], linewidth=0.8)
    _plain(axis)


def _ticks(bounds: tuple[float, float], scale: Scale) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    low, high = bounds
    if scale == "logarithmic":
        decades = range(math.floor(low), math.ceil(high) + 1)
        found = [10.0**decade for decade in decades if low <= decade <= high]
        if len(found) >= FEW:
            return found
        fine = [k * 10.0**decade for decade in decades for k in (1, 2, 5)]
        return [tick for tick in fine if low <= math.log10(tick) <= high]
    if scale == "accuracy":
        found = [tick for tick in ACCURACIES if low <= _height(tick, scale) <= high]
        if len(found) > FEW:
            return _apart(found, scale, 0.05 * (high - low))
        low, high = 1 - 10**-low, 1 - 10**-high
    return [float(tick) for tick in MaxNLocator(6).tick_values(low, high) if low <= tick <= high]


def _apart(ticks: Sequence[float], scale: Scale, gap: float) -> list[float]:
    """The ticks, from the highest on, that keep their distance."""
    kept: list[float] = []
    for tick in reversed(ticks):
        if not kept or _height(kept[-1], scale) - _height(tick, scale) >= gap:
            kept.append(tick)
    return kept


def _tick_name(tick: float, scale: Scale) -> str:
    return f"{100 * tick:.4g} %" if scale == "accuracy" else f"{tick:.4g}"


def _style(index: int) -> tuple[str, Any, str]:
    if index < 0:
        return INKS["ink"], REFERENCES[index], ""
    dash = tuple(float(length) for length in DASHES[index % len(DASHES)].split()) or (1, 0)
    return LIGHT[index % len(LIGHT)], tuple(length / 1.9 for length in dash), MARKERS[index % len(MARKERS)]


def _plain(axis: "Axes") -> None:
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(INKS["line"])
    axis.tick_params(length=0, labelsize=9, labelcolor=INKS["soft"])
    axis.xaxis.label.set_color(INKS["soft"])
    axis.yaxis.label.set_color(INKS["soft"])


def _end_labels(axis: "Axes", panel: Panel, scale: Scale, bounds: tuple[float, float], best: bool) -> None:
    """Each line's name at its right end, pushed apart where they would overlap."""
    low, high = bounds
    ends = []
    for line in panel.lines:
        known = [value for value in line.values if not math.isnan(_height(value, scale))]
        if known:
            ends.append(((_height(known[-1], scale) - low) / (high - low), line, known))
    ends.sort(key=lambda end: end[0])
    places = spread([end for end, _, _ in ends], gap=0.052, low=0.0, high=1.0)
    for place, (end, line, known) in zip(places, ends, strict=True):
        color = _style(line.style)[0]
        shown = f" {100 * max(known):.1f}" if best else ""
        axis.annotate(
            line.name + shown,
            (1.0, end),
            xytext=(1.035, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=color,
            fontsize=9,
            va="center",
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.8, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)},
        )


def spread(wanted: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Places near the sorted `wanted` ones, at least `gap` apart and, if they fit, between `low` and `high`.

    Example:
        >>> spread([10.0, 11.0, 50.0], gap=5, low=0, high=52)
        [10.0, 15.0, 50.0]
        >>> spread([51.0, 52.0], gap=5, low=0, high=52)
        [47, 52]
    """
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + gap if places else low))
    limit = high
    for index in reversed(range(len(places))):
        places[index] = min(places[index], limit)
        limit = places[index] - gap
    return places


def _legend(figure: "Figure", panels: Sequence[Panel]) -> None:
    from matplotlib.lines import Line2D

    lines = {line.name: line.style for panel in panels for line in panel.lines}
    keys = []
    for name, index in lines.items():
        color, dash, marker = _style(index)
        keys.append(Line2D([], [], color=color, dashes=dash, marker=marker, markersize=5, label=name))
    columns = min(4, len(keys))
    height = 0.24 * -(-len(keys) // columns) + 0.1
    figure.legend(
        handles=keys,
        loc="lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
        labelcolor=INKS["ink"],
        handlelength=3.2,
    )
    figure.tight_layout(rect=(0, height / figure.get_figheight(), 1, 1))


def _picture(figure: "Figure", label: str, name: str) -> Picture:
    import matplotlib

    drawn = io.StringIO()
    salt = sha256(name.encode()).hexdigest()[:8]  # pictures in one page must not share ids
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = drawn.getvalue()
    svg = re.sub(
        r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    head = f'<svg {box[0]} role="img" aria-label="{_attribute(label)}" class="chart" stroke-linejoin="round">'
    body = re.sub(r"font-family: [^;\"]*|font: ([\d.]+px) [^;\"]*", _font, svg[svg.index(">") + 1 :])
    return Picture(themed(head + re.sub(r"\n\s*", "\n", body)).strip(), label, name)


def _font(found: re.Match[str]) -> str:
    """The reader's own font in place of the one the picture was measured with."""
    return f"font-size: {found[1]}" if found[1] else "font-family: inherit"


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
