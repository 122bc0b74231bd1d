import json
from pathlib import Path

import pytest
from tests.experiments.reports.plausible import measured
from tests.experiments.stores import prepared

from neurograft.errors import InputError, TrainingDiverged
from neurograft_experiments.reports.reproduction import write_reproduction
from neurograft_experiments.reports.sources import RowFiles
from neurograft_experiments.reports.writing import write_reports
from neurograft_experiments.study_file import load_study
from neurograft_experiments.trials import trials_of


@pytest.fixture(scope="module")
def comparison():
    return load_study("comparison")


def rows_of(study, preset):
    for number, task in enumerate(trials_of(study, preset)):
        of = task.labels | {"key": task.key}
        yield measured(of, 0.9 + number % 90 / 1000, samples=997)  # a share, however many trials there are


def kept(folder, rows, name="results.jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return RowFiles(folder)


def test_every_study_is_written_and_its_rows_make_the_same_report_again(comparison, tmp_path):
    source = kept(tmp_path / "run", rows_of(comparison, "smoke"))
    (done,) = write_reports([comparison], "smoke", source, tmp_path / "run" / "reports")
    written = sorted(path.name for path in (tmp_path / "run" / "reports").iterdir())
    assert {"comparison.html", "comparison.md", "comparison.jsonl", "index.html"} <= set(written)
    assert done.there == f"{done.expected} of {done.expected}"

    write_reports([comparison], "smoke", RowFiles(tmp_path / "run" / "reports"), tmp_path / "again")
    texts = [Path(folder, "comparison.jsonl").read_text() for folder in (tmp_path / "again", tmp_path / "run/reports")]
    assert texts[0] == texts[1]
    assert len(texts[0].splitlines()) == done.expected


def test_what_is_missing_torn_or_failed_is_not_counted(comparison, tmp_path):
    rows = list(rows_of(comparison, "smoke"))
    kept(tmp_path / "kept", rows[:3])
    with (tmp_path / "kept" / "results.jsonl").open("a") as file:
        file.write(json.dumps(rows[3])[:40])
    store = prepared(tmp_path / "run")
    store.add(rows[2])
    store.add(rows[5])
    store.fail(rows[4]["key"], "mlp seed 0: average", TrainingDiverged("too fast"))
    results = RowFiles(tmp_path).results(comparison, "smoke")
    reasons = [why for group in results for why in group.missing.values()]
    assert len(list(results.rows)) == 4
    assert reasons.count("mlp seed 0: average: TrainingDiverged: too fast") == 1
    assert set(reasons) == {"not run", "mlp seed 0: average: TrainingDiverged: too fast"}


def test_a_folder_without_results_says_how_to_make_them(comparison, tmp_path):
    with pytest.raises(InputError, match="no such folder; give the folder that `neurograft experiment run` was given"):
        RowFiles(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no results of comparison \(preset smoke\); neurograft experiment run"):
        write_reports([comparison], "smoke", RowFiles(tmp_path), tmp_path / "reports")


def test_a_report_that_cannot_be_written(comparison, tmp_path):
    source = kept(tmp_path / "run", rows_of(comparison, "smoke"))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/comparison.html cannot be written"):
        write_reports([comparison], "smoke", source, tmp_path / "file")


@pytest.mark.skipif("small" not in load_study("comparison").presets, reason="the study has no preset small")
def test_every_claim_is_answered_and_what_was_not_run_says_so(comparison, tmp_path):
    source = kept(tmp_path, rows_of(comparison, "small"))
    write_reproduction([comparison], source, tmp_path / "reproduction.md")
    text = (tmp_path / "reproduction.md").read_text(encoding="utf-8")
    for claim in comparison.about.claims:
        assert claim.text in text
    assert "| comparison | " in text
    assert "not run" in text
