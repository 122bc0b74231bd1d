"""Studies of members that each see other images: who sees which, and what rows read beside the members."""

import pytest
import torch
from tests.experiments.stores import run_study
from tests.experiments.test_study_file import STUDY

import neurograft as ng
from neurograft.checkpoints.loading import load_into
from neurograft.errors import StudyError
from neurograft_experiments.data import Images, Split, load_images
from neurograft_experiments.networks import make_network
from neurograft_experiments.running import part_of
from neurograft_experiments.study_file import load_study
from neurograft_experiments.trials import tasks_of
from neurograft_experiments.unlabelled import unlabelled

CLIENTS = (
    STUDY.replace("  count: 2", "  count: 3\n  split: {kind: labels, reserve: 100}")
    .replace("seeds: 2", "calibration: 100\nseeds: 2")
    .replace(
        "  transplant: {}",
        """  FedAvg: {method: average, weights: samples, tunings: [none]}
  all: {method: pooled, tunings: [none]}
  votes: {method: ensemble, options: {vote: majority}, tunings: [none]}
  transplant: {recoveries: [refit], tunings: [none]}""",
    )
)


@pytest.fixture
def study(tmp_path):
    def made(text=CLIENTS):
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return load_study(path)

    return made


def members_of(row, folder, digits):
    networks = [make_network(entry["network"], digits.shape, 10) for entry in row["configuration"]["members"]]
    for network, entry in zip(networks, row["configuration"]["members"], strict=True):
        load_into(network, folder / "members" / f"{entry['key']}.safetensors")
    return networks


def test_members_parts_are_disjoint_and_reserved_images_are_nobodys(study):
    train = load_images("digits").train
    tasks = [task for task in tasks_of(study(), "smoke", [0]) if task.kind == "member"]
    parts = [part_of(train, task.settings["part"]) for task in tasks]
    *own, pooled = ([image.numpy().tobytes() for image in part.pixels] for part in parts)
    assert sum(map(len, own)) == len(pooled) == 300
    assert sorted(image for part in own for image in part) == sorted(pooled)
    assert pooled == [image.numpy().tobytes() for image in train.pixels[100:]]


def test_rows_are_what_the_public_functions_give(study, tmp_path):
    rows = {row["row"]: row for row in run_study(study(), "smoke", tmp_path, seeds=[0]) if row["tuning"] == "none"}
    digits = load_images("digits")
    networks = members_of(rows["FedAvg"], tmp_path, digits)
    sizes = [len(part_of(digits.train, entry["part"])) for entry in rows["FedAvg"]["configuration"]["members"]]
    inputs = digits.train.examples(100)
    made = {
        "FedAvg": ng.fuse(networks, inputs[:2], "average", weights=sizes, recover=None),
        "votes": ng.Ensemble(networks, vote="majority"),
        "transplant": ng.fuse(networks, inputs[:2], "transplant", calibration=[inputs]),
    }
    assert len(set(sizes)) > 1
    for row, network in made.items():
        assert rows[row]["test"]["accuracy"] == ng.evaluate(network, digits.test.batches()).accuracy
    assert len(rows["all"]["configuration"]["members"]) == 1
    assert all("part" not in entry for entry in rows["transplant"]["configuration"]["members"])


def test_distilling_on_unlabelled_inputs_is_distilling_from_the_members(study, tmp_path):
    text = CLIENTS.replace("tuning:", "tuning:\n  distill: {epochs: 3, lr: 0.5, batch: 20, inputs: calibration}")
    text = text.replace("  transplant: {recoveries", "  untrained: {tunings: [distill]}\n  transplant: {recoveries")
    (row,) = [row for row in run_study(study(text), "smoke", tmp_path, seeds=[0]) if row["row"] == "untrained"]
    digits = load_images("digits")
    torch.manual_seed(0)
    student = make_network(row["configuration"]["network"], digits.shape, 10)
    split = Split(digits.train.examples(100), torch.zeros(100, dtype=torch.long))
    found = ng.distill(
        student,
        members_of(row, tmp_path, digits),
        split.batches(20, shuffle=True),
        epochs=3,
        lr=0.5,
        momentum=0.9,
        validation=digits.validation.batches(),
        seed=0,
    )
    assert row["validation"]["accuracy"] == ng.evaluate(found, digits.validation.batches()).accuracy
    assert len(set(row["curve"])) > 1


@pytest.mark.parametrize("kind", ["training", "crops", "noise", "digits"])
def test_unlabelled_inputs_have_the_shape_of_images_and_are_the_same_in_every_trial(kind):
    digits = load_images("digits")

    others = torch.rand(50, 3, 16, 16)

    class Cache:
        def images(self, settings):
            assert settings["source"] == "digits"
            return Images("other", 10, Split(others, torch.zeros(50).long()), *(digits.test,) * 2)

    settings = {"calibration": 40, "inputs": kind, "data": {"source": "mnist"}}
    first, second = (torch.cat(list(unlabelled(settings, digits, Cache()))) for _ in range(2))
    assert first.shape == (40, 1, 8, 8)
    assert torch.equal(first, second)
    if kind == "training":
        torch.testing.assert_close(first, digits.train.examples(40))


@pytest.mark.parametrize(
    ("options", "message"),
    [("{vote: loudest}", "unknown vote 'loudest'"), ("{votes: majority}", "takes the option vote, got votes")],
)
def test_a_vote_that_does_not_exist_is_refused(study, options, message):
    with pytest.raises(StudyError, match=message):
        study(CLIENTS.replace("{vote: majority}", options))
