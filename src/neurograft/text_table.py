"""Tables and paragraphs as plain text; `rich` lays them out, and names in them are neither markup nor control codes."""

from collections.abc import Collection, Iterable, Sequence
from io import StringIO
from textwrap import fill

from neurograft.escaping import terminal

WIDTH = 120


def text_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Collection[str] = (),
    boxed: bool = False,
    width: int = WIDTH,
) -> str:
    """Rows of text under named columns; long cells are folded, and columns of `numbers` are aligned to the right.

    Example:
        >>> print(text_table(["group", "units"], [["fc.weight:0", "8"], ["[a]", "12"]], numbers={"units"}))
        group        units
        fc.weight:0      8
        [a]             12
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.HEAVY_HEAD if boxed else None, pad_edge=boxed)
    for column in columns:
        table.add_column(Text(terminal(column)), justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(terminal(cell)) for cell in row))
    out = StringIO()
    Console(file=out, width=width, color_system=None, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def paragraph(text: str, width: int = WIDTH) -> str:
    """The text in lines of at most `width` characters, broken at spaces."""
    return fill(terminal(text), width, break_long_words=False, break_on_hyphens=False)


__all__ = ["paragraph", "text_table"]
