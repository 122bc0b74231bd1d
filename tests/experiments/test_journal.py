import errno
import json
import multiprocessing
import os
import random
import signal
import time

import pytest

from neurograft.errors import StoreError
from neurograft_experiments.journal import Journal


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "results.jsonl")


def lines(journal):
    return journal.path.read_text(encoding="utf-8").splitlines()


def test_a_file_that_is_not_there_is_empty(journal):
    assert journal.first() == {}
    assert journal.mend() == 0
    assert not journal.path.exists()


def test_what_is_appended_is_read_back_by_others_in_its_order(journal):
    for number in range(5):
        assert journal.append({"key": f"k{number}", "value": [number, "ä"], "none": None})
    again = Journal(journal.path)
    assert list(again.first()) == [f"k{number}" for number in range(5)]
    assert again.first()["k3"] == {"key": "k3", "value": [3, "ä"], "none": None}


def test_a_key_is_there_once_unless_asked_otherwise(journal):
    other = Journal(journal.path)
    assert journal.append({"key": "a", "value": 1})
    assert not other.append({"key": "a", "value": 2})
    assert other.append({"key": "a", "value": 3}, once=False)
    assert journal.first()["a"]["value"] == 1
    assert journal.last()["a"]["value"] == 3
    assert len(lines(journal)) == 2


def test_numbers_json_does_not_have_become_null(journal):
    journal.append({"key": "a", "loss": float("nan"), "curve": (1.0, float("inf"))})
    assert json.loads(lines(journal)[0]) == {"key": "a", "loss": None, "curve": [1.0, None]}


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_line_cut_anywhere_is_moved_aside_and_its_neighbours_stay(journal, cut):
    journal.append({"key": "a", "value": 1})
    whole = b'{"key": "b", "value": 2, "curve": [0.125]}\n'
    with journal.path.open("ab") as file:
        file.write(whole[:cut])
    reader = Journal(journal.path)
    assert list(reader.first()) == ["a"]
    assert reader.append({"key": "c", "value": 3})
    assert reader.append({"key": "b", "value": 2})
    assert list(Journal(journal.path).first()) == ["a", "c", "b"]
    assert all(json.loads(line) for line in lines(journal))
    assert journal.path.with_suffix(".torn").read_bytes() == whole[:cut] + b"\n"


def test_a_line_that_lacks_only_its_end_is_kept(journal):
    journal.path.write_text('{"key": "a", "value": 1}')
    assert journal.append({"key": "b"})
    assert list(Journal(journal.path).first()) == ["a", "b"]
    assert not journal.path.with_suffix(".torn").exists()


def test_mending_says_how_many_lines_were_torn(journal):
    journal.path.write_bytes(b'{"key": "a"}\n{"key": \n\0\0\0\n[1, 2]\n{"key": "b"}\n')
    assert journal.mend() == 3
    assert journal.mend() == 0
    assert list(journal.first()) == ["a", "b"]


def test_a_full_disk_leaves_the_file_as_it_was(journal, monkeypatch):
    journal.append({"key": "a", "value": 1})
    before = journal.path.read_bytes()
    write = os.write

    def half(handle, data):
        if b"key" not in bytes(data):
            return write(handle, data)
        write(handle, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(StoreError, match="results.jsonl cannot be written to: the disk is full"):
        journal.append({"key": "b", "value": 2})
    assert journal.path.read_bytes() == before
    monkeypatch.undo()
    assert journal.append({"key": "b", "value": 2})


def append_until_killed(path, first):
    journal = Journal(path)
    for number in range(first, first + 10_000):
        journal.append({"key": f"k{number}", "filling": "x" * 3000})


def test_writers_killed_at_random_moments_lose_and_double_nothing(journal):
    context = multiprocessing.get_context("fork")
    for turn in range(6):
        writers = [
            context.Process(target=append_until_killed, args=(journal.path, 1_000_000 * turn + 10_000 * w))
            for w in range(2)
        ]
        for writer in writers:
            writer.start()
        time.sleep(random.uniform(0.02, 0.1))
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
    journal.mend()
    keys = [json.loads(line)["key"] for line in lines(journal)]
    assert len(keys) == len(set(keys)) > 0
    for turn in range(6):
        for w in range(2):
            first = 1_000_000 * turn + 10_000 * w
            own = [int(key[1:]) for key in keys if first <= int(key[1:]) < first + 10_000]
            assert own == list(range(first, first + len(own)))  # nothing in between is missing
