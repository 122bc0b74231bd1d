"""Every study that comes with neurograft runs in `smoke`; two of them within the fast tests."""

import json

import pytest
from tests.experiments.stores import run_study

from neurograft_experiments.study_file import load_study, study_names
from neurograft_experiments.trials import tasks_of

QUICK = ("order", "skill_transfer")
ELSEWHERE = ("comparison", "synchronous")
"""Run by test_running.py and test_synchronous.py."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in study_names()
        if name not in ELSEWHERE
    ],
)
def test_smoke(name, tmp_path):
    rows = run_study(load_study(name), "smoke", tmp_path)
    json.dumps(rows, allow_nan=False)
    assert len({row["row"] for row in rows}) >= 3
    assert len(rows) >= sum(task.kind == "trial" for task in tasks_of(load_study(name), "smoke"))
    assert all(row["study"] == name and row["preset"] == "smoke" for row in rows)


@pytest.mark.parametrize("name", study_names())
def test_claims_speak_of_rows_that_the_study_has(name):
    study = load_study(name)
    for claim in study.about.claims:
        figures = [claim.figure] + ([claim.against] if not isinstance(claim.against, float) else [])
        for figure in figures:
            wanted = {"row": figure.row, "recovery": figure.recovery, "tuning": figure.tuning}
            found = [
                preset
                for preset in study.presets
                if any(
                    wanted.items() <= task.labels.items()
                    and (task.labels | task.labels["varied"]).items() >= {**claim.where, **figure.where}.items()
                    for task in tasks_of(study, preset, seeds=[0])
                    if task.kind == "trial"
                )
            ]
            assert {"paper", "medium", "small"} & set(found), f"{claim.text}: no row is {figure}"


@pytest.mark.parametrize("name", study_names())
def test_small_reads_a_part_of_the_images(name):
    small = [point.settings for point in load_study(name).presets["small"]]
    assert all(own.data.samples is not None or own.data.source == "mnist" for own in small) or small[0].kind == "costs"
