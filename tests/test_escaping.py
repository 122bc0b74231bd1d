"""Names are data: nothing in them acts on a terminal or in Markdown, and readers see them as they are."""

from io import StringIO
from unicodedata import category

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from neurograft.applying.provenance import Provenance
from neurograft.checkpoints import Checkpoint
from neurograft.checkpoints.hashing import Stamp
from neurograft.escaping import markdown, markdown_code, terminal
from neurograft.plans.plan import FusionPlan
from neurograft.reporting.tables import Table, terminal_table
from neurograft.text_table import paragraph, text_table
from neurograft.tracing.graph import FixedReason, Group, NeuronGraph

NASTY = "\x1b[2J\x9b31m\x07\r\u202e[/red]:smile:<img src=x onerror=y>|`$$` [a](javascript:b)\udcff\u2028\n# head"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain – ünï·code 😀", "plain – ünï·code 😀"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x9b\x7f\x00", r"\x9b\x7f\x00"),
        ("\u202eabc\u2066", r"\u202eabc\u2066"),
        ("caf\udce9", r"caf\udce9"),
        ("👩\u200d💻", "👩\u200d💻"),
    ],
)
def test_a_terminal_is_shown_what_it_would_obey(text, shown):
    assert terminal(text) == shown


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_no_control_character_is_left(text):
    shown = terminal(text, lines=True)
    assert not [c for c in shown if category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t"]
    shown.encode("utf-8")


def words(tokens):
    """What a reader of a rendered line sees, and the kinds of tokens that made it."""
    inline = [child for token in tokens if token.type == "inline" for child in token.children]
    return "".join(child.content for child in inline), {child.type for child in inline}


@given(st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text == text.strip()))
@settings(max_examples=300, deadline=None)
def test_markdown_shows_names_as_they_are(name):
    text, kinds = words(MarkdownIt("commonmark").enable("table").parse(f"name: {markdown(name)}"))
    assert text == f"name: {terminal(name)}"
    assert kinds <= {"text", "text_special"}


@given(st.text("`a |", min_size=1).filter(lambda text: text == text.strip()))
@settings(max_examples=200, deadline=None)
def test_code_in_markdown_is_the_name(name):
    text, kinds = words(MarkdownIt("commonmark").parse(f"is {markdown_code(name)}"))
    assert text == f"is {name}"
    assert kinds == {"text", "code_inline"}


def test_a_model_card_holds_names_as_text_only(tmp_path):
    member = Checkpoint(tmp_path / NASTY.replace("/", "-"), {}, {tmp_path / f"{NASTY[:6]}.pt": Stamp.of(tmp_path)}, {})
    card = Provenance("average", {"a`b": NASTY}, (1.0,), 0, f"package:{NASTY}", [member]).card({}, [NASTY])
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert front == "library_name: pytorch\ntags:\n- merge\n- neurograft"
    assert not [c for c in card if category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\n"]
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    kinds = {token.type for token in tokens} | {child.type for token in tokens for child in token.children or ()}
    assert not kinds & {"html_block", "html_inline", "link_open", "image"}
    assert [token.type for token in tokens].count("heading_open") == 1
    rows = [token for token in tokens if token.type == "td_open"]
    assert len(rows) == 4


def graph_named(name):
    return NeuronGraph((Group(name, 1, (), FixedReason.INPUT, name),), {}, unruled=(name,), notes=(name,))


def test_plans_graphs_and_tables_are_plain_text():
    plan = FusionPlan("average", (graph_named(NASTY),) * 2, {}, (0.5, 0.5), warnings=(NASTY,))
    table = text_table([NASTY], [[NASTY]], width=1000)
    for shown in (str(plan), str(graph_named(NASTY)), table, paragraph(NASTY)):
        assert not [c for c in shown if category(c) in ("Cc", "Cf", "Cs") and c != "\n"]
        assert r"\x1b[2J" in shown
        assert ":smile:" in shown
    assert table.count("[/red]:smile:") == 2


def test_tables_on_the_terminal_are_no_markup():
    table = Table(NASTY, (NASTY, "b"), ((NASTY, "1"),), note=NASTY)
    console = Console(file=StringIO(), width=10_000)
    console.print(terminal_table(table))
    shown = console.file.getvalue()
    assert shown.count("[/red]:smile:") == 4
    assert "\x1b" not in shown
