"""Damaged safetensors give right tensors or a CheckpointError, as the format's own library judges them."""

import json
import random
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save
from tests.fuzz.damage import damaged_bytes, damaged_tree, json_text, watched

from neurograft.checkpoints import open_checkpoint, provenance_of
from neurograft.errors import CheckpointError

TENSORS = {
    "embed.weight": torch.arange(28.0).view(7, 4).bfloat16(),
    "fc.weight": torch.arange(12.0).view(4, 3),
    "fc.bias": torch.arange(3.0).double(),
    "empty": torch.zeros(0, 5),
    "steps": torch.tensor(3),
}


@pytest.fixture
def whole() -> bytes:
    return save(TENSORS, {"format": "pt", "neurograft": "{}"})


def reader(path):
    """Reads bytes as a file, and compares with the format's own library where both take it."""

    def read(data: bytes) -> None:
        path.unlink(missing_ok=True)  # some file systems flush a file that is written over, which takes long
        path.write_bytes(data)
        opened = open_checkpoint(path)
        provenance_of(path)
        found = {name: tensor.clone() for name, tensor in opened.tensors.items()}
        try:
            expected = load(data)
        except (SafetensorError, KeyError, AttributeError):
            return  # dtypes that it names and PyTorch lacks
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
            same = found[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8)
            assert not tensor.numel() or torch.equal(*same)

    return read


def test_damaged_bytes(tmp_path, whole):
    chance = random.Random(0)
    outcome = watched((damaged_bytes(whole, chance) for _ in range(3000)), reader(tmp_path / "a.safetensors"))
    assert outcome.read > 100
    assert len(outcome.refused) > 1000
    assert all(str(tmp_path / "a.safetensors") in message for message in outcome.refused)


def test_damaged_headers(tmp_path, whole):
    chance, length = random.Random(1), int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]

    def inputs():
        for _ in range(3000):
            text = json_text(damaged_tree(header, chance))
            yield struct.pack("<Q", len(text)) + text + data

    outcome = watched(inputs(), reader(tmp_path / "a.safetensors"))
    assert len(outcome.refused) > 2000


NUMBERS = st.integers() | st.sampled_from([0, 1, 4, 8, 2**63 - 1, 2**63, 2**64])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "I64", "F4", ""]) | st.integers(),
        "shape": st.lists(NUMBERS, max_size=3) | st.none(),
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2) | st.text(max_size=2),
    }
)


@given(st.dictionaries(st.text(max_size=5), ENTRIES, max_size=3), st.binary(max_size=32))
@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_headers_that_nobody_wrote(tmp_path, header, data):
    text = json_text(header)
    watched([struct.pack("<Q", len(text)) + text + data], reader(tmp_path / "a.safetensors"))


def test_claims_of_enormous_sizes(tmp_path):
    path = tmp_path / "a.safetensors"
    for size in (2**31, 2**40, 2**58):
        text = json_text({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
        path.write_bytes(struct.pack("<Q", len(text)) + text + b"x")
        with pytest.raises(CheckpointError, match=r"is truncated: a ends at byte \d+, but the file has"):
            open_checkpoint(path)
