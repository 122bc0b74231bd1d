"""What a worker process on a cluster does: tasks, in a store of its own that holds the members they need."""

import secrets
import shutil
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from neurograft_experiments.engines import Work, explain
from neurograft_experiments.journal import of_the_disk
from neurograft_experiments.store import Store, same_folder

MEMBERS_KEPT = 32
"""Files of members that stay on a worker for its next tasks."""
PREFIX = "neurograft-worker-"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker sends back: a row or record, a member's file, or what went wrong.

    Attributes:
        result: the row of a trial, the record of a member.
        tensors: the bytes of a member's file, uint8.
        seconds: how long it took.
        error: in one line, None if all went well.
        trace: where it was raised.
        full: whether the disk of the worker's host takes no more, so that every other task would meet it there.
    """

    result: Mapping[str, Any] = field(default_factory=dict)
    tensors: Any = None
    seconds: float = 0.0
    error: str | None = None
    trace: str = ""
    full: bool = False


@dataclass(frozen=True, slots=True)
class Home:
    """The store of the process that hands out tasks, which a worker may or may not see.

    Attributes:
        folder: its path there.
        sign: what `Store.sign` gave.
    """

    folder: Path
    sign: str


def perform(task: Any, work: Work, threads: int, home: Home, records: Mapping[str, Any], *tensors: Any) -> Answer:
    """Do one task.

    Args:
        task: what to do.
        work: how.
        threads: of torch.
        home: where states of long trainings are kept if this host sees that folder: then they survive this worker.
        records: the members it needs, key -> record.
        tensors: their files, in the same order.
    """
    import numpy
    import torch

    torch.set_num_threads(threads)
    began = time.perf_counter()
    try:
        store = _own_store(home)
        for (key, record), data in zip(records.items(), tensors, strict=True):
            if not store.has(key):
                store.add_member(key, record, memoryview(data))
        result = dict(work(task, store, lambda _: None))
        path = store.member_path(task.key)
        written = numpy.fromfile(path, dtype=numpy.uint8) if task.kind == "member" else None
        _tidy(store, keep=tuple(records))
    except Exception as error:
        return Answer(error=explain(error), trace=traceback.format_exc(), full=of_the_disk(error))
    return Answer(result, written, time.perf_counter() - began)


@cache
def _own_store(home: Home) -> Store:
    """The store of this process; what dead workers left on this host is removed.

    A lock beside each folder says that its worker lives: the operating system frees it, however the worker ends.
    """
    remove_leftovers()
    name = Path(tempfile.gettempdir()) / f"{PREFIX}{secrets.token_hex(8)}"
    lock = FileLock(name.with_suffix(".lock"))
    lock.acquire()
    _LIVING.append(lock)
    shared = home.folder / "unfinished" if same_folder(home.folder, home.sign) else None
    store = Store(name, unfinished=shared)
    store.prepare()
    return store


_LIVING: list[FileLock] = []
"""Held until the process ends."""


def remove_leftovers() -> None:
    """Remove what workers on this host left that are dead."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*.lock"):
        _remove_if_dead(path)


def _remove_if_dead(path: Path) -> None:
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):  # it lives, or belongs to somebody else
        return
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    path.unlink(missing_ok=True)
    lock.release()


def _tidy(store: Store, keep: Sequence[str]) -> None:
    """Remove the members that were used longest ago; their records stay, they come again with who needs them."""
    for key in keep:
        store.member_path(key).touch()
    files = sorted((store.folder / "members").glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
    for path in files[: max(0, len(files) - max(MEMBERS_KEPT, len(keep)))]:
        path.unlink()
