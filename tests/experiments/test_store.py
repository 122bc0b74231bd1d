import errno
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import pytest
import safetensors.torch
import torch

from neurograft.checkpoints.reading import open_checkpoint
from neurograft.errors import StoreError
from neurograft_experiments.store import Store


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "runs" / "experiments")
    store.prepare()
    return store


TENSORS = safetensors.torch.save({"weight": torch.arange(4.0)})


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
    store.add_member("m", {"accuracy": 0.5}, TENSORS)
    assert store.has("m")
    assert store.row("m") == {"key": "m", "accuracy": 0.5}
    torch.testing.assert_close(open_checkpoint(store.member_path("m")).tensors["weight"], torch.arange(4.0))
    assert store.tensors("m") == TENSORS
    store.member_path("m").unlink()
    assert not store.has("m")
    assert store.members() == ()
    with pytest.raises(StoreError, match="member m cannot be read: No such file"):
        store.tensors("m")


def test_a_finished_training_leaves_no_state_behind(store):
    for name in ("m.pt", "m-0.01.pt"):
        (store.unfinished / name).write_bytes(b"half")
    store.add_member("m", {}, TENSORS)
    assert not list(store.unfinished.iterdir())


def test_numbers_json_does_not_have_become_null(store):
    store.add({"key": "a", "loss": float("nan"), "curve": (1.0, float("inf"))})
    assert store.row("a") == {"key": "a", "loss": None, "curve": [1.0, None]}


def test_a_failure_is_no_row_and_is_over_when_the_trial_succeeds(store):
    store.fail("a", "transplant, seed 0", ValueError("no"))
    assert not store.has("a")
    (failure,) = store.failures()
    assert (failure["label"], failure["error"]) == ("transplant, seed 0", "ValueError: no")
    assert "ValueError" in failure["trace"]
    store.add({"key": "a"})
    assert store.failures() == ()


def hold(folder, ready):
    with Store(folder).working():
        ready.send(True)
        signal.pause()


def test_a_run_that_is_killed_frees_its_folder(store):
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    owner = context.Process(target=hold, args=(store.folder, there))
    owner.start()
    assert here.recv()
    with pytest.raises(StoreError, match="another run is at work"), store.working():
        pass
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    with store.working():
        pass


def test_a_trial_write_that_is_killed_leaves_nothing(tmp_path):
    """`prepare` writes a row to find out whether there is room; it is part of a transaction that never ends."""
    code = (
        "import os, sqlite3, sys; from pathlib import Path; from neurograft_experiments.store import Store\n"
        "def connect(*given, **more):\n"
        "    opened = sqlite3_connect(*given, **more)\n"
        "    opened.set_trace_callback(lambda statement: statement.startswith('DELETE') and os.kill(os.getpid(), 9))\n"
        "    return opened\n"
        "sqlite3_connect, sqlite3.connect = sqlite3.connect, connect\n"
        "Store(Path(sys.argv[1])).prepare()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    store = Store(tmp_path)
    assert store.failures() == ()
    store.prepare()
    store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["members", "results.sqlite", "unfinished"]


def add_until_killed(folder, first):
    store = Store(folder)
    store.prepare()
    for number in range(first, first + 10_000):
        store.add({"key": f"k{number}", "filling": "x" * 3000})


def test_writers_killed_at_random_moments_lose_and_double_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    for turn in range(4):
        writers = [
            context.Process(target=add_until_killed, args=(tmp_path, 1_000_000 * turn + 10_000 * w)) for w in range(2)
        ]
        for writer in writers:
            writer.start()
        time.sleep(random.uniform(0.05, 0.15))
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
    numbers = [int(row["key"][1:]) for row in Store(tmp_path).rows()]
    assert numbers
    for first in {number // 10_000 * 10_000 for number in numbers}:
        own = [number for number in numbers if first <= number < first + 10_000]
        assert own == list(range(first, first + len(own)))  # nothing in between is missing


def test_a_row_is_read_while_another_process_writes(store):
    reader = Store(store.folder)
    store.add({"key": "a"})
    assert reader.has("a")
    store.add({"key": "b"})
    assert [row["key"] for row in reader.rows()] == ["a", "b"]


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
    with pytest.raises(StoreError, match="the row of .* could not be kept: the disk is full") as raised:
        fill(store)
    kept = len(store.rows())
    assert kept > 5
    assert f"{kept} results" in str(raised.value)
    with pytest.raises(StoreError, match="member m could not be kept: .*No space left"):
        store.add_member("m", {}, bytes(10**6))
    store.close()
    assert len(store.rows()) == kept
    assert store.members() == ()
    assert not list((store.folder / "members").iterdir())
    store.close()


def test_a_real_disk_that_is_read_only(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreError, match=r"it is read-only .*nothing was run. Choose another folder with --output"):
        Store(small_disk / "runs").prepare()
