"""Damaged files of statistics are refused with a CheckpointError, or are statistics that can be used."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.fuzz.damage import damaged_bytes, damaged_tree, json_text, watched
from torch import nn

import neurograft as ng
from neurograft.member_statistics.drawing import drawn_batches
from neurograft.member_statistics.statistics import KEY


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("statistics") / "own.safetensors"
    ng.statistics(nn.Flatten(), [torch.randn(20, 1, 3, 3)]).save(path)
    return path.read_bytes()


def reader(path: Path) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        path.write_bytes(data)
        own = ng.Statistics.load(path)
        assert all(len(batch) for batch in drawn_batches([own], samples=3))

    return read


def test_damaged_fields(saved: bytes, tmp_path: Path) -> None:
    chance, length = random.Random(0), int.from_bytes(saved[:8], "little")
    header = json.loads(saved[8 : 8 + length])
    content = json.loads(header["__metadata__"][KEY])

    def damaged() -> bytes:
        text = json_text(header | {"__metadata__": {KEY: json.dumps(damaged_tree(content, chance))}})
        return struct.pack("<Q", len(text)) + text + saved[8 + length :]

    outcome = watched((damaged() for _ in range(300)), reader(tmp_path / "own.safetensors"))
    assert len(outcome.refused) > 150


def test_damaged_bytes(saved: bytes, tmp_path: Path) -> None:
    chance = random.Random(1)
    outcome = watched((damaged_bytes(saved, chance) for _ in range(300)), reader(tmp_path / "own.safetensors"))
    assert len(outcome.refused) > 50
