"""One table, for the terminal, a page or Markdown."""

from dataclasses import dataclass
from typing import Literal

import rich.table
from rich.text import Text

from neurograft.escaping import terminal


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under named columns.

    Attributes:
        title: what the table shows.
        columns: the columns' names.
        rows: one tuple of cells per row, as many as columns.
        numeric: how many columns at the end hold numbers; they are aligned to the right.
        strong: (row, column) of the cells that stand out.
        rules: rows after which a line is drawn.
        note: how to read it, under the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: int = 0
    strong: frozenset[tuple[int, int]] = frozenset()
    rules: frozenset[int] = frozenset()
    note: str = ""

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers."""
        return column >= len(self.columns) - self.numeric


def terminal_table(table: Table) -> rich.table.Table:
    """The table for a rich console."""
    title, note = (Text(terminal(text, lines=True)) for text in (table.title, table.note))
    shown = rich.table.Table(title=title, caption=note, title_justify="left", caption_justify="left")
    for c, column in enumerate(table.columns):
        side: Literal["left", "right"] = "right" if table.is_number(c) else "left"
        shown.add_column(Text(terminal(column)), justify=side, overflow="fold", no_wrap=c == 0)  # names stay whole
    for r, row in enumerate(table.rows):
        cells = [Text(terminal(cell), style="bold" if (r, c) in table.strong else "") for c, cell in enumerate(row)]
        shown.add_row(*cells, end_section=r in table.rules)
    return shown
