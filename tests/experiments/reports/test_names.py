"""Names in studies, rows, failures and paths are data: in pages, pictures, Markdown and terminals they do nothing."""

import json
import os
import re
import xml.etree.ElementTree as ET
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from unicodedata import category
from urllib.parse import unquote

import pytest
import yaml
from markdown_it import MarkdownIt
from tests.experiments.reports.plausible import measured
from tests.experiments.stores import prepared

from neurograft_experiments.study_file import load_study
from neurograft_experiments.trials import trials_of

NASTY = [
    "<script>alert(1)</script>",
    "</title></code></pre><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" \'',
    "$$ x_{",
    r"\$\frac{$",
    "a|b\\|c",
    "`` ` [x](javascript:alert(1)) ![y](http://z) ``",
    "\x1b[31m\x1b[2Jred\x07\x9b1m",
    "\u202eright to left\u2066",
    "\ufffe\u2028line\r\nbreak\x00",
    "_hidden_ __*strong*__",
    "[red]markup[/red] :smile: &lt; &#60;",
    "- 1. # > = +",
    "{{ 7*7 }}{% raw %}",
    "javascript:alert(1)",
    "&& --> ]]> <!-- <![CDATA[",
]
ALL = " ".join(NASTY)


def attacking_study(folder: Path, name: str):
    """A study in which every name that a person can choose attacks."""
    claim = {
        "holds_if": "above",
        "text": ALL,
        "source": NASTY[0],
        "figure": {"row": NASTY[1]},
        "against": {"row": "best member"},
    }
    starts = {row: {"method": "transplant"} for row in NASTY} | {"- x": {"method": "average"}}
    study = {
        "title": ALL,
        "question": f"1. {ALL}",
        "paper": "neurograft",
        "claims": [claim],
        "data": {"source": "<i>data</i>\x1b[1m"},
        "network": {"name": "mlp"},
        "members": {"epochs": 1},
        "tuning": {"finetune": {"epochs": 1}},
        "starts": starts,
        "cases": {NASTY[7] + NASTY[0]: {}, NASTY[10] + NASTY[3]: {"data": {"source": NASTY[12]}}},
        "presets": {"smoke": {}},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=["javascript:alert(1)<b>\x1b[31m$$|`&", "\udcff\u202e\n# head"])
def page(request, tmp_path_factory):
    """A folder of rows, failures and a study file, all with such names."""
    folder = tmp_path_factory.mktemp("names")
    study = attacking_study(folder, request.param)
    loaded, store = load_study(study), prepared(folder / "runs")
    for number, task in enumerate(trials_of(loaded, "smoke")):
        if number % 5 == 2:
            store.fail(task.key, ALL, ValueError(ALL))
            continue
        curve = [0.1, 0.5] if task.labels["tuning"] != "none" else None
        row = measured(task.labels | {"key": task.key}, 0.5 + number % 50 / 100, samples=997, curve=curve)
        row |= {"commit": ALL, "versions": {ALL: ALL}, "hardware": row["hardware"] | {"cpu": ALL, "gpu": "\udcff"}}
        store.add(row)
    store.close()
    return study, folder / "runs"


class Page(HTMLParser):
    """Every tag, attribute and piece of text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.texts, self.comments = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.texts.append(data)

    def handle_comment(self, data):
        self.comments.append(data)


TAGS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "h1",
        "h2",
        "h3",
        "p",
        "section",
        "ul",
        "li",
        "a",
        "dl",
    ),
    *(
        "dt",
        "dd",
        "pre",
        "code",
        "figure",
        "img",
        "figcaption",
        "div",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
    ),
    *("td", "strong"),
}
DRAWN = {
    *("svg", "metadata", "RDF", "Work", "type", "format", "creator", "title", "Agent", "date", "defs", "style", "g"),
    *("path", "use", "clipPath", "rect"),
}
ATTRIBUTES = {"lang", "charset", "name", "content", "class", "href", "src", "alt"}


def plain(text):
    return not [c for c in text if category(c) in ("Cc", "Cf", "Cn", "Cs", "Zl", "Zp") and c != "\n"]


def test_pages_pictures_and_markdown(neurograft, page, tmp_path):
    study, runs = page
    code, out, err = neurograft("experiment", "report", study, "-o", runs, "--to", tmp_path / "report", columns=10_000)
    assert (code, err) == (0, "")
    assert plain(out)
    written = {path.suffix: path for path in (tmp_path / "report").iterdir() if path.stem != "index"}
    assert {os.fsencode(path.stem) for path in written.values()} == {os.fsencode(study.stem)}
    check_page(written[".html"].read_text(encoding="utf-8"))
    index = check_page((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))
    (link,) = [value for name, value in index.attributes if name == "href"]
    assert re.fullmatch(r"[\w.%~-]+", link)
    assert unquote(link, errors="surrogateescape") == f"{study.stem}.html"
    check_markdown(written[".md"].read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in written[".jsonl"].read_bytes().splitlines()]
    assert {row["commit"] for row in rows} == {ALL}


def check_page(text):
    page = Page(text)
    assert page.tags <= TAGS
    assert {name for name, _ in page.attributes} <= ATTRIBUTES
    assert not page.comments
    assert plain(text)
    assert all(value.startswith("data:image/svg+xml;base64,") for name, value in page.attributes if name == "src")
    assert any(r"\x1b[31m\x1b[2Jred" in text for text in page.texts)
    assert any("<script>alert(1)</script>" in text for text in page.texts)
    for name, value in page.attributes:
        if name == "src":
            check_picture(b64decode(value.partition(",")[2]).decode())
    return page


def check_picture(svg):
    root = ET.fromstring(svg)
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert names <= DRAWN
    assert not [key for element in root.iter() for key in element.attrib if key.startswith("on")]
    links = [v for element in root.iter() for key, v in element.attrib.items() if key.endswith("href")]
    assert all(link.startswith("#") for link in links)
    assert plain(svg)


def check_markdown(text):
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inside = [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in tokens} | {token.type for token in inside}
    assert not kinds & {
        "html_block",
        "html_inline",
        "link_open",
        "image",
        "em_open",
        "hr",
        "ordered_list_open",
        "fence",
    }
    assert plain(text)
    assert {token.tag for token in tokens if token.type == "heading_open"} <= {"h1", "h2", "h3"}
    assert [token.type for token in tokens].count("bullet_list_open") == 1
    assert any(ALL.partition("\x1b")[0].split("$$")[0] in child.content for child in inside)
    assert [token.type for token in tokens].count("table_open") == text.count("\n| ---")


def test_names_on_a_terminal(neurograft, page, tmp_path):
    study, _ = page
    code, out, err = neurograft("experiment", "run", study, "-o", tmp_path / ALL[:20], "--dry-run", columns=10_000)
    assert (code, err) == (0, "")
    assert plain(out)
    code, out, err = neurograft("experiment", "run", study, "-o", tmp_path / "\x1b[31m\udcff")
    assert code == 2
    assert plain(out + err)
    (tmp_path / "bad").mkdir()
    bad = tmp_path / "bad" / f"{study.stem}.yaml"
    bad.write_text(yaml.safe_dump({"title": "x", ALL: 1}))
    code, out, err = neurograft("experiment", "run", bad)
    assert (code, out) == (2, "")
    assert plain(err)
    (tmp_path / "bad" / f"{study.stem}.jsonl").write_bytes(b"\xff\x1b[31m")
    code, out, err = neurograft("experiment", "report", study, "-o", tmp_path / "bad")
    assert (code, out) == (2, "")
    assert "line 1 (no UTF-8): left out" in err
    assert plain(err)


def test_failures_while_running(neurograft, tmp_path, monkeypatch):
    from neurograft_experiments import running

    study = attacking_study(tmp_path, "study")
    study.write_text(yaml.safe_dump(yaml.safe_load(study.read_text()) | {"data": {"source": "digits"}, "cases": None}))

    def fails(*_, **__):
        raise ValueError(ALL)

    monkeypatch.setattr(running, "run_task", fails)
    code, out, err = neurograft("experiment", "run", study, "-o", tmp_path / "runs")
    assert code == 1
    assert plain(out + err)
    assert r"\x1b[2J" in out
    assert r"\x1b[2J" in err
