"""Every study that comes with neurograft has a report, and every claim names rows that its presets have."""

import random

import pytest
from tests.experiments.reports.plausible import measured

from neurograft.reporting.document import Picture, html_page
from neurograft_experiments.reports import charts
from neurograft_experiments.reports.results import collect
from neurograft_experiments.reports.study_page import study_document
from neurograft_experiments.reports.verdicts import judge
from neurograft_experiments.study_file import load_study, study_names
from neurograft_experiments.trials import trials_of


def results_of(study, preset, *, rows=True):
    expected, found = [], {}
    costs = {point.settings.kind for point in study.points(preset)} == {"costs"}
    for task in trials_of(study, preset):
        of, draw = task.labels | {"key": task.key}, random.Random(task.key)
        expected.append(of)
        row = measured(of, 0.96 if of["row"] == "best member" else 0.9 + draw.random() / 20)
        if costs:
            row = {name: value for name, value in row.items() if name not in ("test", "validation", "curve", "lr")}
            row |= {"memory": draw.randrange(10**8)}
        if rows:
            found[task.key] = row
    return collect(expected, found)


@pytest.mark.parametrize("name", study_names())
def test_every_study_has_a_page_whether_it_was_run_or_not(name, monkeypatch):
    drawn = Picture(b"<svg></svg>", "a plot")  # drawing is tested elsewhere
    monkeypatch.setattr(charts, "lines_picture", lambda *_, **__: drawn)
    monkeypatch.setattr(charts, "bars_picture", lambda *_, **__: drawn)
    study = load_study(name)
    for preset in sorted(study.presets.keys() & {"smoke", "small", "medium"}):
        page = html_page(study_document(study.about, results_of(study, preset), name=name, preset=preset, commands=()))
        assert "not run" not in page
        for claim in study.about.claims:
            assert claim.holds_if in ("above", "below", "not above", "not below", "equal")
    bare = study_document(study.about, results_of(study, "smoke", rows=False), name=name, preset="smoke", commands=())
    assert "not run" in html_page(bare)


@pytest.mark.parametrize("name", study_names())
def test_every_claim_can_be_measured_by_some_preset(name):
    study = load_study(name)
    unmeasured = {claim.text for claim in study.about.claims}
    for preset in study.presets:
        results = results_of(study, preset)
        unmeasured -= {claim.text for claim in study.about.claims if judge(claim, results).state != "not measured"}
    assert not unmeasured
