"""Colours that colour-blind people can tell apart, on light and on dark ground."""

LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b8518f", "#a87900", "#3f8fbf", "#7a5cc4", "#5c6b73")
DARK = ("#56b4e9", "#ff9d5c", "#2bc79a", "#e79cc6", "#e8c547", "#9bd3f2", "#b9a3f0", "#a9b6bd")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 2", "1 2", "12 3", "4 4")
"""Lines differ by their dashes too, so that a grey print stays readable. Source of the hues: Okabe & Ito 2008."""


def color(index: int) -> str:
    """The CSS value of colour `index`, counted round the palette."""
    return f"var(--c{index % len(LIGHT)})"


def palette_css() -> str:
    """CSS variables `--c0`, `--c1`, … for light and dark ground."""
    light = " ".join(f"--c{i}: {value};" for i, value in enumerate(LIGHT))
    dark = " ".join(f"--c{i}: {value};" for i, value in enumerate(DARK))
    return (
        f":root {{ {light} --ink: #1c2429; --soft: #5b6870; --line: #d8dee2; --ground: #ffffff; --card: #f6f8f9; }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} --ink: #e8edf0; --soft: #9fadb5; "
        "--line: #38444b; --ground: #12181c; --card: #1a2227; } }"
    )
