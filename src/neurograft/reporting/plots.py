"""Line charts as inline SVG: no plotting library, sharp at every size, light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from neurograft.reporting.palette import DASHES, color

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 58, 190, 14, 44
ACCURACIES = (0.0, 0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999)
LEAST_ERROR = 5e-4


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracies (0 to 1) over epochs 0, 1, …; a curve of one value is drawn as a level across the chart."""

    name: str
    accuracies: tuple[float, ...]
    chosen: int | None = None


def accuracy_chart(curves: Sequence[Curve], *, title: str, x_label: str = "epoch") -> str:
    """Accuracies over epochs, spaced by the logarithm of the error so that 20 % and 99 % are both readable.

    Args:
        curves: what to draw; the epoch `chosen` gets a dot.
        title: read out to people who cannot see the chart.
        x_label: under the horizontal axis.

    Returns:
        An `<svg>` element that takes its colours from the page's palette.
    """
    last = max(len(curve.accuracies) for curve in curves) - 1
    heights = [_height(a) for curve in curves for a in curve.accuracies]
    low, high = min(heights), max(heights)
    margin = 0.06 * (high - low) or 0.1
    plane = _Plane(max(1, last), low - margin, high + margin)
    parts = [_axes(plane, x_label)]
    parts += [_curve(plane, curve, index) for index, curve in enumerate(curves)]
    parts += _labels(plane, curves)
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" class="chart">'
    return f"{head}{''.join(parts)}</svg>"


@dataclass(frozen=True, slots=True)
class _Plane:
    last: int
    low: float
    high: float

    def x(self, epoch: float) -> float:
        return LEFT + epoch / self.last * (WIDTH - LEFT - RIGHT)

    def y(self, accuracy: float) -> float:
        share = (_height(accuracy) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _height(accuracy: float) -> float:
    return -math.log10(max(1 - accuracy, LEAST_ERROR))


def _axes(plane: _Plane, x_label: str) -> str:
    parts = []
    for tick in ACCURACIES:
        if plane.low <= _height(tick) <= plane.high:
            y = plane.y(tick)
            parts.append(
                f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
                f'<text x="{LEFT - 8}" y="{y + 4:.1f}" class="tick end">{100 * tick:g} %</text>'
            )
    step = max(1, math.ceil(plane.last / 10))
    for epoch in range(0, plane.last + 1, step):
        parts.append(f'<text x="{plane.x(epoch):.1f}" y="{HEIGHT - BOTTOM + 18}" class="tick middle">{epoch}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 6}" class="tick middle">{escape(x_label)}</text>')
    return "".join(parts)


def _curve(plane: _Plane, curve: Curve, index: int) -> str:
    values = curve.accuracies if len(curve.accuracies) > 1 else curve.accuracies * (plane.last + 1)
    points = " ".join(f"{plane.x(epoch):.1f},{plane.y(a):.1f}" for epoch, a in enumerate(values))
    dash = f' stroke-dasharray="{DASHES[index % len(DASHES)]}"' if DASHES[index % len(DASHES)] else ""
    drawn = f'<polyline points="{points}" fill="none" stroke="{color(index)}" stroke-width="2.2"{dash}/>'
    if curve.chosen is not None:
        x, y = plane.x(curve.chosen), plane.y(curve.accuracies[curve.chosen])
        drawn += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{color(index)}"/>'
    return f"<g><title>{escape(curve.name)}</title>{drawn}</g>"


def _labels(plane: _Plane, curves: Sequence[Curve]) -> list[str]:
    """Each curve's name and best value at its right end, pushed apart where they would overlap."""
    order = sorted(range(len(curves)), key=lambda i: plane.y(curves[i].accuracies[-1]))
    wanted = [plane.y(curves[i].accuracies[-1]) for i in order]
    places = spread(wanted, gap=16, low=TOP + 4, high=HEIGHT - BOTTOM)
    parts = []
    for index, place, end in zip(order, places, wanted, strict=True):
        x, text = WIDTH - RIGHT, f"{curves[index].name} {100 * max(curves[index].accuracies):.1f}"
        parts.append(
            f'<path d="M{x} {end:.1f}L{x + 12} {place:.1f}" stroke="{color(index)}" fill="none"/>'
            f'<text x="{x + 16}" y="{place + 4:.1f}" fill="{color(index)}" class="label">{escape(text)}</text>'
        )
    return parts


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
