"""A damaged index of shards leads to right tensors, to a CheckpointError, and never out of its folder."""

import json
import random

import torch
from safetensors.torch import save_file
from tests.fuzz.damage import damaged_bytes, damaged_tree, json_text, watched

from neurograft.checkpoints import open_checkpoint


def folder_of(place):
    folder = place / "model"
    folder.mkdir()
    placed = {}
    for i in range(3):
        tensors = {f"layer.{i}.{name}": torch.full((2,), float(i)) for name in ("weight", "bias")}
        save_file(tensors, folder / f"{i}.safetensors")
        placed |= dict.fromkeys(tensors, f"{i}.safetensors")
    save_file({"layer.0.weight": torch.full((2,), -1.0)}, place / "secret.safetensors")
    (folder / "link.safetensors").symlink_to("../secret.safetensors")
    index = {"metadata": {"total_size": 48}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder, index


def reader(folder):
    def read(data: bytes) -> None:
        (folder / "model.safetensors.index.json").write_bytes(data)
        for name, tensor in open_checkpoint(folder).tensors.items():
            assert tensor.tolist() == [float(name.split(".")[1])] * 2

    return read


def test_damaged_indices(tmp_path):
    folder, index = folder_of(tmp_path)
    chance, whole = random.Random(0), json.dumps(index).encode()
    outcome = watched((damaged_bytes(whole, chance) for _ in range(1200)), reader(folder))
    assert outcome.read > 20
    assert len(outcome.refused) > 600
    outcome = watched((json_text(damaged_tree(index, chance)) for _ in range(1200)), reader(folder))
    assert len(outcome.refused) > 500


def test_names_of_files_that_lead_elsewhere(tmp_path):
    folder, index = folder_of(tmp_path)
    chance = random.Random(1)
    parts = [
        "..",
        ".",
        "/",
        "\\",
        "model",
        "secret.safetensors",
        "link.safetensors",
        "0.safetensors",
        "\0",
        "~",
        "C:",
        "",
    ]

    def inputs():
        for _ in range(800):
            name = chance.choice(["/", "", "\\"]).join(chance.choices(parts, k=chance.randrange(1, 5)))
            yield json_text({"weight_map": index["weight_map"] | {"layer.0.weight": name}})

    outcome = watched(inputs(), reader(folder))
    assert any("leads outside its folder" in message for message in outcome.refused)
