"""One table, shown on the terminal or in a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
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
        note: what a reader must know, under the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: int = 0
    strong: frozenset[tuple[int, int]] = frozenset()
    rules: frozenset[int] = frozenset()
    note: str = ""


def terminal_table(table: Table) -> rich.table.Table:
    """The table for a rich console."""
    title, note = (Text(terminal(text, lines=True)) for text in (table.title, table.note))
    shown = rich.table.Table(title=title, caption=note, title_justify="left", caption_justify="left")
    for index, column in enumerate(table.columns):
        justify: Literal["left", "right"] = "right" if is_numeric(table, index) else "left"
        shown.add_column(
            Text(terminal(column)), justify=justify, overflow="fold", no_wrap=index == 0
        )  # names stay whole
    for r, row in enumerate(table.rows):
        cells = [Text(terminal(cell), style="bold" if (r, c) in table.strong else "") for c, cell in enumerate(row)]
        shown.add_row(*cells, end_section=r in table.rules)
    return shown


def html_table(table: Table) -> str:
    """The table for a page; its title becomes the caption."""
    head = "".join(_cell("th", column, is_numeric(table, c)) for c, column in enumerate(table.columns))
    body = "".join(_html_row(table, r, row) for r, row in enumerate(table.rows))
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll"><table><caption>{escape(table.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}"
    )


def _html_row(table: Table, number: int, row: Sequence[str]) -> str:
    cells = "".join(
        _cell("td", cell, is_numeric(table, c), strong=(number, c) in table.strong) for c, cell in enumerate(row)
    )
    return f'<tr class="rule">{cells}</tr>' if number in table.rules else f"<tr>{cells}</tr>"


def _cell(tag: str, text: str, numeric: bool, *, strong: bool = False) -> str:
    kind = ' class="number"' if numeric else ""
    content = f"<strong>{escape(text)}</strong>" if strong else escape(text)
    return f"<{tag}{kind}>{content}</{tag}>"


def is_numeric(table: Table, column: int) -> bool:
    """Whether a column holds numbers."""
    return column >= len(table.columns) - table.numeric
