import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
from collections import namedtuple

import pytest
import torch

from neurograft.checkpoints.reading import open_checkpoint
from neurograft.checkpoints.writing import write_tensors
from neurograft.errors import StoreError
from neurograft_experiments.store import Store


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "runs" / "experiments")
    store.prepare()
    return store


def write_member(store, key):
    write_tensors({"weight": torch.arange(4.0)}, store.member_path(key), {})


def test_looking_makes_no_folder(tmp_path):
    store = Store(tmp_path / "runs")
    assert (store.rows(), store.members(), store.failures(), store.has("a")) == ((), (), (), False)
    assert not store.folder.exists()


def test_rows_are_kept_once(store):
    assert store.add({"key": "a", "row": "average"})
    assert not store.add({"key": "a", "row": "another"})
    again = Store(store.folder)
    assert again.rows() == ({"key": "a", "row": "average"},)
    assert again.row("a")["row"] == "average"
    with pytest.raises(StoreError, match="has no result for b"):
        again.row("b")


def test_a_member_is_there_when_its_record_and_its_tensors_are(store):
    with pytest.raises(StoreError, match=r"member m was trained but .*m.safetensors was not written"):
        store.add_member("m", {"accuracy": 0.5})
    write_member(store, "m")
    assert not store.has("m")
    store.add_member("m", {"accuracy": 0.5})
    assert store.has("m")
    assert store.row("m") == {"key": "m", "accuracy": 0.5}
    store.member_path("m").unlink()
    assert not store.has("m")
    assert store.members() == ()


def test_a_member_from_another_host_comes_as_bytes(store, tmp_path):
    elsewhere = Store(tmp_path / "elsewhere")
    elsewhere.prepare()
    write_member(elsewhere, "m")
    store.add_member("m", {}, elsewhere.member_path("m").read_bytes())
    torch.testing.assert_close(open_checkpoint(store.member_path("m")).tensors["weight"], torch.arange(4.0))


def test_a_finished_training_leaves_no_state_behind(store):
    store.unfinished_path("m").write_bytes(b"half")
    store.unfinished_path("m").with_stem("m-0.01").write_bytes(b"half")
    write_member(store, "m")
    store.add_member("m", {})
    assert not list((store.folder / "unfinished").iterdir())


def test_a_failure_is_no_row_and_is_over_when_the_trial_succeeds(store):
    store.fail("a", "transplant, seed 0", ValueError("no"))
    assert not store.has("a")
    (failure,) = store.failures()
    assert (failure["label"], failure["error"]) == ("transplant, seed 0", "ValueError: no")
    assert "ValueError" in failure["trace"]
    store.add({"key": "a"})
    assert store.failures() == ()


def test_a_claim_is_held_by_one_and_free_again(store):
    other = Store(store.folder)
    with store.claim("a") as mine, other.claim("a") as theirs, other.claim("b") as different:
        assert (mine, theirs, different) == (True, False, True)
    with other.claim("a") as now:
        assert now
    assert not list((store.folder / "claims").iterdir())


def hold(folder, ready):
    with Store(folder).claim("a") as mine:
        ready.send(mine)
        signal.pause()


def test_a_claim_is_free_when_its_owner_is_killed(store):
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    owner = context.Process(target=hold, args=(store.folder, there))
    owner.start()
    assert here.recv()
    with store.claim("a") as mine:
        assert not mine
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    with store.claim("a") as mine:
        assert mine


def test_preparing_moves_torn_lines_aside(store):
    store.add({"key": "a"})
    with (store.folder / "results.jsonl").open("a") as file:
        file.write('{"key": "b", "te')
    assert Store(store.folder).prepare() == 1
    assert [row["key"] for row in store.rows()] == ["a"]


def test_a_file_in_the_place_of_the_folder_is_found_before_the_work(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(StoreError, match="runs cannot be written to: .*; nothing was run. Choose another folder"):
        Store(tmp_path / "runs").prepare()


def test_a_read_only_folder_is_found_before_the_work(tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(StoreError, match=r"cannot be written to: it is read-only \(Read-only file system\)"):
        Store(tmp_path / "runs").prepare()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_found_before_the_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="may not be written to by you"):
        Store(tmp_path / "runs").prepare()


def test_too_little_room_is_found_before_the_work(store, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 3 * 10**8, 3 * 10**8))
    store.check_room(10**8)
    with pytest.raises(StoreError, match="250 MB are going to be written .* only 300 MB are free; nothing was run"):
        store.check_room(25 * 10**7)


def test_a_disk_that_fills_up_says_what_is_safe(store, monkeypatch):
    store.add({"key": "a"})

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"the row of b could not be kept: .*the disk is full") as raised:
        store.add({"key": "b"})
    assert "1 result and 0 members" in str(raised.value)
    monkeypatch.undo()
    assert [row["key"] for row in Store(store.folder).rows()] == ["a"]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte of its own; only root may make one."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("needs the right to mount")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(store):
    for number in range(100):
        store.add({"key": str(number), "filling": "x" * 30_000})


def test_a_real_disk_that_is_full(small_disk):
    store = Store(small_disk / "runs")
    store.prepare()
    with pytest.raises(StoreError, match="100 MB must be left over, but only .* are free; nothing was run"):
        store.check_room(0)
    with pytest.raises(StoreError, match="the disk is full") as raised:
        fill(store)
    kept = len(store.rows())
    assert kept > 10
    assert f"{kept} results" in str(raised.value)
    with pytest.raises(StoreError, match="member m could not be kept: .*No space left"):
        store.add_member("m", {}, bytes(10**6))
    assert len(Store(store.folder).rows()) == kept
    assert Store(store.folder).members() == ()
    assert not list((store.folder / "members").iterdir())


def test_a_real_disk_that_is_read_only(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreError, match=r"it is read-only .*nothing was run. Choose another folder with --output"):
        Store(small_disk / "runs").prepare()
