"""A damaged training checkpoint never goes on: it is refused with a CheckpointError, or it is whole."""

import io
import random
import warnings
import zipfile

import pytest
import torch
from tests.fuzz.damage import damaged_bytes, odd_value, watched
from torch import nn

import neurograft as ng
from neurograft.training.resuming import read

BATCHES = [(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))] * 2
SETTINGS = {"epochs": 2, "lr": 0.1, "validation": BATCHES, "schedule": "cosine"}


def trained(path, **more) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        return ng.finetune(network, BATCHES, **SETTINGS, **more, checkpoint=path)


@pytest.fixture(params=["sgd", "adam"])
def optimizer(request):
    return None if request.param == "sgd" else lambda parameters: torch.optim.Adam(parameters, lr=0.01)


def test_damaged_bytes(tmp_path):
    path, chance = tmp_path / "training.pt", random.Random(0)
    trained(path)
    whole = path.read_bytes()
    identity = torch.load(io.BytesIO(whole), weights_only=True)["identity"]
    expected = torch.load(io.BytesIO(whole), weights_only=True)["content"]["network"]

    def go_on(data: bytes) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read(path, identity)
        torch.testing.assert_close(found["network"], expected, rtol=0, atol=0)

    outcome = watched((damaged_bytes(whole, chance) for _ in range(1500)), go_on)
    assert len(outcome.refused) > 1000
    outcome = watched((b"", b"PK\x03\x04", b"\x80\x02}.", whole[:-1]), go_on)
    assert outcome.read == 0


def places(value):
    """Every container among what a training keeps, with each of its keys."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def test_entries_that_are_others(tmp_path, optimizer):
    path, chance = tmp_path / "training.pt", random.Random(1)
    expected = trained(path, optimizer=optimizer).state_dict()
    whole = path.read_bytes()

    def damaged() -> bytes:
        content = torch.load(io.BytesIO(whole), weights_only=True)
        holder, key = chance.choice([place for place in places(content) if place[0] is not content])
        kind = chance.randrange(4)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            holder[key] = torch.ones(chance.randrange(4), 2)
        else:
            holder[key] = odd_value(chance)
        out = io.BytesIO()
        torch.save(content, out)
        return out.getvalue()

    def go_on(data: bytes) -> None:
        path.write_bytes(data)
        trained(path, optimizer=optimizer)

    outcome = watched((damaged() for _ in range(250)), go_on)
    assert len(outcome.refused) > 100
    path.write_bytes(whole)
    torch.testing.assert_close(trained(path, optimizer=optimizer).state_dict(), expected, rtol=0, atol=0)


def test_numbers_that_were_changed_are_noticed(tmp_path):
    path = tmp_path / "training.pt"
    trained(path)
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        record = max((r for r in archive.infolist() if "/data/" in r.filename), key=lambda r: r.file_size)
    whole[record.header_offset + 64 + record.file_size // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ng.errors.CheckpointError, match=r"its record \S+ is damaged; delete it to start anew"):
        trained(path)
