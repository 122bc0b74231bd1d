"""Damaged files of torch.save give the tensors that PyTorch finds in them, or a CheckpointError; no code runs."""

import io
import pickletools
import random
import struct
import warnings
import zipfile

import pytest
import torch
from tests.fuzz.damage import damaged_bytes, watched
from torch import nn

from neurograft.checkpoints import load_into, open_checkpoint
from neurograft.checkpoints.pickles import read_pickle
from neurograft.errors import CheckpointError

STATE = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict()
CONTENT = {"model": STATE, "ema": STATE, "epoch": 3, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}}


def saved(content, **how) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, **how)
    return out.getvalue()


def reader(path):
    """Reads bytes as a file, and compares with PyTorch where both take it."""

    def read(data: bytes) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        found = {name: tensor.clone() for name, tensor in open_checkpoint(path).tensors.items()}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = torch.load(io.BytesIO(data), weights_only=True)
        except Exception:
            return
        for name, tensor in flat(expected):
            if name in found:
                same = found[name].flatten().contiguous(), tensor.detach().flatten().contiguous()
                assert found[name].dtype == tensor.dtype
                assert not tensor.numel() or torch.equal(*(t.view(torch.uint8) for t in same)), name

    return read


def flat(value, name=""):
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}/{key}" if name else str(key))


@pytest.mark.parametrize("archive", [True, False])
def test_damaged_bytes(tmp_path, archive):
    chance, whole = random.Random(0), saved(CONTENT, _use_new_zipfile_serialization=archive)
    outcome = watched((damaged_bytes(whole, chance) for _ in range(1500)), reader(tmp_path / "a.pt"))
    assert outcome.read > 50
    assert len(outcome.refused) > 300
    assert all(str(tmp_path / "a.pt") in message for message in outcome.refused)


def records(whole: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(content: dict[str, bytes], chance: random.Random) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in content.items():
            method = zipfile.ZIP_DEFLATED if chance.random() < 0.05 else zipfile.ZIP_STORED
            archive.writestr(name, data, method)
    return out.getvalue()


def test_archives_whose_records_are_damaged(tmp_path):
    chance, content = random.Random(1), records(saved(CONTENT))

    def inputs():
        for _ in range(1500):
            changed = dict(content)
            name, other = chance.choice(list(changed)), chance.choice(list(changed))
            kind = chance.randrange(5)
            if kind <= 1 and changed[name]:
                changed[name] = damaged_bytes(changed[name], chance)
            elif kind == 2:
                changed[name], changed[other] = changed[other], changed[name]
            elif kind == 3:
                del changed[name]
            else:
                changed[f"archive/{chance.randrange(3)}/../data.pkl"] = changed.pop(name)
            yield archive_of(changed, chance)

    outcome = watched(inputs(), reader(tmp_path / "a.pt"))
    assert len(outcome.refused) > 500


def test_pickles_whose_operations_are_damaged(tmp_path):
    chance, content = random.Random(2), records(saved(CONTENT))
    pickled = content["archive/data.pkl"]
    starts = [position for _, _, position in pickletools.genops(pickled)]
    codes = [operation.code.encode("latin-1") for operation in pickletools.opcodes]

    def inputs():
        for _ in range(2000):
            changed = pickled
            for _ in range(chance.randrange(1, 4)):
                at = chance.choice(starts)
                end = chance.choice([s for s in starts if s >= at][:5])
                argument = chance.choice([b"", struct.pack("<I", 2**31), struct.pack("<Q", 2**62), b"\xff\n", b"0\n"])
                changed = changed[:at] + chance.choice([b"", chance.choice(codes) + argument]) + changed[end:]
            yield archive_of(content | {"archive/data.pkl": changed}, chance)

    outcome = watched(inputs(), reader(tmp_path / "a.pt"))
    assert len(outcome.refused) > 1000


def test_pickles_by_chance():
    chance = random.Random(3)
    codes = [operation.code.encode("latin-1") for operation in pickletools.opcodes if operation.arg is None]

    def read(data: bytes) -> None:
        try:
            read_pickle(io.BytesIO(data))
        except ValueError as error:
            raise CheckpointError(str(error)) from error

    parts = [*codes, b"K\x01", b"X\x01\x00\x00\x00a", b"c__builtin__\neval\n", b"h\x00", b"q\x00", b"r\xff\xff\xff\xff"]
    outcome = watched((b"".join(chance.choices(parts, k=chance.randrange(30))) + b"." for _ in range(5000)), read)
    assert outcome.read > 20


def test_networks_are_found_or_refused(tmp_path):
    chance, whole, path = random.Random(4), saved(CONTENT), tmp_path / "a.pt"

    def read(data: bytes) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_into(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), path)

    outcome = watched((damaged_bytes(whole, chance) for _ in range(500)), read)
    assert outcome.read > 20
