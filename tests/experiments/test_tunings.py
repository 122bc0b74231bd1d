import pytest
import torch
from torch import nn

import neurograft as ng
from neurograft_experiments.data import load_images
from neurograft_experiments.networks import make_network
from neurograft_experiments.running import part_of
from neurograft_experiments.study import Distilling
from neurograft_experiments.tunings import tuned

SETTINGS = Distilling(epochs=2, batch=64, lr=[0.05]).model_dump(mode="json") | {"kind": "distill", "augment": False}


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


@pytest.fixture
def networks(digits):
    return [make_network({"name": "mlp", "width": 16, "depth": 1}, digits.shape, digits.classes) for _ in range(3)]


def test_teachers_that_are_asked_once_teach_the_same(digits, networks):
    student, *teachers = networks
    ours = tuned(student, SETTINGS, digits, teachers, seed=3, tick=lambda _: None)
    history = []
    theirs = ng.distill(
        student,
        teachers,
        digits.train.batches(64, shuffle=True),
        epochs=2,
        lr=0.05,
        validation=digits.validation.batches(),
        seed=3,
        on_epoch=history.append,
    )
    assert list(ours.curve) == pytest.approx([epoch.validation.accuracy for epoch in history], abs=0.01)
    for one, other in zip(ours.network.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_labels_are_taught_beside_the_teachers(digits, networks):
    student, *teachers = networks
    soft = tuned(student, SETTINGS, digits, teachers, seed=0, tick=lambda _: None)
    both = tuned(student, SETTINGS | {"hard": 1.0}, digits, teachers, seed=0, tick=lambda _: None)
    assert both.curve[-1] > soft.curve[-1]  # these teachers know nothing


def test_one_member_may_teach(digits, networks):
    student, *teachers = networks
    first = tuned(student, SETTINGS | {"teachers": 0}, digits, teachers, seed=0, tick=lambda _: None)
    alone = tuned(student, SETTINGS, digits, teachers[:1], seed=0, tick=lambda _: None)
    assert first.curve == alone.curve


def test_validation_chooses_step_size_and_epoch(digits, networks):
    ticks = []
    settings = {**SETTINGS, "kind": "finetune", "lr": [0.1, 1e-9], "epochs": 3}
    found = tuned(networks[0], settings, digits, [], seed=0, tick=ticks.append)
    assert len(ticks) == 6
    assert found.lr == 0.1
    assert found.validation["accuracy"] == max(found.curve) == found.tried[0.1]
    assert found.tried[0.1] > found.tried[1e-9]
    assert ng.evaluate(found.network, digits.validation.batches()).accuracy == found.validation["accuracy"]
    assert isinstance(found.network, nn.Module)


def test_members_see_their_parts(digits):
    skilled = [
        part_of(digits.train, {"kind": "skill", "skill": 4, "share": 0.1, "number": n, "seed": 0}) for n in (0, 1)
    ]
    assert (skilled[0].labels == 4).sum() == (digits.train.labels == 4).sum() > 0
    assert not (skilled[1].labels == 4).any()
    assert sum(map(len, skilled)) == len(digits.train)
    thirds = [part_of(digits.train, {"kind": "parts", "of": 3, "number": n, "seed": 0}) for n in range(3)]
    assert sorted(map(len, thirds)) == [133, 133, 134]
