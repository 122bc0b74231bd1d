import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from tests.experiments.reports.plausible import labels, measured, study

from neurograft.reporting.document import Picture, html_page
from neurograft_experiments.claims import Claim, ClaimSide
from neurograft_experiments.reports.markdown import markdown_page
from neurograft_experiments.reports.panels import panels_of
from neurograft_experiments.reports.results import collect
from neurograft_experiments.reports.study_page import study_document, takeaway
from neurograft_experiments.study import About, Plot

LOSES = Claim(
    text="it loses at first",
    source="section 5",
    figure=ClaimSide(row="transplant"),
    against=ClaimSide(row="best member"),
    holds_if="below",
)
COMMANDS = ("neurograft experiment run comparison --preset small",)


def document_of(results, *, x="row", claims=(LOSES,)):
    about = About(
        title="Comparison", question="Which is best?", paper="neuron transplantation", claims=claims, plot=Plot(x=x)
    )
    return study_document(about, results, name="comparison", preset="small", commands=COMMANDS)


@pytest.fixture(scope="module")
def compared():
    expected, rows = study()
    lost = next(of["key"] for of in expected if (of["row"], of["tuning"], of["seed"]) == ("average", "distill", 2))
    del rows[lost]
    return document_of(collect(expected, rows))


class Checker(HTMLParser):
    """Collects what a page would load, and checks that every element is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.loads = [], []

    def handle_starttag(self, tag, attributes):
        assert tag != "script"
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole_and_loads_nothing(compared):
    page = html_page(compared)
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert len(checker.loads) == 4
    assert all(target.startswith("data:image/svg+xml;base64,") for target in checker.loads)
    assert "http://" not in page


def test_page_says_everything_that_is_needed_to_make_it_again(compared):
    page = html_page(compared)
    for words in (
        COMMANDS[0],
        "0123456789ab",
        "torch 2.13.0",
        "a CPU, 2 cores, 1 threads",
        "0, 1, 2",
        "mnist: 5000 training, 1000 validation, 10000 test images",
        "71 of 72 (the rest was not run, or failed)",
        "held",
        "continue the best member",
        "(2 of 3)",
    ):
        assert words in page, words


def test_every_plot_is_there_and_is_an_svg_file(compared):
    pictures = list(compared.pictures())
    assert [picture.label for picture in pictures] == [
        "test accuracy at once",
        "points above the best member after training",
        "validation accuracy over epochs, fine-tuned",
        "validation accuracy over epochs, distilled",
    ]
    for picture in pictures:
        assert ElementTree.fromstring(picture.svg).tag == "{http://www.w3.org/2000/svg}svg"


def test_markdown_has_the_tables_and_no_picture(compared):
    text = markdown_page(compared)
    assert "| transplant | " in text
    assert "**Costs, mean over seeds**" in text
    assert "<svg" not in text
    assert "](" not in text


def test_a_study_over_a_quantity_has_a_table_a_plot_and_curves_per_training():
    expected, rows = study(seeds=2, varied=tuple({"network.width": width} for width in (16, 64)))
    document = document_of(collect(expected, rows), x="network.width")
    assert [picture.label for picture in document.pictures()] == [
        "test accuracy, at once, over width",
        "test accuracy, fine-tuned, over width",
        "validation accuracy over epochs, fine-tuned",
        "test accuracy, distilled, over width",
        "validation accuracy over epochs, distilled",
    ]
    assert document.sections[1].title == "Over width"


def test_a_study_without_any_row_says_not_run():
    expected, _ = study(seeds=1)
    document = document_of(collect(expected, {}))
    page = html_page(document)
    assert page.count("not run") > 20
    assert "not measured" in page
    assert not [part for section in document.sections for part in section.parts if isinstance(part, Picture)]


def test_the_takeaway_is_what_validation_prefers_beside_its_rivals():
    entries = {
        ("best member", "none"): (0.90, 0.90),
        ("ensemble", "none"): (0.95, 0.95),
        ("continue the best member", "finetune"): (0.921, 0.95),
        ("transplant", "finetune"): (0.92, 0.93),
        ("average", "finetune"): (0.94, 0.92),  # the test images would choose this one
    }
    expected, rows = [], {}
    for (row, tuning), (accuracy, validation) in entries.items():
        of = labels(row, tuning=tuning)
        expected.append(of)
        rows[of["key"]] = measured(of, accuracy, validation=validation)
    results = collect(expected, rows)
    assert takeaway(panels_of(results, None)[0]) == (
        "Validation prefers transplant, fine-tuned: 92.0 % on the test images. That is 2.0 points above the best "
        "member (90.0 %); 3.0 points below the ensemble (95.0 %); not distinguishable from the best member continued "
        "(fine-tuned) (92.1 %)."
    )
