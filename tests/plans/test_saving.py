import json
import random

import pytest
import torch
from torch import nn

import neurograft as ng
from neurograft.checkpoints.writing import write_tensors
from neurograft.errors import CheckpointError, PlanError
from neurograft.plans.plan import FusionPlan
from neurograft.plans.saving import KEY, VERSION, SavedPlan, load_plan, save_plan
from neurograft.tracing.graph import NeuronGraph


def small_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))


@pytest.fixture
def nets() -> list[nn.Module]:
    return [small_net().eval() for _ in range(3)]


INPUTS = torch.zeros(1, 3, 4, 4)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("average", {}),
        ("transplant", {"order": "joint"}),
        ("transplant", {"ratio": 0.5, "quota": [0.5, 0.25, 0.25]}),
        ("optimal_transport", {}),
        ("optimal_transport", {"reg": 0.1}),
        ("permutation", {}),
    ],
    ids=lambda value: str(value),
)
def test_a_loaded_plan_is_the_saved_one(tmp_path, nets, method, options):
    plan = ng.plan(nets, INPUTS, method, seed=3, weights=[1, 2, 1] if "quota" not in options else None, **options)
    path = tmp_path / "plan.safetensors"
    save_plan(SavedPlan(plan, "module:factory", ("0.*",), ({"a": "1"}, {"b": "2"}, {})), path)
    saved = load_plan(path)
    assert (saved.network, saved.fixed, saved.hashes) == ("module:factory", ("0.*",), ({"a": "1"}, {"b": "2"}, {}))
    assert saved.plan.graphs == plan.graphs
    assert saved.plan.graphs[0] is saved.plan.graphs[2]
    assert str(saved.plan) == str(plan)
    assert (saved.plan.options, saved.plan.seed, saved.plan.details) == (plan.options, 3, plan.details)
    expected, found = ng.apply(plan, nets), ng.apply(saved.plan, nets)
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_what_cannot_be_saved(tmp_path):
    plan = FusionPlan("x", (NeuronGraph((), {}),), {}, (1.0,), details={"model": nn.Linear(1, 1)})
    with pytest.raises(PlanError, match="a plan with a Linear in its options or details cannot be saved"):
        save_plan(SavedPlan(plan), tmp_path / "plan.safetensors")
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_plans(tmp_path):
    write_tensors({"a": torch.zeros(2)}, tmp_path / "a.safetensors", {})
    with pytest.raises(CheckpointError, match="is a checkpoint, not a plan"):
        load_plan(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a saved plan ends in .safetensors"):
        load_plan(tmp_path / "a.json")
    for text in ("{}", "[]", "null", f'{{"version":{VERSION}}}', "no JSON", "[" * 100_000):
        write_tensors({"a": torch.zeros(2)}, tmp_path / "b.safetensors", {KEY: text})
        with pytest.raises(CheckpointError, match="is no plan that this neurograft can read"):
            load_plan(tmp_path / "b.safetensors")
    write_tensors({"a": torch.zeros(2)}, tmp_path / "c.safetensors", {KEY: '{"version":7}'})
    with pytest.raises(CheckpointError, match=f"is a plan of version 7; this neurograft reads {VERSION}"):
        load_plan(tmp_path / "c.safetensors")


def rewritten(path, change):
    """Load a plan's file, change its tensors or its JSON, and write it back."""
    from neurograft.checkpoints import open_checkpoint

    opened = open_checkpoint(path)
    tensors = {name: tensor.clone() for name, tensor in opened.tensors.items()}
    content = json.loads(opened.metadata[KEY])
    change(tensors, content)
    write_tensors(tensors, path, {KEY: json.dumps(content)})


def test_maps_that_lead_outside_are_refused(tmp_path, nets):
    path = tmp_path / "plan.safetensors"
    save_plan(SavedPlan(ng.plan(nets, INPUTS)), path)

    def far(tensors, content):
        next(iter(tensors.values()))[0] = 99

    rewritten(path, far)
    with pytest.raises(CheckpointError, match="leads outside its 6 neurons"):
        load_plan(path)


def test_damaged_plans_are_refused_or_still_whole(tmp_path, nets):
    """Values of the JSON are swapped at random: loading either gives a plan or a CheckpointError, nothing else."""
    original = tmp_path / "plan.safetensors"
    save_plan(SavedPlan(ng.plan(nets[:2], INPUTS)), original)
    stored, generator, refused = original.read_bytes(), random.Random(0), 0

    def places(value, found):
        if isinstance(value, (list, dict)):
            for key in range(len(value)) if isinstance(value, list) else list(value):
                found.append((value, key))
                places(value[key], found)
        return found

    def swap(tensors, content):
        where, key = generator.choice(places(content, []))
        where[key] = generator.choice([None, -1, 2**70, "x", [], {}, {"is": "Pairs"}, {"tensor": "map0"}, True, 1e400])

    for _ in range(150):
        original.write_bytes(stored)
        rewritten(original, swap)
        try:
            load_plan(original)
        except CheckpointError:
            refused += 1
    assert refused > 30
