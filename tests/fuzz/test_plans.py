"""Damaged plans are refused with a CheckpointError, or are plans that are applied or refused in words."""

import json
import random
import struct
import warnings

import pytest
import torch
from tests.fuzz.damage import damaged_bytes, damaged_tree, json_text, watched
from torch import nn

import neurograft as ng
from neurograft.checkpoints import open_checkpoint
from neurograft.errors import CheckpointError
from neurograft.plans.saving import KEY, SavedPlan, load_plan, save_plan

INPUTS = torch.zeros(2, 1, 6, 6)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3)
    ).eval()


@pytest.fixture(scope="module")
def networks() -> list[nn.Module]:
    return [network(seed) for seed in range(2)]


@pytest.fixture(params=["transplant", "optimal_transport", "average"])
def saved(request, tmp_path, networks) -> bytes:
    plan = ng.plan(networks, INPUTS, request.param)
    save_plan(SavedPlan(plan, "package:net", ("0.*",), ({"a": "0" * 64},) * 2), tmp_path / "plan.safetensors")
    return (tmp_path / "plan.safetensors").read_bytes()


def parts(whole: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(whole[:8], "little")
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def with_content(header: dict, data: bytes, content: object) -> bytes:
    text = json_text(header | {"__metadata__": {KEY: json.dumps(content)}})
    return struct.pack("<Q", len(text)) + text + data


def reader(path, networks):
    def read(data: bytes) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        plan = load_plan(path).plan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fused = ng.apply(plan, networks)
        assert all(torch.isfinite(parameter).all() for parameter in fused.parameters())
        assert str(plan)

    return read


def test_damaged_fields(tmp_path, saved, networks):
    chance, (header, data) = random.Random(0), parts(saved)
    content = json.loads(header["__metadata__"][KEY])
    inputs = (with_content(header, data, damaged_tree(content, chance)) for _ in range(300))
    outcome = watched(inputs, reader(tmp_path / "plan.safetensors", networks))
    assert len(outcome.refused) > 200


def test_damaged_bytes(tmp_path, saved, networks):
    chance = random.Random(1)
    inputs = (damaged_bytes(saved, chance) for _ in range(500))
    outcome = watched(inputs, reader(tmp_path / "plan.safetensors", networks))
    assert len(outcome.refused) > 200


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([-1, 5], r"are no weights of 2 members"),
        ([0.7, 0.7], r"do not sum to 1"),
        ([1e308, 1e308], r"are no weights of 2 members"),
        ([0.5], r"are no weights of 2 members"),
        ([float("nan"), 1], r"are no weights of 2 members"),
        (["0.5", 0.5], r"FusionPlan.weights is no tuple"),
    ],
)
def test_weights_that_no_plan_has(tmp_path, networks, weights, message):
    path = tmp_path / "plan.safetensors"
    save_plan(SavedPlan(ng.plan(networks, INPUTS, "average")), path)
    header, data = parts(path.read_bytes())
    content = json.loads(header["__metadata__"][KEY])
    content["plan"]["weights"] = weights
    path.write_bytes(with_content(header, data, content))
    with pytest.raises(CheckpointError, match=rf"is no plan that this neurograft can read: .*{message}"):
        load_plan(path)


def test_maps_that_lead_elsewhere(tmp_path, networks):
    path = tmp_path / "plan.safetensors"
    save_plan(SavedPlan(ng.plan(networks, INPUTS, "transplant")), path)
    whole = path.read_bytes()
    tensors = open_checkpoint(path).tensors
    index = next(entry for entry in tensors.entries.values() if entry.dtype == torch.int64 and entry.nbytes >= 16)
    for value in (-1, 1 << 40):
        path.write_bytes(whole[: index.start] + struct.pack("<q", value) + whole[index.start + 8 :])
        with pytest.raises(CheckpointError, match=r"leads outside its \d+ neurons"):
            load_plan(path)
