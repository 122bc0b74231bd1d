import io

import pytest
from rich.console import Console

from neurograft.reporting.document import Document, Section, html_page
from neurograft.reporting.tables import Table, terminal_table

TABLE = Table(
    title="a < b",
    columns=("network", "accuracy"),
    rows=(("<mine>", "95.0"), ("other", "94.0")),
    numeric=1,
    strong=frozenset({(0, 1)}),
    rules=frozenset({0}),
    note="one & two",
)


def html_table(table):
    return html_page(Document("page", "lead", (Section("section", (table,)),)))


def test_page_shows_text_as_text():
    html = html_table(TABLE)
    assert "<caption>a &lt; b</caption>" in html
    assert '<tr class="rule"><td>&lt;mine&gt;</td><td class="number"><strong>95.0</strong></td></tr>' in html
    assert '<p class="note">one &amp; two</p>' in html


def test_terminal_shows_every_cell():
    out = io.StringIO()
    Console(file=out, width=80).print(terminal_table(TABLE))
    for text in ("a < b", "network", "<mine>", "95.0", "other", "one & two"):
        assert text in out.getvalue()


def test_square_brackets_are_no_markup():
    out = io.StringIO()
    Console(file=out, width=80).print(terminal_table(Table("t", ("c",), (("[red]x[/red]",),))))
    assert "[red]x[/red]" in out.getvalue()


@pytest.mark.parametrize("numeric", [0, 2])
def test_numbers_are_aligned_right(numeric):
    html = html_table(Table("t", ("a", "b"), (("1", "2"),), numeric=numeric))
    assert html.count('class="number"') == 2 * numeric
