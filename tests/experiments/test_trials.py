import json
from pathlib import Path

import pytest
from tests.experiments.test_study_file import STUDY

from neurograft_experiments.study_file import load_study
from neurograft_experiments.trials import key_of, tasks_of


@pytest.fixture
def tasks(tmp_path):
    def made(text=STUDY, name="study", preset="smoke"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return tasks_of(load_study(path), preset)

    return made


def keys(tasks, **labels):
    return {task.key for task in tasks if all(task.labels.get(name) == value for name, value in labels.items())}


def test_members_come_first_and_every_key_once(tasks):
    found = tasks()
    kinds = [task.kind for task in found]
    assert kinds == ["member"] * 4 + ["trial"] * (len(found) - 4)
    assert len({task.key for task in found}) == len(found)
    done = set()
    for task in found:
        assert set(task.needs) <= done
        done.add(task.key)


def test_every_comparison_has_its_rows(tasks):
    found = {(t.labels["row"], t.labels["tuning"]) for t in tasks() if t.kind == "trial"}
    assert found == {
        ("member 0", "none"),
        ("member 1", "none"),
        ("best member", "none"),
        ("ensemble", "none"),
        ("continue the best member", "finetune"),
        *((row, tuning) for row in ("average", "transplant") for tuning in ("none", "finetune")),
    }


def test_names_and_texts_are_no_part_of_a_key(tasks):
    other = STUDY.replace("A small study", "Another").replace("  transplant: {}", "  ours: {method: transplant}")
    assert keys(tasks()) == keys(tasks(other, name="other"))


@pytest.mark.parametrize(
    ("old", "new", "changes_members"),
    [
        ("source: digits", "source: mnist", True),
        ("source: digits", "source: digits, samples: 100", True),
        ("width: 16", "width: 17", True),
        ("  epochs: 1", "  epochs: 2", True),
        ("  count: 2", "  count: 2\n  initialisation: same", True),
        ("  transplant: {}", "  transplant: {options: {order: joint}}", False),
        ("  transplant: {}", "  transplant: {recoveries: [refit]}", False),
        ("lr: [0.1, 0.01]", "lr: [0.1, 0.02]", False),
        ("source: digits", "source: digits, test: 50", False),
        ("seeds: 2", "recoveries: [refit]", False),
        ("seeds: 2", "mixing: 0.3", False),
    ],
)
def test_what_determines_a_result_changes_its_key(tasks, old, new, changes_members):
    before, after = tasks(), tasks(STUDY.replace(old, new, 1))
    fine_tuned = {"row": "transplant"} if "transplant" in old or "mixing" in new or "recov" in new else {}
    assert not keys(before, tuning="finetune", seed=0, **fine_tuned) & keys(
        after, tuning="finetune", seed=0, **fine_tuned
    )
    assert (keys(before, member=1, seed=0) == keys(after, member=1, seed=0)) is not changes_members


def test_larger_ensembles_share_the_members_and_rows_of_smaller_ones(tasks):
    two, four = tasks(), tasks(STUDY.replace("count: 2", "count: 4"))
    assert keys(two, kind="member") <= keys(four)
    assert keys(two, row="member 1") == keys(four, row="member 1")
    assert not keys(two, row="ensemble") & keys(four, row="ensemble")


def test_seeds_share_nothing(tasks):
    found = tasks()
    assert not keys(found, seed=0) & keys(found, seed=1)


def test_members_of_one_initialisation(tasks):
    found = tasks(STUDY.replace("  count: 2", "  count: 2\n  initialisation: same"))
    first, second = (task.settings for task in found if task.kind == "member" and task.labels["seed"] == 1)
    assert first["initial_seed"] == second["initial_seed"]
    assert first["seed"] != second["seed"]


def test_copies_are_trained_once(tasks):
    found = tasks(STUDY.replace("  count: 2", "  count: 2\n  copies: pruned"))
    assert sum(task.kind == "member" for task in found) == 2
    assert "average" not in {task.labels.get("row") for task in found}
    fused = next(task for task in found if task.labels.get("row") == "transplant")
    assert [entry.get("pruned") for entry in fused.settings["members"]] == [0.5, None]


def test_a_sequence_spends_its_epochs_from_the_budget(tasks):
    steps = "  tuned between: {method: sequence, steps: [merge, tune, prune], tune_epochs: 3}"
    found = tasks(STUDY.replace("  transplant: {}", steps).replace("epochs: 1, lr", "epochs: 5, lr"))
    trial = next(t for t in found if t.labels.get("row") == "tuned between" and t.labels["tuning"] == "finetune")
    assert trial.settings["tuning"]["epochs"] == 2
    assert trial.settings["start"]["tune_epochs"] == 3


def test_calibration_counts_where_it_is_looked_at(tasks):
    text = STUDY.replace("  transplant: {}", "  transplant: {recoveries: [none, refit]}\n  zip: {}")
    before, after = tasks(text), tasks(text.replace("seeds: 2", "calibration: 7"))
    for labels, same in (
        ({"row": "transplant", "recovery": "none"}, True),
        ({"row": "transplant", "recovery": "refit"}, False),
        ({"row": "zip"}, False),
        ({"row": "best member"}, True),
    ):
        assert (keys(before, seed=0, **labels) == keys(after, seed=0, **labels)) is same


def test_stored_rows_are_found_by_the_hash_of_their_settings():
    for path in (Path(__file__).parents[2] / "results").glob("*/*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert key_of(row["configuration"]) == row["key"]
