import io
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from neurograft.checkpoints import load_into
from neurograft.errors import InputError
from neurograft.evaluating.evaluation import evaluate
from neurograft_experiments import demo
from neurograft_experiments.data import load_images
from neurograft_experiments.demo import Budget, run_demo
from neurograft_experiments.networks import digits_mlp

METHODS = ("average", "transplant")
BUDGET = Budget(members=2, member_epochs=2, tuning_epochs=2)


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
    assert str(done.page) in text.replace("\n", "")
    assert str(done.rows) in text.replace("\n", "")


def read(demonstration):
    return [json.loads(line) for line in demonstration[0].rows.read_text().splitlines()]


def test_every_row_of_an_honest_comparison_is_there(demonstration):
    rows = [(row["row"], row["recovery"], row["tuning"]) for row in read(demonstration) if row["study"] == "demo"]
    ways = [(recovery, tuning) for recovery in ("none", "refit") for tuning in ("none", "finetune", "distill")]
    assert rows == [
        ("member 0", "none", "none"),
        ("member 1", "none", "none"),
        ("best member", "none", "none"),
        ("ensemble", "none", "none"),
        ("continue the best member", "none", "finetune"),
        ("continue the best member", "none", "distill"),
        *((method, *way) for method in METHODS for way in ways),
    ]


def test_clients_come_first(demonstration):
    done, text = demonstration
    rows = [row for row in read(demonstration) if row["study"] == "clients"]
    assert {(row["row"], row["recovery"]) for row in rows if "client" in row["row"] or "FedAvg" in row["row"]} == {
        ("one-shot FedAvg", "none"),
        ("fused, clients' statistics", "refit"),
        ("ensemble by clients' statistics", "none"),
    }
    assert [row["study"] for row in read(demonstration)][: len(rows)] == ["clients"] * len(rows)
    assert text.index("5 clients that saw different images") < text.index("2 networks into one")
    page = done.page.read_text(encoding="utf-8")
    assert page.index("5 clients that saw different images") < page.index("2 networks into one")


def test_every_result_row_can_be_traced_back(demonstration):
    for row in read(demonstration):
        assert 0 <= row["validation"]["accuracy"] <= 1
        assert 0 <= row["test"]["accuracy"] <= 1
        assert row["seed"] == 0
        assert row["configuration"]["data"]["source"] == "digits"
        assert row["commit"]
        assert row["versions"]["torch"]
        assert row["hardware"]["cores"]
        assert row["seconds"]["members"] > 0
        if row["tuning"] != "none":
            assert row["configuration"]["tuning"]["epochs"] == len(row["curve"]) - 1 == 2
            assert row["curve"][row["epoch"]] == max(row["curve"]) == row["validation"]["accuracy"]


class Checker(HTMLParser):
    """Collects what a page would load, and checks that every element is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.tags = [], [], set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole_and_loads_nothing(demonstration):
    page = demonstration[0].page.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert all(target.startswith("data:image/svg+xml;base64,") for target in checker.loads)
    assert "script" not in checker.tags
    assert {"table", "img", "dl"} <= checker.tags
    assert "http://" not in page


def test_page_shows_rows_groups_and_provenance(demonstration):
    page = demonstration[0].page.read_text(encoding="utf-8")
    for words in ("continue the best member", "hidden.1.weight:0", "Where each fused neuron came from", "commit"):
        assert words in page


def test_page_draws_what_refitting_did_to_every_layer(demonstration):
    page = demonstration[0].page.read_text(encoding="utf-8")
    drawn = page.partition("Refitting, layer by layer")[2].partition("<h3>")[0]
    assert drawn.count("<img") == len(METHODS)
    for method in METHODS:
        assert f"{method}: 400 samples, 1 pass" in drawn
        assert f"Relative error of every layer of MLP, {method}." in drawn


def test_networks_are_kept(demonstration):
    folder = demonstration[0].page.parent
    test = load_images("digits").test.batches()
    measured = {
        row["row"]: row["test"]["accuracy"]
        for row in read(demonstration)
        if row["recovery"] == "none" and row["tuning"] == "none"
    }
    for name, row in (("mlp-member-1", "member 1"), ("mlp-transplant", "transplant")):
        network = load_into(digits_mlp(), folder / f"{name}.safetensors")
        assert evaluate(network, test).accuracy == measured[row]


def test_nothing_else_is_left_behind(demonstration):
    names = {path.name for path in demonstration[0].page.parent.iterdir()}
    members = {f"mlp-{name}.safetensors" for name in ("member-0", "member-1", *METHODS)}
    assert names == {"report.html", "results.jsonl", *members}


def test_same_seed_same_figures_other_seed_others(tmp_path):
    def figures(seed):
        budget = Budget(members=2, member_epochs=1, tuning_epochs=1, seed=seed)
        done = run_demo(
            "digits", tmp_path, networks=("mlp",), methods=("average",), budget=budget, console=Console(quiet=True)
        )
        rows = [json.loads(line) for line in done.rows.read_text().splitlines()]
        return [(row["row"], row["recovery"], row["tuning"], row["curve"], row["test"]) for row in rows]

    assert figures(1) == figures(1)
    assert figures(1) != figures(2)


def test_a_folder_that_cannot_be_written_is_found_before_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/demo cannot be written to: Not a directory; choose another folder"):
        run_demo("digits", tmp_path / "file" / "demo", budget=BUDGET, console=Console(file=io.StringIO()))


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    left = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys, time; from pathlib import Path; from neurograft_experiments import demo\n"
            "with demo._place(Path(sys.argv[1])) as place: (place / 'rows').touch(); print(place); time.sleep(60)",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    place = Path(left.stdout.readline().strip())
    with demo._place(tmp_path) as other:  # a run that lives keeps its folder
        assert place.is_dir()
        assert other != place
    left.kill()
    left.wait()
    left.stdout.close()
    assert place.is_dir()
    with demo._place(tmp_path):
        assert not place.exists()
    assert list(tmp_path.iterdir()) == []
