"""What a recovery did to every layer, as a picture: how far it was from the members, before and after."""

from collections.abc import Iterable
from html import escape
from math import ceil, isnan

from neurograft.recovery.report import LayerRecovery, RecoveryReport
from neurograft.reporting.palette import color

WIDTH, NAMES, NUMBERS, ROW, BOTTOM = 720, 216, 96, 20, 34
FARTHEST = 2.0
"""Errors are drawn up to this; a layer that is farther away has its number beside it all the same."""
LETTERS = 30


def recovery_picture(report: RecoveryReport, end: float | None = None) -> str:
    """One line per layer in execution order: a ring where it was, a dot where it is, on an axis of relative error.

    The error is |z − t| / |t| of what the layer gives, z, against what the members planned for it, t; a layer that was
    kept as it is has a dot alone. Layers that were left out, and those without an error, are not drawn.

    Args:
        report: of a recovery.
        end: where the axis ends, so that several pictures can be compared; None: at this report's `axis_end`.

    Returns:
        An `<svg>` element that takes its colours from the page's palette; empty where no layer has an error.

    Example:
        >>> from neurograft.recovery.report import LayerRecovery, RecoveryReport
        >>> layer = LayerRecovery("conv.weight", "layer", before=0.8, after=0.2)
        >>> "0.80 → 0.20" in recovery_picture(RecoveryReport("refit", (layer,), 100, 1, 0.5))
        True
        >>> recovery_picture(RecoveryReport("batch_norm", (), 100, 1, 0.5))
        ''
    """
    shown = _with_error(report)
    if not shown:
        return ""
    end = axis_end([report]) if end is None else end
    height = len(shown) * ROW + BOTTOM
    parts = [_axis(end, len(shown) * ROW)]
    parts += [_layer(layer, number * ROW + ROW / 2, end) for number, layer in enumerate(shown)]
    label = f"relative error of {len(shown)} layers before and after {report.recovery}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}" class="chart">'
        f"{''.join(parts)}</svg>"
    )


def recovery_words(report: RecoveryReport) -> str:
    """What the picture was made from, and which layers are not in it and why, in one paragraph.

    Example:
        >>> from neurograft.recovery.report import LayerRecovery, RecoveryReport
        >>> left_out = LayerRecovery("embed.weight", "left out", note="tied to an embedding")
        >>> recovery_words(RecoveryReport("refit", (left_out,), 100, 1, 0.51))
        '100 samples, 1 pass, 0.5 s. Left out: embed.weight (tied to an embedding).'
    """
    passes = "1 pass" if report.passes == 1 else f"{report.passes} passes"
    words = f"{report.samples:,} samples, {passes}, {report.seconds:.1f} s."
    absent = [f"{layer.tensor} ({layer.note})" for layer in report.layers if layer.target == "left out"]
    words += f" Left out: {', '.join(absent)}." if absent else ""
    return words + "".join(f" {note}." for note in report.notes)


def axis_end(reports: Iterable[RecoveryReport]) -> float:
    """Where an axis ends that holds every error of the reports, up to `FARTHEST`.

    Example:
        >>> from neurograft.recovery.report import LayerRecovery, RecoveryReport
        >>> axis_end([RecoveryReport("refit", (LayerRecovery("a", "layer", before=0.72, after=0.2),), 100, 1, 0.5)])
        0.8
    """
    errors = [error for report in reports for layer in _with_error(report) for error in (layer.before, layer.after)]
    return max(0.2, ceil(min(FARTHEST, max(errors, default=0.0)) * 10) / 10)


def _with_error(report: RecoveryReport) -> list[LayerRecovery]:
    return [layer for layer in report.layers if not (isnan(layer.before) or isnan(layer.after))]


def _x(error: float, end: float) -> float:
    return NAMES + min(error, end) / end * (WIDTH - NAMES - NUMBERS)


def _axis(end: float, bottom: int) -> str:
    step = next(s for s in (0.05, 0.1, 0.2, 0.5) if end / s <= 6.01)
    parts = []
    for number in range(int(end / step + 1e-6) + 1):
        x = _x(number * step, end)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}" class="grid"/>'
            f'<text x="{x:.1f}" y="{bottom + 14}" class="tick middle">{number * step:g}</text>'
        )
    middle = (NAMES + WIDTH - NUMBERS) / 2
    parts.append(f'<text x="{middle:.0f}" y="{bottom + 29}" class="tick middle">relative error</text>')
    return "".join(parts)


def _layer(layer: LayerRecovery, y: float, end: float) -> str:
    name = layer.tensor if len(layer.tensor) <= LETTERS else "…" + layer.tensor[1 - LETTERS :]
    start, stop, hue = _x(layer.before, end), _x(layer.after, end), color(1 if layer.target == "stream" else 0)
    kept = layer.before == layer.after
    words = f"{layer.after:.2f}" if kept else f"{layer.before:.2f} → {layer.after:.2f}"
    ring = "" if kept else f'<circle cx="{start:.1f}" cy="{y}" r="4" fill="none" stroke="{hue}" stroke-width="1.6"/>'
    return (
        f"<g><title>{escape(layer.tensor)}, towards its {escape(layer.target)}</title>"
        f'<text x="{NAMES - 10}" y="{y + 4}" class="tick end">{escape(name)}</text>'
        f'<line x1="{start:.1f}" x2="{stop:.1f}" y1="{y}" y2="{y}" stroke="{hue}" stroke-width="1.6"/>'
        f'{ring}<circle cx="{stop:.1f}" cy="{y}" r="4.5" fill="{hue}"/>'
        f'<text x="{WIDTH}" y="{y + 4}" class="tick end">{words}</text></g>'
    )
