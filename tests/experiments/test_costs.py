import pytest

from neurograft.errors import StudyError
from neurograft_experiments.costs import costs_trial, measure
from neurograft_experiments.study_file import load_study
from neurograft_experiments.trials import Task, tasks_of

SETTINGS = {
    "costs": "optimal_transport",
    "options": {},
    "data": {"source": "digits"},
    "network": {"name": "mlp", "width": 24, "depth": 2},
    "count": 3,
    "seed": 0,
    "threads": 1,
}


def test_seconds_and_memory_of_fusing():
    found = measure(SETTINGS)
    assert found["member_bytes"] == 4 * (64 * 24 + 24 * 24 + 24 * 10)
    assert 0 < found["fuse"] < 60
    assert 0 < found["trace"] < 60
    assert found["memory"] >= 0


@pytest.mark.slow
def test_a_failure_is_told():
    task = Task("k", "trial", "mlp: zip", (), {**SETTINGS, "costs": "zip"}, {}, 0)
    with pytest.raises(StudyError, match=r"(?s)mlp: zip: measuring failed: .*calibration"):
        costs_trial(task, 1)


def test_every_method_is_measured_at_every_width():
    tasks = tasks_of(load_study("time_and_memory"), "small")
    rows = {(task.labels["row"], task.labels["varied"]["network.width"]) for task in tasks}
    assert rows == {(r, w) for r in ("average", "transplant", "optimal_transport") for w in (256, 512, 1024, 2048)}
    assert not any(task.needs for task in tasks)
