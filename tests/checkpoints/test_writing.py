"""Files and folders appear whole or not at all; their bytes are what the format's own library writes."""

import errno
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from neurograft.checkpoints import atomic, open_checkpoint, provenance_of, sha256, write_checkpoint
from neurograft.checkpoints.atomic import PART, check_target, whole
from neurograft.checkpoints.hashing import Hashing
from neurograft.checkpoints.writing import (
    TensorWriter,
    replace_metadata,
    shards,
    write_index,
    write_tensors,
)
from neurograft.errors import CheckpointError


def test_bytes_are_those_of_the_formats_own_library(tmp_path):
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([1], dtype=torch.int8), "z": torch.zeros(0, 3)}
    write_tensors(tensors, tmp_path / "ours.safetensors", {"k": "v"})
    loaded = load_file(tmp_path / "ours.safetensors")
    assert loaded.keys() == tensors.keys()
    torch.testing.assert_close(loaded, tensors, rtol=0, atol=0)
    save_file({"x": torch.ones(2)}, tmp_path / "theirs.safetensors", {"format": "pt"})
    write_tensors({"x": torch.ones(2)}, tmp_path / "ours.safetensors", {})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_every_tensor_starts_at_a_multiple_of_its_own(tmp_path):
    tensors = {"a": torch.ones(3, dtype=torch.int8), "b": torch.ones(3, dtype=torch.float64), "c": torch.ones(3).half()}
    write_tensors(tensors, tmp_path / "a.safetensors", {"text": "ä" * 5})
    for entry in open_checkpoint(tmp_path / "a.safetensors").tensors.entries.values():
        assert entry.start % entry.dtype.itemsize == 0


def test_blocks_must_come_as_announced(tmp_path):
    spec = {"a": (torch.float32, (2, 2)), "b": (torch.float32, (1,))}

    def write(*blocks):
        with TensorWriter(tmp_path / "a.safetensors", spec, {}) as writer:
            for name, block in blocks:
                writer.write(name, block)

    with pytest.raises(CheckpointError, match=r"8 bytes of a were not given"):
        write(("a", torch.zeros(1, 2)))
    with pytest.raises(CheckpointError, match=r"4 bytes of b .torch.float32. are not what comes next"):
        write(("b", torch.zeros(1)))
    with pytest.raises(CheckpointError, match=r"24 bytes of a .torch.float32. are not what comes next"):
        write(("a", torch.zeros(3, 2)))
    with pytest.raises(CheckpointError, match=r"8 bytes of a .torch.float16. are not what comes next"):
        write(("a", torch.zeros(2, 2).half()))
    write(("a", torch.zeros(1, 2)), ("a", torch.ones(1, 2)), ("b", torch.ones(1)))
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [[0, 0], [1, 1]]


def test_shards_with_their_index(tmp_path):
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(5)}
    parts = shards({name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}, 80)
    assert [list(part.tensors) for part in parts] == [["t0", "t1"], ["t2", "t3"], ["t4"]]
    for part in parts:
        with TensorWriter(tmp_path / part.file, part.tensors, {}) as writer:
            for name in part.tensors:
                writer.write(name, tensors[name])
    write_index(tmp_path, parts)
    torch.testing.assert_close(dict(open_checkpoint(tmp_path).tensors), tensors, rtol=0, atol=0)


def test_metadata_of_the_same_length_are_replaced(tmp_path):
    path, spec = tmp_path / "a.safetensors", {"a": (torch.float32, (2,))}
    with TensorWriter(path, spec, {"hash": "0" * 8}) as writer:
        writer.write("a", torch.ones(2))
    replace_metadata(path, spec, {"hash": "12345678"})
    opened = open_checkpoint(path)
    assert opened.metadata["hash"] == "12345678"
    assert opened.tensors["a"].tolist() == [1, 1]
    with pytest.raises(CheckpointError, match="must be as long as the old ones"):
        replace_metadata(path, spec, {"hash": "1" * 100})


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def fail():
        with whole(tmp_path / "out", folder=True) as part:
            (part / "a").write_text("x")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert not list(tmp_path.iterdir())
    with whole(tmp_path / "out", folder=True) as part:
        (part / "a").write_text("x")
        assert [file.name for file in tmp_path.iterdir()] == [part.name]
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "a"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, code):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    written = os.write

    def full(handle, data):
        if len(data) > 1000:
            raise OSError(code, os.strerror(code))
        return written(handle, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CheckpointError, match=rf"a.safetensors could not be written: {os.strerror(code)}"):
        write_checkpoint(torch.nn.Linear(30, 40), path, {})
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_bytes() == b"old"


def test_a_limit_of_the_file_size_leaves_nothing(tmp_path):
    code = f"""
import resource, torch
from pathlib import Path
from neurograft.checkpoints.writing import write_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
write_tensors({{"a": torch.zeros(10_000)}}, Path({str(tmp_path / "a.safetensors")!r}), {{}})
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "a.safetensors could not be written: File too large" in run.stderr
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_recognised_and_cleaned(tmp_path):
    path = tmp_path / "out"
    code = f"""
import sys, time
from pathlib import Path
from neurograft.checkpoints.atomic import whole
with whole(Path({str(path)!r}), folder=True) as part:
    (part / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        (left,) = tmp_path.iterdir()
        assert left.name.startswith(".out.")
        assert left.name.endswith(PART)
        with whole(path, folder=True) as part:  # the other one lives: what it writes stays
            assert left.is_dir()
            assert part != left
        path.rmdir()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (left / "half").read_text() == "half"
    assert not path.exists()
    with whole(path, folder=True):
        assert not left.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_names_with_wildcards_clean_only_their_own(tmp_path):
    other = tmp_path / f".ab.12345678{PART}"
    other.touch()
    with whole(tmp_path / "[a]*") as part:
        part.touch()
    assert other.exists()


def test_hashes_in_the_background(tmp_path):
    files = [tmp_path / name for name in "abc"]
    for i, file in enumerate(files):
        file.write_bytes(bytes([i]) * (5_000_000 * i))
    with Hashing([files[:2], files[2:]]) as hashing:
        assert hashing.results() == {file: sha256(file) for file in files}
    with pytest.raises(RuntimeError, match="stop"), Hashing([files]):
        raise RuntimeError("stop")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hashing")]
    with (
        pytest.raises(CheckpointError, match="nowhere cannot be read: No such file"),
        Hashing([[tmp_path / "nowhere"]]) as hashing,
    ):
        hashing.results()


def test_a_file_of_another_program_has_no_provenance(tmp_path):
    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors")
    assert provenance_of(tmp_path / "a.safetensors") is None


class TestTargets:
    """What cannot be written is found before the work, and says so in one sentence."""

    @pytest.fixture(autouse=True)
    def here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "file").touch()
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "x").touch()
        (tmp_path / "empty").mkdir()
        (tmp_path / "to-empty").symlink_to("empty")
        (tmp_path / "to-nowhere").symlink_to("nowhere")

    @pytest.mark.parametrize(
        ("name", "folder", "message"),
        [
            (".", True, "exists and is not empty"),
            ("full", True, "exists and is not empty"),
            ("full", False, "is a folder; give the file's name in it"),
            ("to-nowhere", True, "is a link that leads to nowhere"),
            ("file", True, "exists and is no folder"),
            ("nowhere/x", False, "the folder .*nowhere does not exist"),
            ("file/x", False, "the folder .*file does not exist"),
            ("/", True, "is no name of a file or folder"),
            ("a\0b", False, "cannot be written to"),
            ("ä" * 150, False, "cannot be written to: File name too long"),
            ("ä" * 150, True, "cannot be written to: File name too long"),
        ],
    )
    def test_what_cannot_appear_is_refused(self, tmp_path, name, folder, message):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(CheckpointError, match=message):
            check_target(Path(name), folder=folder)
        with pytest.raises(CheckpointError), whole(Path(name), folder=folder) as part:
            (part / "x" if folder else part).write_text("work")
        assert sorted(tmp_path.rglob("*")) == before

    def test_the_current_folder_cannot_be_replaced(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path / "empty")
        for name in (".", "../empty"):
            with pytest.raises(CheckpointError, match=r"is the current folder, .* name a new folder in it"):
                check_target(Path(name), folder=True)

    def test_a_mount_point_cannot_be_replaced(self, monkeypatch):
        monkeypatch.setattr(os.path, "ismount", lambda path: path.name == "empty")
        with pytest.raises(CheckpointError, match="is a mount point"):
            check_target(Path("empty"), folder=True)

    def test_a_link_to_an_empty_folder_stands_for_it(self, tmp_path):
        with pytest.raises(CheckpointError, match="to-empty is a link that leads to empty"):
            check_target(Path("to-empty"))
        check_target(Path("to-empty"), folder=True)
        with whole(Path("to-empty"), folder=True) as part:
            (part / "x").write_text("there")
        assert Path("to-empty").is_symlink()
        assert (tmp_path / "empty" / "x").read_text() == "there"

    @pytest.mark.parametrize("name", ["n" * 240, "ä" * 127, "n" * 255])
    def test_the_longest_names(self, tmp_path, name):
        check_target(Path(name))
        for text in ("first", "second"):
            with whole(Path(name)) as part:
                part.write_text(text)
        assert (tmp_path / name).read_text() == "second"
        assert not list(tmp_path.glob(f"*{PART}"))

    def test_a_file_system_that_cannot_be_written_to(self, monkeypatch):
        def refuse(*_, **__):
            raise OSError(errno.EROFS, "Read-only file system")

        for name in ("touch", "mkdir", "unlink"):
            monkeypatch.setattr(Path, name, refuse)
        for folder in (False, True):
            with (
                pytest.raises(CheckpointError, match=r"new could not be written: Read-only file system"),
                whole(Path("new"), folder=folder),
            ):
                pass
            with pytest.raises(CheckpointError, match=r"new cannot be written to: Read-only file system"):
                check_target(Path("new"), folder=folder)


@pytest.mark.parametrize("folder", [False, True])
def test_cleaning_up_never_takes_what_is_being_written(tmp_path, monkeypatch, folder):
    path, locked, met = tmp_path / "out", atomic._locked, []

    def cleaned_before(part, *, wait=False):
        if wait and len(met) < 3:
            met.append(part)
            atomic.clean(path)  # another writer, between making the file and locking it
        return locked(part, wait=wait)

    monkeypatch.setattr(atomic, "_locked", cleaned_before)
    with whole(path, folder=folder) as part:
        (part / "x" if folder else part).write_text("mine")
    assert len(met) == 3
    assert (path / "x" if folder else path).read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_hundreds_of_writers_at_once(tmp_path):
    path = tmp_path / "out"

    def write(number):
        with whole(path) as part:
            part.write_text(str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(400)))
    assert path.read_text().isdigit()
    assert list(tmp_path.iterdir()) == [path]
