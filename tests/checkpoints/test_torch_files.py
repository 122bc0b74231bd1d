"""Files of torch.save hold the numbers that torch.load finds in them, or are refused; nothing of them ever runs."""

import argparse
import io
import os
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import pytest
import torch
from torch import nn

from neurograft.checkpoints import open_checkpoint
from neurograft.checkpoints.pickles import read_pickle
from neurograft.errors import CheckpointError


def kinds() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 4, generator=generator)
    return {
        "plain": base,
        "shares its storage": base,
        "transposed": base.t(),
        "rows": base[1:4],
        "column": base[:, 1],
        "repeated": torch.ones(1).expand(5, 3),
        "permuted": torch.randn(2, 3, 4, generator=generator).permute(2, 0, 1),
        "parameter": nn.Parameter(base.clone()),
        "buffer": nn.Buffer(base.clone()),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "truth": torch.tensor([True, False]),
        **{str(d): base.to(d) for d in (torch.float64, torch.float16, torch.bfloat16, torch.complex64)},
        "complex128": base.to(torch.complex128),
        **{str(d): torch.arange(5).to(d) for d in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)},
    }


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().clone().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def same(found, expected) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert bytes_of(found[name]) == bytes_of(tensor), name


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_are_those_of_torch(tmp_path, archive, protocol):
    path, saved = tmp_path / "ä.pt", OrderedDict(kinds())
    torch.save(saved, path, _use_new_zipfile_serialization=archive, pickle_protocol=protocol)
    same(open_checkpoint(path).tensors, saved)
    if protocol == 2:
        same(open_checkpoint(path).tensors, torch.load(path, weights_only=True))


def test_newer_dtypes(tmp_path):
    saved = {str(d): torch.arange(8).to(d) for d in (torch.uint16, torch.uint64, torch.float8_e4m3fn)}
    torch.save(saved, tmp_path / "a.pt")
    same(open_checkpoint(tmp_path / "a.pt").tensors, saved)


def records(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(path: Path, content: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def saved(tmp_path) -> Path:
    torch.save(nn.Linear(30, 40).state_dict(), tmp_path / "saved.pt")
    return tmp_path / "saved.pt"


def test_numbers_with_their_bytes_swapped(tmp_path, saved):
    content = records(saved)
    swapped = {
        name: struct.pack(f">{len(data) // 4}f", *struct.unpack(f"<{len(data) // 4}f", data))
        for name, data in content.items()
        if "/data/" in name
    }
    path = archive_of(tmp_path / "big.pt", content | swapped | {"saved/byteorder": b"big"})
    same(open_checkpoint(path).tensors, torch.load(path, weights_only=True))
    same(open_checkpoint(path).tensors, torch.load(saved, weights_only=True))


def test_compressed_archives_are_refused(tmp_path, saved):
    path = archive_of(tmp_path / "deflated.pt", records(saved), zipfile.ZIP_DEFLATED)
    with pytest.raises(
        CheckpointError, match=r"deflated.pt .*record 'saved/\S+' is compressed .*torch.load and save it"
    ):
        open_checkpoint(path)


@pytest.mark.parametrize("left", [0, 1000, 4799])
def test_cut_storages_are_refused(tmp_path, saved, left):
    content = records(saved)  # what follows would be read as the rest of the numbers
    content = {name: data[:left] if name.endswith("data/0") else data for name, data in content.items()}
    path = archive_of(tmp_path / "cut.pt", content | {"saved/data/rest": bytes(10_000)})
    with pytest.raises(CheckpointError, match=f"cut.pt .*a storage has {left} bytes, not the 1200 numbers"):
        open_checkpoint(path)


def test_long_storages_are_refused(tmp_path, saved):
    content = records(saved)
    path = archive_of(tmp_path / "long.pt", content | {"saved/data/0": content["saved/data/0"] + b"1234"})
    with pytest.raises(CheckpointError, match=r"a storage has 4804 bytes"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.replace(b"saved/data/0", b"saved/data/9"), "record 'data/0' is missing"),
        (lambda data: data.replace(b"saved/data/1", b"saved/data/0"), "two records of the archive have one name"),
        (lambda data: data[:-22], "File is not a zip file"),
        (lambda data: data.replace(b"saved/data.pkl", b"saved/data.pkx"), "without a data.pkl"),
        (lambda data: b"PK\x03\x04" + data[100:], "not where the archive's directory has it|is cut|not a zip file"),
        (lambda data: data.replace(b"saved/data/0", b"saved/data/7", 1), "'saved/data/0' is not where"),
    ],
    ids=["missing", "twice", "no directory", "no pickle", "moved", "two headers"],
)
def test_damaged_archives(tmp_path, saved, change, message):
    (tmp_path / "bad.pt").write_bytes(change(saved.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"bad.pt cannot be read as tensors .*({message})"):
        open_checkpoint(tmp_path / "bad.pt")


def test_what_holds_something_else(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "script.pt")
    with pytest.raises(CheckpointError, match="is a TorchScript program; save its state_dict"):
        open_checkpoint(tmp_path / "script.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="does not begin as files of torch.save do"):
        open_checkpoint(tmp_path / "plain.pt")
    for name, tensor in {"sparse": torch.eye(3).to_sparse(), "meta": torch.empty(2, device="meta")}.items():
        torch.save({"a": {"b": tensor}}, tmp_path / f"{name}.pt")
        with pytest.raises(CheckpointError, match=r"'a/b' is sparse, quantised or empty of numbers; save it dense"):
            open_checkpoint(tmp_path / f"{name}.pt")
    torch.save({"a": torch.ones(2, dtype=torch.complex64).conj()}, tmp_path / "conj.pt")
    with pytest.raises(CheckpointError, match=r"'a' is a conjugated or negated view"):
        open_checkpoint(tmp_path / "conj.pt")
    torch.save({"a": torch.ones(1).expand(1 << 40)}, tmp_path / "huge.pt")
    with pytest.raises(CheckpointError, match=r"repeats 1 numbers"):
        open_checkpoint(tmp_path / "huge.pt")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("not_kept", torch.ones(3), persistent=False)
        self.register_parameter("absent", None)


@pytest.mark.parametrize("archive", [True, False])
def test_everything_but_tensors_is_passed_over(tmp_path, archive):
    network = Net()
    optimiser = torch.optim.Adam(network.parameters())
    sum(p.sum() for p in network.parameters()).backward()
    optimiser.step()
    whole = {
        "args": argparse.Namespace(lr=0.1, paths=[Path("x")]),
        "model": network,
        "counts": Counter("aab"),
        "more": defaultdict(list, x=[1]),
        "optimizer": optimiser.state_dict(),
        ("a", "tuple"): {"unseen": torch.zeros(1)},
        "list": [{"inner": torch.ones(2)}],
        "epoch": 3,
    }
    torch.save(whole, tmp_path / "a.pt", _use_new_zipfile_serialization=archive)
    found = open_checkpoint(tmp_path / "a.pt").tensors
    state = {f"model/{name}": tensor for name, tensor in network.state_dict().items()}
    same({name: tensor for name, tensor in found.items() if name.startswith("model/")}, state)
    assert found["list/0/inner"].tolist() == [1, 1]
    assert found["optimizer/state/0/step"].item() == 1
    assert not [name for name in found if "unseen" in name]


class Evil:
    def __init__(self, place: Path, how: str):
        self.place, self.how = place, how

    def __reduce_ex__(self, protocol):
        act = (os.mkdir, (str(self.place),))
        return {
            "call": act,
            "state": (argparse.Namespace, (), {"x": Evil(self.place, "call")}),
            "items": (list, (), None, iter([Evil(self.place, "call")])),
            "pairs": (dict, (), None, None, iter([("k", Evil(self.place, "call"))])),
            "tensor": (torch._utils._rebuild_tensor_v2, (Evil(self.place, "call"), 0, (), (), False, None)),
        }[self.how]


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("how", ["call", "state", "items", "pairs"])
def test_code_is_not_run(tmp_path, how, archive):
    content = {"weight": torch.ones(2), "evil": Evil(tmp_path / "owned", how)}
    torch.save(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=archive)
    same(open_checkpoint(tmp_path / "evil.pt").tensors, {"weight": torch.ones(2)})
    assert not (tmp_path / "owned").exists()


def test_a_storage_that_would_be_made_by_code(tmp_path):
    torch.save({"weight": Evil(tmp_path / "owned", "tensor")}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="evil.pt cannot be read as tensors"):
        open_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


class Anything:
    """Objects of all kinds of pickling."""

    __slots__ = ("a",)

    def __init__(self, a):
        self.a = a

    def __getstate__(self):
        return None, {"a": self.a}


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_are_read_as_python_reads_them(protocol):
    plain = {"a": [1, -5, 1 << 80, 2.5, None, True, "ä\n", (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ()], 2: {}}
    plain["again"] = plain["a"]
    if protocol > 2:
        plain["bytes"] = b"\x00b"
    assert read_pickle(io.BytesIO(pickle.dumps(plain, protocol))) == plain
    found = read_pickle(
        io.BytesIO(pickle.dumps({"x": Anything([1]), "y": {1, 2}, "z": frozenset([3])}, max(protocol, 2)))
    )
    assert list(found) == ["x", "y", "z"]


BOMBS = {
    "a huge length": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x",
    "a huge index": b"\x80\x02Kar" + struct.pack("<I", (1 << 32) - 1) + b"h\x00.",
    "no stop": b"\x80\x02}",
    "nothing there": b"\x80\x02.",
    "a mark": b"\x80\x02(0.",
    "no mark": b"\x80\x02K\x01t.",
    "an extension": b"\x80\x02\x82\x01.",
    "endless digits": b"I" + b"9" * 100_000 + b"\n.",
    "no UTF-8": b"\x80\x02X\x01\x00\x00\x00\xff.",
}


@pytest.mark.parametrize("case", BOMBS)
def test_pickles_that_are_none(case):
    with pytest.raises(ValueError, match=r".+"):
        read_pickle(io.BytesIO(BOMBS[case]))


def test_objects_that_grow_when_they_are_looked_at(tmp_path):
    doubled: object = ()
    for _ in range(200):
        doubled = (doubled, doubled)
    torch.save({"a": doubled, "w": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="nested more than 64 deep"):
        open_checkpoint(tmp_path / "a.pt")
    # a key that Python hashes in 2^200 steps: pairs of the pair before, 200 deep
    keyed = b"\x80\x02})" + b"q\x00h\x00\x86" * 200 + b"K\x01s."
    assert read_pickle(io.BytesIO(keyed)) == {}
    looped: list = [torch.ones(1)]
    looped.append(looped)
    torch.save({"a": looped}, tmp_path / "a.pt")
    same(open_checkpoint(tmp_path / "a.pt").tensors, {"a/0": torch.ones(1)})
