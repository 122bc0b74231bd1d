"""Colours that colour-blind people can tell apart, on light and on dark ground."""

import re

LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b8518f", "#a87900", "#3f8fbf", "#7a5cc4", "#5c6b73")
DARK = ("#56b4e9", "#ff9d5c", "#2bc79a", "#e79cc6", "#e8c547", "#9bd3f2", "#b9a3f0", "#a9b6bd")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 2", "1 2", "12 3", "4 4")
"""Lines differ by their dashes too, so that a grey print stays readable. Source of the hues: Okabe & Ito 2008."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*")
"""One more than there are colours: the ninth line has the first one's colour and dash, but another marker."""

INKS = {"ink": "#1c2429", "soft": "#5b6870", "line": "#d8dee2", "ground": "#ffffff", "card": "#f6f8f9"}
DARK_INKS = {"ink": "#e8edf0", "soft": "#9fadb5", "line": "#38444b", "ground": "#12181c", "card": "#1a2227"}


def color(index: int) -> str:
    """The CSS value of colour `index`, counted round the palette."""
    return f"var(--c{index % len(LIGHT)})"


def palette_css() -> str:
    """CSS variables `--c0`, `--c1`, … and `--ink`, `--soft`, … for light and dark ground."""
    return (
        f":root {{ {_variables(LIGHT, INKS)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK, DARK_INKS)} }} }}"
    )


def themed(svg: str) -> str:
    """A picture drawn in the colours for light ground, with the CSS variables in their place.

    Example:
        >>> themed('<path style="stroke: #0072b2"/>')
        '<path style="stroke: var(--c0)"/>'
    """
    names = {value: f"var(--c{index})" for index, value in enumerate(LIGHT)}
    names |= {value: f"var(--{name})" for name, value in INKS.items()}
    return re.sub("|".join(names), lambda found: names[found[0]], svg)


def _variables(colors: tuple[str, ...], inks: dict[str, str]) -> str:
    return " ".join([f"--c{i}: {value};" for i, value in enumerate(colors)] + [f"--{k}: {v};" for k, v in inks.items()])
