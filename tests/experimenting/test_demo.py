import io
import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from rich.console import Console

from neurograft.checkpoints import load_into
from neurograft.errors import InputError
from neurograft.evaluating.evaluation import evaluate
from neurograft.experimenting.comparison import Budget
from neurograft.experimenting.data import load_images
from neurograft.experimenting.demo import run_demo
from neurograft.experimenting.networks import digits_mlp

METHODS = ("average", "transplant")
BUDGET = Budget(members=2, member_epochs=2, recovery_epochs=2)


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory):
    out = io.StringIO()
    done = run_demo(
        "digits",
        tmp_path_factory.mktemp("runs") / "demo",
        networks=("mlp",),
        methods=METHODS,
        budget=BUDGET,
        console=Console(file=out, width=120),
    )
    return done, out.getvalue()


def test_terminal_says_what_was_found_and_where_it_is(demonstration):
    done, text = demonstration
    for words in ("400 train, 400 validation, 997 test", "continue the best member", "ensemble", "Validation prefers"):
        assert words in text
    assert str(done.report) in text.replace("\n", "")
    assert str(done.results) in text.replace("\n", "")


def test_every_result_row_can_be_traced_back(demonstration):
    rows = [json.loads(line) for line in demonstration[0].results.read_text().splitlines()]
    assert len(rows) == 2 * (2 + 1 + 1 + 2 + 4 * len(METHODS))
    for row in rows:
        assert row["split"] in ("validation", "test")
        assert 0 <= row["accuracy"] <= 1
        assert row["seed"] == 0
        assert row["configuration"]["member_epochs"] == 2
        assert row["commit"]
        assert row["versions"]["torch"]
        assert row["hardware"]["cores"]
        assert row["seconds"] >= 0


class Checker(HTMLParser):
    """Collects what a page would load, and checks that every element is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.tags = [], [], set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole_and_loads_nothing(demonstration):
    page = demonstration[0].report.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.loads == []
    assert "script" not in checker.tags
    assert {"table", "svg", "dl"} <= checker.tags
    assert "http://" not in page
    for picture in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + picture.partition("</svg>")[0] + "</svg>")


def test_page_shows_rows_groups_and_provenance(demonstration):
    page = demonstration[0].report.read_text(encoding="utf-8")
    for words in ("continue the best member", "hidden.1.weight:0", "Where each fused neuron came from", "commit"):
        assert words in page


def test_page_draws_what_refitting_did_to_every_layer(demonstration):
    page = demonstration[0].report.read_text(encoding="utf-8")
    drawn = page.partition("Refitting, layer by layer")[2].partition("<h3>")[0]
    reports = demonstration[0].comparisons["mlp"].reports
    assert set(reports) == set(METHODS)
    assert drawn.count("<svg") == len(METHODS)
    for method, report in reports.items():
        assert f"{method}: 400 samples, 1 pass" in drawn
        for layer in report.layers:
            assert f"{layer.tensor}, towards its layer" in drawn
            assert f"{layer.after:.2f}</text>" in drawn


def test_networks_are_kept(demonstration):
    done, _ = demonstration
    folder, comparison = done.report.parent, done.comparisons["mlp"]
    test = load_images("digits").test.batches()
    for name, row in (("mlp-member-1", "member 1"), ("mlp-transplant", "transplant")):
        network = load_into(digits_mlp(), folder / f"{name}.safetensors")
        assert evaluate(network, test).accuracy == comparison.find(row, "none").test.accuracy


def test_a_folder_that_cannot_be_written_is_found_before_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/demo cannot be written to: Not a directory; choose another folder"):
        run_demo("digits", tmp_path / "file" / "demo", budget=BUDGET, console=Console(file=io.StringIO()))
