import subprocess
import sys

import pytest
import torch
from tests.experiments.stores import prepared, run_study
from torch import nn

import neurograft as ng
from neurograft.errors import StudyError
from neurograft_experiments.running import run_task
from neurograft_experiments.study_file import load_study
from neurograft_experiments.synchronous import _spawned
from neurograft_experiments.trials import tasks_of

WORKER = """
import sys, torch
from pathlib import Path
from torch import nn
from neurograft_experiments.synchronous import worker_group, synchronised
number, place = int(sys.argv[1]), Path(sys.argv[2])
torch.manual_seed(number)
network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
with worker_group(number, 2, f"file://{place}/meeting"):
    for method in ("average", "transplant"):
        fused, seconds = synchronised(network, method, torch.zeros(1, 3))
        assert seconds > 0
        torch.save(fused.state_dict(), place / f"{method}-{number}.pt")
"""


@pytest.mark.slow
def test_two_processes_end_with_the_fusion_of_their_networks(tmp_path):
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(number), str(tmp_path)]) for number in range(2)]
    assert [worker.wait(300) for worker in workers] == [0, 0]
    members = []
    for number in range(2):
        torch.manual_seed(number)
        members.append(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    for method in ("average", "transplant"):
        wanted = ng.fuse(members, torch.zeros(1, 3), method, recover=None).state_dict()
        for number in range(2):
            torch.testing.assert_close(torch.load(tmp_path / f"{method}-{number}.pt"), wanted, rtol=0, atol=0)


@pytest.mark.slow
def test_workers_train_and_are_fused_after_each_epoch(tmp_path):
    rows = {row["row"]: row for row in run_study(load_study("synchronous"), "smoke", tmp_path)}
    assert set(rows) == {"one worker, all images", "one worker, its part", "average", "transplant"}
    for row in rows.values():
        assert len(row["curve"]) == 3
        assert row["curve"][row["epoch"]] == row["validation"]["accuracy"] == max(row["curve"])
        assert row["test"]["samples"] == 997
    assert len({row["curve"][0] for row in rows.values()}) == 1  # all start from one network
    assert rows["average"]["curve"][-1] > rows["average"]["curve"][0]
    assert rows["average"]["curve"] != rows["one worker, its part"]["curve"]
    assert rows["average"]["seconds"]["fuse"] > 0
    assert rows["one worker, all images"]["seconds"]["fuse"] == 0


@pytest.mark.slow
def test_a_worker_that_fails_ends_the_others_and_says_why():
    with pytest.raises(StudyError, match=r"(?s)worker \d of 2 failed: .*KeyError: 'training'"):
        _spawned({"workers": 2, "threads": 1}, None, [].append)


@pytest.mark.slow
def test_a_learning_rate_that_diverges_loses(tmp_path):
    study = load_study("synchronous")
    tasks = [task for task in tasks_of(study, "smoke") if task.labels["row"] in ("average", "one worker, its part")]
    store = prepared(tmp_path)
    for task in tasks:
        task.settings["training"]["lr"] = [1e30, 0.05]
        row = run_task(task, store).row
        assert [lr for lr, reached in row["tried"] if reached is None] == [1e30]
        assert row["lr"] == 0.05
