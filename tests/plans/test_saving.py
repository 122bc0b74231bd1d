import json
import random
from dataclasses import replace

import pytest
import torch
from tests.attention import attention, sequences
from tests.planting import planted
from torch import nn

import neurograft as ng
from neurograft.axes.maps import NeuronMap, PerUnit
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


def per_unit_plan() -> tuple[FusionPlan, list[nn.Module]]:
    """Heads permuted as wholes, and inside each by itself."""
    net, x = attention("torch", 4), sequences()
    graph = ng.trace(net, x)
    members = [net, planted(net, graph, 1, apart=True)]
    return ng.plan(members, x, "permutation", graph=graph, restarts=1), members


def test_a_plan_with_maps_per_unit_is_saved_and_printed(tmp_path):
    plan, members = per_unit_plan()
    path = tmp_path / "plan.safetensors"
    save_plan(SavedPlan(plan), path)
    found = load_plan(path).plan
    assert str(found) == str(plan)
    assert "attention.in_proj_weight:0.2 in each attention.in_proj_weight:0.1" in str(plan)
    torch.testing.assert_close(ng.apply(found, members).state_dict(), ng.apply(plan, members).state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: PerUnit(m.outer, replace(m.inner, source=m.inner.source + 3)), "leads outside its 3 neurons"),
        (lambda m: PerUnit("stem.weight:0", m.inner), "may not be mapped differently in the units of stem.weight:0"),
        (lambda m: PerUnit("head.weight:0", m.inner), "may not be mapped differently in the units of head.weight:0"),
        (lambda m: PerUnit.permutations(m.outer, m.inner.source[:2]), "has 2 maps for the units of"),
        (lambda m: PerUnit(m.outer, torch.full((4, 3, 3), torch.nan)), "must be a finite matrix"),
        (lambda m: PerUnit(m.outer, replace(m.inner, target=m.inner.target[:, :2])), "index vectors of one length"),
    ],
)
def test_maps_per_unit_that_fit_no_unit_are_refused(tmp_path, change, message):
    plan, _ = per_unit_plan()
    name, maps = next((name, maps) for name, maps in plan.maps.items() if isinstance(maps[1].merge, PerUnit))
    damaged = NeuronMap(*(change(mixing) for mixing in (maps[1].merge, maps[1].unmerge)))
    path = tmp_path / "plan.safetensors"
    save_plan(SavedPlan(replace(plan, maps={**plan.maps, name: (maps[0], damaged)})), path)
    with pytest.raises(CheckpointError, match=message):
        load_plan(path)


def test_groups_that_all_units_share_get_no_maps_per_unit(tmp_path):
    plan, _ = per_unit_plan()
    graph = replace(plan.graphs[0], groups=tuple(replace(group, per_unit=False) for group in plan.graphs[0]))
    path = tmp_path / "plan.safetensors"
    save_plan(SavedPlan(replace(plan, graphs=(graph, graph))), path)
    with pytest.raises(CheckpointError, match="may not be mapped differently in the units of"):
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
