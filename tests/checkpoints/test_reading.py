"""Whatever is on the disk, opening it gives right tensors or a CheckpointError that names the file."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from neurograft.checkpoints import open_checkpoint
from neurograft.checkpoints.header import DTYPES
from neurograft.errors import CheckpointError


def tensors_of(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "embed.weight": torch.randn(7, 4, generator=generator).bfloat16(),
        "fc.weight": torch.randn(4, 3, generator=generator),
        "fc.bias": torch.randn(3, generator=generator, dtype=torch.float64),
        "empty": torch.zeros(0, 5),
        "steps": torch.tensor(3),
    }


def raw(header: dict | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def same(found, expected) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_tensors_are_those_that_were_saved(tmp_path):
    save_file(tensors_of(), tmp_path / "a.safetensors", {"who": "me"})
    opened = open_checkpoint(tmp_path / "a.safetensors")
    same(opened.tensors, tensors_of())
    assert opened.metadata == {"who": "me"}
    assert opened.nbytes == sum(t.nbytes for t in tensors_of().values())


@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype(tmp_path, code):
    data = torch.arange(16, dtype=torch.uint8).remainder(2)
    (tmp_path / "a.safetensors").write_bytes(
        raw({"x": entry(code, [16 // DTYPES[code].itemsize], [0, 16])}, bytes(data))
    )
    found = open_checkpoint(tmp_path / "a.safetensors").tensors["x"]
    assert found.dtype == DTYPES[code]
    assert torch.equal(found.clone().view(torch.uint8), data)


def test_numbers_that_lie_across_word_boundaries(tmp_path):
    numbers = torch.tensor([1.5, -2.0])
    (tmp_path / "a.safetensors").write_bytes(
        raw(b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(numbers.numpy().tobytes()))
    )
    assert torch.equal(open_checkpoint(tmp_path / "a.safetensors").tensors["x"], numbers)


BAD_HEADERS = {
    "empty file": (b"", "has only 0 bytes"),
    "short file": (b"\1\2\3", "has only 3 bytes"),
    "absurd header": (
        struct.pack("<Q", 1 << 62) + b"{}",
        "header claims 4611686018427387904 bytes, but the file has 10",
    ),
    "header longer than the file": (struct.pack("<Q", 100) + b"{}", "truncated: its header claims 100"),
    "no brace": (raw(b" {}"), "does not start with a brace"),
    "no JSON": (raw(b"{]"), "header is no JSON"),
    "deep JSON": (raw(b'{"a":' * 100_000), "header is no JSON"),
    "huge number": (
        raw(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}'),
        "header is no JSON",
    ),
    "not UTF-8": (raw(b'{"\xff":1}'), "header is no JSON"),
    "twice": (raw(b'{"a":1,"a":2}'), "names 'a' twice"),
    "metadata": (raw({"__metadata__": {"a": 1}}), "__metadata__ must map text to text"),
    "no entry": (raw({"w": 3}), "w must be described by dtype"),
    "lacking": (raw({"w": {"dtype": "F32"}}), "w must be described by dtype"),
    "dtype": (raw({"w": entry("F33")}), "w has dtype 'F33'; known: F64"),
    "dtype list": (raw({"w": entry([])}), r"w has dtype \[\]"),
    "negative": (raw({"w": entry(shape=[-2])}), r"w has the impossible shape \[-2\]"),
    "boolean": (raw({"w": entry(shape=[True])}), r"w has the impossible shape \[True\]"),
    "fraction": (raw({"w": entry(shape=[2.0])}), r"w has the impossible shape \[2.0\]"),
    "enormous": (
        raw({"w": entry(shape=[1 << 40, 1 << 40])}, b"12345678"),
        r"w has the impossible shape \[1099511627776, 1099511627776\]",
    ),
    "offsets": (raw({"w": entry(offsets=[0])}, b"12345678"), r"w has the impossible data_offsets \[0\]"),
    "backwards": (raw({"w": entry(offsets=[8, 0])}, b"12345678"), "w of dtype F32 .* needs 8 bytes, .* give it -8"),
    "mislabelled": (raw({"w": entry("F64")}, b"12345678"), "w of dtype F64 and shape .* needs 16 bytes, .* give it 8"),
    "truncated": (raw({"w": entry()}, b"1234567"), r"truncated: w ends at byte .*\(1 missing\)"),
    "rest": (raw({"w": entry()}, b"123456789"), "has 1 bytes after its last tensor"),
    "overlap": (
        raw({"v": entry(), "w": entry(offsets=[4, 12])}, b"123456789012"),
        "w shares bytes with another tensor",
    ),
    "hole": (raw({"v": entry(), "w": entry(offsets=[12, 20])}, b"1" * 20), "w leaves 4 bytes unused"),
    "pickle": (b"\x80\x02}q\x00.", "is no safetensors file but a pickle; rename it to .pt"),
    "zip": (b"PK\x03\x04 and more", "a PyTorch file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "page": (b"<!DOCTYPE html>", "a web page"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_headers_are_refused_by_name(tmp_path, case):
    content, message = BAD_HEADERS[case]
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"bad\.safetensors.*{message}"):
        open_checkpoint(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("length", [0x3C, 0x280, 0x4647])
def test_lengths_that_look_like_other_formats(tmp_path, length):
    text = json.dumps({"w": entry()}).encode().ljust(length)
    (tmp_path / "a.safetensors").write_bytes(raw(text, b"\0" * 8))
    assert open_checkpoint(tmp_path / "a.safetensors").tensors["w"].tolist() == [0, 0]


class TestShards:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        tensors, placed = tensors_of(), {}
        for i, names in enumerate((("embed.weight", "empty"), ("fc.weight", "fc.bias", "steps")), 1):
            save_file({name: tensors[name] for name in names}, folder / f"{i}.safetensors")
            placed |= dict.fromkeys(names, f"{i}.safetensors")
        self.write(folder, placed)
        return folder

    @staticmethod
    def write(folder: Path, placed: object) -> None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))

    def test_folder_and_index_give_all_tensors(self, folder):
        same(open_checkpoint(folder).tensors, tensors_of())
        opened = open_checkpoint(folder / "model.safetensors.index.json")
        same(opened.tensors, tensors_of())
        assert [file.name for file in opened.files] == ["1.safetensors", "2.safetensors"]

    def test_a_tensor_that_is_not_where_the_index_says(self, folder):
        self.write(folder, {"fc.weihgt": "2.safetensors"})
        with pytest.raises(
            CheckpointError, match=r"places in 2.safetensors the tensor 'fc.weihgt'; did you mean 'fc.weight'"
        ):
            open_checkpoint(folder)

    def test_a_shard_that_is_not_there(self, folder):
        (folder / "2.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"names '2.safetensors', which is not there"):
            open_checkpoint(folder)

    @pytest.mark.parametrize(
        "name",
        [
            "../out.safetensors",
            "/etc/passwd",
            "a/../../out.safetensors",
            "..",
            "",
            ".",
            "C:\\out",
            "x\0y",
            "a\\..\\out",
        ],
    )
    def test_no_index_leads_outside(self, folder, name):
        save_file(tensors_of(), folder.parent / "out.safetensors")
        self.write(folder, {"fc.weight": name})
        with pytest.raises(
            CheckpointError, match=r"index.json (leads outside its folder|names '.', which is not there)"
        ):
            open_checkpoint(folder)

    def test_no_link_leads_outside(self, folder):
        save_file(tensors_of(), folder.parent / "out.safetensors")
        (folder / "1.safetensors").unlink()
        (folder / "1.safetensors").symlink_to(folder.parent / "out.safetensors")
        with pytest.raises(
            CheckpointError, match=r"'1.safetensors' leads outside its folder: it is a link to .*out.safetensors"
        ):
            open_checkpoint(folder)

    def test_the_cache_of_the_hub_is_links_into_its_blobs(self, folder, tmp_path):
        snapshot = tmp_path / "models--a--b" / "snapshots" / "f00"
        blobs = tmp_path / "models--a--b" / "blobs"
        snapshot.mkdir(parents=True)
        blobs.mkdir()
        for i, file in enumerate(sorted(folder.iterdir())):
            file.rename(blobs / f"{i}")
            (snapshot / file.name).symlink_to(Path("../../blobs") / f"{i}")
        same(open_checkpoint(snapshot).tensors, tensors_of())

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map":[]}', '{"weight_map":{"a":1}}', "[" * 100_000])
    def test_files_that_are_no_index(self, folder, content):
        (folder / "model.safetensors.index.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"index.json(: its weight_map must| is no readable index)"):
            open_checkpoint(folder)

    def test_folders_without_a_checkpoint(self, tmp_path, folder):
        (folder / "model.safetensors.index.json").unlink()
        with pytest.raises(CheckpointError, match="is a folder with 2 safetensors files but no index"):
            open_checkpoint(folder)
        (folder / "2.safetensors").unlink()
        assert set(open_checkpoint(folder).tensors) == {"embed.weight", "empty"}
        (folder / "1.safetensors").unlink()
        with pytest.raises(CheckpointError, match="is a folder with no checkpoint; expected model.safetensors.index"):
            open_checkpoint(folder)


def test_a_file_that_changes_under_way_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(tensors_of(), path)
    opened = open_checkpoint(path)
    opened.check_unchanged()
    os.utime(path, ns=(1, 1))
    with pytest.raises(CheckpointError, match=r"a.safetensors changed on the disk while it was read"):
        opened.check_unchanged()
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match=r"a.safetensors changed from \d+ to \d+ bytes"):
        opened.check_unchanged()
    path.unlink()
    with pytest.raises(CheckpointError, match=r"a.safetensors cannot be read: No such file"):
        opened.check_unchanged()


def test_a_file_that_shrank_before_it_was_mapped(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(tensors_of(), path)
    opened = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"a.safetensors changed from \d+ to \d+ bytes while it was read"):
        same(opened.tensors, tensors_of())


def test_a_file_whose_time_was_set_back_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(tensors_of(), path)
    opened, before = open_checkpoint(path), path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(CheckpointError, match=r"a.safetensors changed on the disk while it was read"):
        opened.check_unchanged()
    with pytest.raises(CheckpointError, match=r"a.safetensors changed on the disk while it was read"):
        opened.tensors["fc.bias"].sum()


def test_names_that_no_system_takes(tmp_path):
    for name in ("n" * 300 + ".safetensors", "a\0b.pt"):
        with pytest.raises(CheckpointError, match=r"(cannot be read: File name too long|no such file)"):
            open_checkpoint(tmp_path / name)
