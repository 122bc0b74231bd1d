import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from neurograft.checkpoints import load_into, open_checkpoint, provenance_of, sha256, write_checkpoint
from neurograft.errors import CheckpointError


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def same(model, other):
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_round_trip_with_provenance(tmp_path):
    model, path = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), tmp_path / "a.safetensors"
    write_checkpoint(model, path, {"method": "average", "options": {"x": [1]}})
    same(load_into(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), path), model)
    assert provenance_of(path) == {"method": "average", "options": {"x": [1]}}
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_same_network_same_bytes(tmp_path):
    model = nn.Linear(3, 4)
    for name in "ab":
        write_checkpoint(model, tmp_path / f"{name}.safetensors", {"seed": 1})
    assert sha256(tmp_path / "a.safetensors") == sha256(tmp_path / "b.safetensors")


def test_tied_tensor_is_written_once_and_stays_tied(tmp_path):
    model, path = Tied(), tmp_path / "tied.safetensors"
    write_checkpoint(model, path, {})
    assert list(load_file(path)) == ["embed.weight"]
    loaded = load_into(Tied(), path)
    same(loaded, model)
    assert loaded.head.weight is loaded.embed.weight


def test_dtype_of_the_checkpoint_is_kept(tmp_path):
    path = tmp_path / "half.safetensors"
    write_checkpoint(Tied().to(torch.bfloat16), path, {})
    loaded = load_into(Tied(), path)
    assert loaded.head.weight.dtype == torch.bfloat16
    assert loaded.head.weight is loaded.embed.weight


def test_file_of_another_program_has_no_provenance(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_file({"weight": torch.zeros(1)}, path)
    assert provenance_of(path) is None


def test_pickled_tensors(tmp_path):
    model, path = nn.Linear(3, 4), tmp_path / "a.pt"
    torch.save(model.state_dict(), path)
    same(load_into(nn.Linear(3, 4), path), model)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_truncated(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "pt":
        torch.save(nn.Linear(30, 40).state_dict(), path)
    else:
        write_checkpoint(nn.Linear(30, 40), path, {})
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=f"a.{suffix}.*truncated"):
        open_checkpoint(path)


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing.pt: no such file"):
        open_checkpoint(tmp_path / "nothing.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        open_checkpoint(tmp_path)
    (tmp_path / "a.onnx").touch()
    with pytest.raises(CheckpointError, match=r"must end in .safetensors, .pt"):
        open_checkpoint(tmp_path / "a.onnx")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="list.pt holds no tensors; torch.save.model.state_dict"):
        open_checkpoint(tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "number.pt")
    with pytest.raises(CheckpointError, match="number.pt holds no tensors"):
        open_checkpoint(tmp_path / "number.pt")


def test_checkpoint_of_another_network(tmp_path):
    path = tmp_path / "a.safetensors"
    write_checkpoint(nn.Linear(3, 4), path, {})
    with pytest.raises(CheckpointError, match=r"weight has shape \(4, 3\), but Linear expects \(4, 5\)"):
        load_into(nn.Linear(5, 4), path)
    with pytest.raises(CheckpointError, match="holds 'bias' that Linear does not have"):
        load_into(nn.Linear(3, 4, bias=False), path)
    with pytest.raises(CheckpointError, match="lacks '0.weight' and 1 more tensor that Sequential has"):
        load_into(nn.Sequential(nn.Linear(3, 4)), path)


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")

    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(CheckpointError, match=r"a.safetensors could not be written: No space left"):
        write_checkpoint(nn.Linear(3, 4), path, {})
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_bytes() == b"old"


def test_metadata_are_json(tmp_path):
    path = tmp_path / "a.safetensors"
    write_checkpoint(nn.Linear(1, 1), path, {"b": 1, "a": 2})
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["neurograft"]) == {"a": 2, "b": 1}
        assert file.metadata()["format"] == "pt"
