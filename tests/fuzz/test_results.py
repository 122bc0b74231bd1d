"""Damaged rows are left out of a report, which names their lines; the others are reported as they are."""

import json
import random
import warnings

import pytest
from tests.experiments.reports.plausible import measured
from tests.experiments.stores import prepared
from tests.fuzz.damage import damaged_bytes, damaged_tree, json_text, watched

from neurograft.errors import InputError
from neurograft_experiments.reports.made import made_parts
from neurograft_experiments.reports.panels import panels_of
from neurograft_experiments.reports.sources import RowFiles
from neurograft_experiments.reports.study_page import takeaway
from neurograft_experiments.reports.tables import comparison_table, cost_table, over_table, won_back_table
from neurograft_experiments.reports.verdicts import claims_table, judge
from neurograft_experiments.reports.writing import write_reports
from neurograft_experiments.store import DATABASE
from neurograft_experiments.study_file import load_study
from neurograft_experiments.trials import trials_of

STUDY = """
title: A study
question: Does it work?
paper: neurograft
claims:
  - {text: it helps, source: ours, figure: {row: zip, tuning: finetune}, against: {row: best member}, holds_if: above}
  - {text: it is fast, source: ours, figure: {row: zip}, against: 1, holds_if: below, measure: seconds.fuse}
data: {source: digits}
network: {name: mlp, width: 16}
members: {count: 2, epochs: 1}
starts: {zip: {}}
recoveries: [none, refit]
tuning: {finetune: {epochs: 2}}
seeds: 2
presets: {smoke: {}}
"""


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return load_study(path)


def rows_of(study):
    chance = random.Random(5)
    for task in trials_of(study, "smoke"):
        curve = [chance.random() for _ in range(3)] if task.labels["tuning"] != "none" else None
        more = {"tried": [[0.01, 0.5], [0.1, None]]} if curve else {}
        row = measured(task.labels | {"key": task.key}, chance.random(), samples=997, curve=curve, **more)
        row["configuration"]["members"] = [{"key": f"m{m}"} for m in range(2)]
        yield row


def report(study, source):
    """Everything a page says, but for its pictures, which take long."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of means of nothing
        results = source.results(study, "smoke")
        for panel in panels_of(results, None):
            for table in (comparison_table, takeaway, won_back_table, cost_table):
                table(panel)
            over_table(panel, "finetune", "test.loss")
        claims_table([judge(claim, results) for claim in study.about.claims])
        list(made_parts(results, study.name, "smoke", ()))
    return source


@pytest.mark.parametrize("damage", ["fields", "bytes"])
def test_damaged_lines(tmp_path, study, damage):
    (tmp_path / "run").mkdir()
    chance, rows = random.Random(0), list(rows_of(study))
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    whole = report(study, RowFiles(write(tmp_path / "run", lines)))
    assert (len(whole.rows), whole.left_out) == (len(rows), [])
    left_out = []

    def inputs():
        for _ in range(300):
            number = chance.randrange(len(rows))
            tree = json_text(damaged_tree(rows[number], chance))
            yield number, tree if damage == "fields" else damaged_bytes(lines[number], chance)

    def read(given):
        number, line = given
        source = RowFiles(write(tmp_path / "run", [*lines[:number], line, *lines[number + 1 :]]))
        left_out.extend(source.left_out)
        assert {row["key"]: row for row in rows[:number] + rows[number + 1 :]}.items() <= source.rows.items()
        if not source.left_out and len(line.splitlines()) == 1:
            assert len(source.rows) == len(rows)
            report(study, source)

    assert not watched(inputs(), read).refused
    assert len(left_out) > 80
    assert all("rows.jsonl, line " in message for message in left_out)


def write(folder, lines):
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return folder


def test_damaged_lines_are_named(tmp_path, study):
    lines = [json.dumps(row).encode() for row in rows_of(study)]
    lines[1] = lines[1].replace(b'"mnist"', b'"mnis\xff"').replace(b'"data"', b'"d\xc3a"')
    lines[3] = lines[3][:50]
    lines[4] = lines[4].replace(b'"versions"', b'"version"')
    lines[6] = lines[8] = b"[" * 100_000
    source = report(study, RowFiles(write(tmp_path, lines)))
    assert source.left_out == [
        f"{tmp_path}/rows.jsonl, line 2 (no UTF-8), 4 (torn, or no JSON), 5 (versions: Field required) and 2 more: "
        "left out"
    ]
    assert len(source.rows) == len(lines) - 5


def test_damaged_databases(tmp_path, study):
    store = prepared(tmp_path / "run")
    for row in rows_of(study):
        store.add(row)
    store.fail("a", "a trial", ValueError("no"))
    store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    path, chance = tmp_path / "run" / DATABASE, random.Random(1)
    for beside in path.parent.glob(f"{DATABASE}-*"):
        beside.unlink()
    whole = path.read_bytes()
    assert not report(study, RowFiles(tmp_path)).left_out
    left_out = []

    def read(data: bytes) -> None:
        path.write_bytes(data)
        left_out.extend(report(study, RowFiles(tmp_path)).left_out)

    assert not watched((damaged_bytes(whole, chance) for _ in range(300)), read).refused
    assert any("cannot be read" in message for message in left_out)
    assert any("left out" in message for message in left_out)


def test_damaged_entries_of_databases(tmp_path, study):
    store, rows = prepared(tmp_path / "run"), list(rows_of(study))
    for row in rows:
        store.add(row)
    damaged = [b'{"key": "\xff"}', "[" * 10_000, 7, None, "[]", "{}", 1.5, b"\xff"]
    with store._connection as connection:
        for row, entry in zip(rows, damaged, strict=False):
            connection.execute("UPDATE results SET entry = ? WHERE key = ?", (entry or "", row["key"]))
        for number, entry in enumerate(damaged):
            connection.execute("INSERT INTO failures VALUES (?, ?)", (f"f{number}", entry or ""))
    source = report(study, RowFiles(tmp_path))
    assert len(source.rows) == len(rows) - len(damaged)
    assert [message.split(", ")[1].split(" (")[0] for message in source.left_out] == ["result 1", "failure 1"]
    with pytest.raises(InputError, match="holds no results"):
        write_reports([load_study("comparison")], "smoke", source, tmp_path)


def test_pages_of_damaged_fields(tmp_path, study):
    """The whole way, pictures included."""
    (tmp_path / "run").mkdir()
    chance, rows = random.Random(2), list(rows_of(study))

    def read(number: int) -> None:
        lines = [json_text(damaged_tree(row, chance) if chance.random() < 0.3 else row) for row in rows]
        source = RowFiles(write(tmp_path / "run", lines))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            write_reports([study], "smoke", source, tmp_path / "report")

    watched(range(20), read)


def test_files_that_are_none(tmp_path, study):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "link.jsonl").symlink_to("nowhere")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "run" / DATABASE).mkdir(parents=True)
    outcome = watched([tmp_path], lambda folder: report(study, RowFiles(folder)))
    assert outcome.read == 1
