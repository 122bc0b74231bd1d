import json

import pytest
import torch
from tests.experiments.stores import prepared, run_study
from tests.experiments.test_study_file import STUDY

import neurograft as ng
from neurograft.checkpoints.loading import load_into
from neurograft_experiments.data import load_images
from neurograft_experiments.engine import run_in_process
from neurograft_experiments.networks import make_network
from neurograft_experiments.running import run_task
from neurograft_experiments.study_file import load_study
from neurograft_experiments.trials import tasks_of


@pytest.fixture
def study(tmp_path):
    def made(text=STUDY):
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return load_study(path)

    return made


def find(rows, **wanted):
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_rows_say_what_was_measured(tmp_path):
    rows = run_study(load_study("comparison"), "smoke", tmp_path)
    json.dumps(rows, allow_nan=False)
    (best,), (fused,) = find(rows, row="best member"), find(rows, row="transplant", tuning="none")
    members = find(rows, row="member 0") + find(rows, row="member 1")
    assert best["validation"]["accuracy"] == max(row["validation"]["accuracy"] for row in members)
    for row in rows:
        assert row["validation"]["samples"] == 400
        assert row["test"]["samples"] == 997
        assert row["curve"][row["epoch"]] == row["validation"]["accuracy"] == max(row["curve"])
        assert set(row["seconds"]) == {"members", "fuse", "recover", "tune", "search"}
        assert {"commit", "versions", "hardware", "configuration"} <= set(row)
    assert fused["seconds"]["fuse"] > 0
    tuned = find(rows, row="transplant", tuning="finetune")[0]
    assert tuned["curve"][0] == fused["validation"]["accuracy"]
    assert tuned["lr"] == 0.05


def test_a_row_is_what_the_public_functions_give(study, tmp_path):
    rows = run_study(study(), "smoke", tmp_path, seeds=[0])
    digits = load_images("digits")
    members = [make_network({"name": "mlp", "width": 16}, digits.shape, 10) for _ in "ab"]
    fused_row = find(rows, row="transplant", tuning="finetune")[0]
    for member, entry in zip(members, fused_row["configuration"]["members"], strict=True):
        load_into(member, tmp_path / "members" / f"{entry['key']}.safetensors")
    fused = ng.fuse(members, digits.train.images[:2], recover=None)
    found = []
    for lr in (0.1, 0.01):
        tuned = ng.finetune(
            fused,
            digits.train.batches(256, shuffle=True),
            epochs=1,
            lr=lr,
            validation=digits.validation.batches(),
            seed=0,
        )
        found.append((ng.evaluate(tuned, digits.validation.batches()).accuracy, lr, tuned))
    accuracy, lr, tuned = max(found, key=lambda one: one[0])
    assert (fused_row["validation"]["accuracy"], fused_row["lr"]) == (accuracy, lr)
    assert fused_row["test"]["accuracy"] == ng.evaluate(tuned, digits.test.batches()).accuracy
    assert dict(fused_row["tried"]) == {one[1]: max(one[0], fused_row["curve"][0]) for one in found}


def test_the_same_task_gives_the_same_row(study, tmp_path):
    text = STUDY.replace("tuning:", "tuning:\n  distill: {epochs: 1, lr: 0.1}").replace("{}", "{recoveries: [refit]}")
    first = run_study(study(text), "smoke", tmp_path / "a", seeds=[0])
    torch.manual_seed(99)
    second = run_study(study(text), "smoke", tmp_path / "b", seeds=[0])
    for one, other in zip(first, second, strict=True):
        assert [one[name] for name in ("curve", "test", "epoch", "lr")] == [
            other[name] for name in ("curve", "test", "epoch", "lr")
        ]


def test_a_step_size_that_diverges_loses(study, tmp_path):
    rows = run_study(study(STUDY.replace("[0.1, 0.01]", "[0.01, 1.0e+30]")), "smoke", tmp_path, seeds=[0])
    for row in find(rows, tuning="finetune"):
        assert row["lr"] == 0.01
        assert row["tried"][1] == [1e30, None]


@pytest.mark.parametrize("kind", ["member", "trial"])
def test_a_long_training_that_was_killed_goes_on(study, tmp_path, kind):
    text = STUDY.replace("epochs: 1\n", "epochs: 21\n").replace("epochs: 1,", "epochs: 21,")
    tasks = tasks_of(study(text), "smoke", [0])
    store = prepared(tmp_path)
    run_in_process([task for task in tasks if task.kind == "member" or not task.epochs], store, run_task)
    task = next(t for t in tasks if t.kind == kind and (kind == "member" or t.epochs))
    wanted = run_task(task, store).row
    for state in store.unfinished.iterdir():
        state.unlink()
    epochs = []

    def kill(what):
        epochs.append(what)
        if len(epochs) == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_task(task, store, kill)
    (state,) = store.unfinished.glob(f"{task.key}*")
    found = run_task(task, store).row
    assert [found[name] for name in ("curve", "epoch", "lr", "validation")] == [
        wanted[name] for name in ("curve", "epoch", "lr", "validation")
    ]
    assert len(found["curve"]) == 22
    if kind == "trial":
        assert found["test"] == wanted["test"]
        assert not state.exists()


KEPT = """
title: Kept
question: q
paper: neurograft
data: {source: digits}
network: {name: convnet, width: 4}
members: {epochs: 2, lr: 0.1, batch: 32}
starts:
  transplant: {recoveries: [none, data_free]}
  own neurons of member 1: {method: keep, member: 1, recoveries: [none, refit]}
calibration: 100
presets: {smoke: {}}
"""


def test_a_kept_members_neurons_are_refitted_towards_all_members(study, tmp_path):
    rows = run_study(study(KEPT), "smoke", tmp_path)
    (refitted,) = find(rows, row="own neurons of member 1")  # as it is, it is member 1, which has a row
    digits = load_images("digits")
    members = [make_network({"name": "convnet", "width": 4}, digits.shape, 10) for _ in "ab"]
    for network, entry in zip(members, refitted["configuration"]["members"], strict=True):
        load_into(network, tmp_path / "members" / f"{entry['key']}.safetensors")
    plan = ng.plan(members, digits.train.images[:2], weights=[1, 1], quota=[0, 1])

    found = ng.refit(ng.apply(plan, members), plan, members, torch.split(digits.train.images[:100], 250))
    assert refitted["test"]["accuracy"] == ng.evaluate(found, digits.test.batches()).accuracy


def test_repair_without_data_reads_no_image(study, tmp_path):
    rows = run_study(study(KEPT), "smoke", tmp_path)
    (repaired,) = find(rows, row="transplant", recovery="data_free")
    assert "calibration" not in repaired["configuration"]
    digits = load_images("digits")
    members = [make_network({"name": "convnet", "width": 4}, digits.shape, 10) for _ in "ab"]
    for network, entry in zip(members, repaired["configuration"]["members"], strict=True):
        load_into(network, tmp_path / "members" / f"{entry['key']}.safetensors")
    found = ng.fuse(members, digits.train.images[:2], recover="repair")
    assert repaired["test"]["accuracy"] == ng.evaluate(found, digits.test.batches()).accuracy
