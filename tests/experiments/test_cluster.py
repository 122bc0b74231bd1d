import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.experiments.errands import do, errands, table

from neurograft.errors import MissingExtra
from neurograft_experiments.cluster import available_cpus, run_on_ray
from neurograft_experiments.engines import run_in_process
from neurograft_experiments.store import Store
from neurograft_experiments.workbench import PREFIX, Home, perform, remove_leftovers

NOWHERE = Home(Path("/no/such/folder"), "")
ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
from rich.console import Console
from neurograft_experiments.cluster import run_on_ray
from neurograft_experiments.store import Store
from tests.experiments.errands import do, errands

folder, log, seconds, deadly, retries = sys.argv[1:]
settings = {"log": log, "seconds": float(seconds)}
tasks = [replace(task, settings={**task.settings, **settings, "dies": task.key == deadly}) for task in errands()]
store = Store(Path(folder))
store.prepare()
print(run_on_ray(tasks, store, do, retries=int(retries), console=Console(width=200)))
"""


@pytest.fixture
def undisturbed(tmp_path):
    store = Store(tmp_path / "undisturbed")
    store.prepare()
    run_in_process(errands(), store, do)
    return table(store)


@pytest.fixture
def start(tmp_path):
    """Start a run on Ray in a process of its own."""
    running = []

    def start_one(*, seconds=0.0, deadly="none", retries=2):
        arguments = [tmp_path / "store", tmp_path / "log", seconds, deadly, retries]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        return process

    yield start_one
    for process in running:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=300)


def raise_full(task, store, tick):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def starts(log):
    """Key and process of every task that was started."""
    return [tuple(line.split()) for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(condition, process=None, seconds=600.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


@pytest.mark.slow
def test_a_worker_killed_in_a_trial_costs_that_trial_only(start, tmp_path, undisturbed):
    process, log = start(seconds=0.5), tmp_path / "log"
    for victim in ("m1", "t1-2"):
        wait_for(lambda victim=victim: victim in dict(starts(log)), process)
        os.kill(int(dict(starts(log))[victim]), signal.SIGKILL)
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 0, out
    assert "done=12, failed=()" in out
    store = Store(tmp_path / "store")
    assert table(store) == undisturbed
    assert len((store.folder / "results.jsonl").read_text().splitlines()) == 12
    runs = Counter(key for key, _ in starts(log))
    assert {key for key, count in runs.items() if count > 1} == {"m1", "t1-2"}
    assert runs.total() == len(errands()) + 2
    assert not list((store.folder / "claims").iterdir())


@pytest.mark.slow
def test_a_trial_that_kills_every_worker_fails_and_the_others_go_on(start, tmp_path, undisturbed):
    process = start(deadly="t1-2", retries=1)
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 0, out
    assert "FAILED trial 2 of 1: its worker died 2 times" in out
    store = Store(tmp_path / "store")
    assert table(store) == {key: row for key, row in undisturbed.items() if key != "t1-2"}
    assert [failure["key"] for failure in store.failures()] == ["t1-2"]
    assert Counter(key for key, _ in starts(tmp_path / "log"))["t1-2"] == 2


@pytest.mark.slow
def test_the_whole_run_killed_goes_on_and_leaves_no_process(start, tmp_path, undisturbed):
    process, log = start(seconds=0.3), tmp_path / "log"
    wait_for(lambda: (tmp_path / "store" / "results.jsonl").exists(), process)
    process.kill()
    process.communicate(timeout=300)
    before = len(Store(tmp_path / "store").rows())
    assert 0 < before < 12
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for _, pid in starts(log)))
    process = start()
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 0, out
    assert re.search(rf"before={before}, done={12 - before}", out)
    assert table(Store(tmp_path / "store")) == undisturbed


def test_the_command_line_needs_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    store = Store(tmp_path)
    store.prepare()
    with pytest.raises(MissingExtra, match=r"--engine ray needs ray: pip install 'neurograft\[cluster\]'"):
        run_on_ray(errands(), store, do)


def test_nothing_to_do_needs_no_cluster(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.prepare()
    run_in_process(errands(), store, do)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run_on_ray(errands(), store, do).before == 12


def test_a_worker_does_tasks_in_a_store_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("neurograft_experiments.workbench.MEMBERS_KEPT", 1)
    first, second = (task for task in errands(2, 1) if task.kind == "member")
    trial = next(task for task in errands(2, 1) if task.kind == "trial")
    from neurograft_experiments import workbench

    workbench._own_store.cache_clear()
    answers = {task.key: perform(task, do, 1, NOWHERE, {}) for task in (first, second)}
    records = {key: answer.result for key, answer in answers.items()}
    again = perform(trial, do, 1, NOWHERE, records, *(answer.tensors for answer in answers.values()))
    assert again.error is None
    assert (again.result["sum"], again.result["doubled"]) == (0.0, [2, 4])
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert folder.name.startswith(PREFIX)
    remove_leftovers()
    assert folder.is_dir()  # its worker lives: it is this process
    workbench._LIVING.pop().release()
    remove_leftovers()
    assert not list(tmp_path.iterdir())
    workbench._own_store.cache_clear()


def test_a_worker_reports_an_error_with_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    from neurograft_experiments import workbench

    workbench._own_store.cache_clear()
    task = errands(1, 0)[0]
    answer = perform(type(task)("m", "member", "m", settings={"fails": True}), do, 1, NOWHERE, {})
    assert answer.error == "RuntimeError: no such luck"
    assert "errands.py" in answer.trace
    assert not answer.full
    full = perform(task, raise_full, 1, NOWHERE, {})
    assert full.full
    assert "No space left" in full.error
    workbench._LIVING.pop().release()
    workbench._own_store.cache_clear()


def test_states_of_trainings_survive_their_worker_where_it_sees_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    from neurograft_experiments import workbench

    store = Store(tmp_path / "store")
    store.prepare()
    seen = []
    for sign in (store.sign(), "that of another folder"):
        workbench._own_store.cache_clear()
        perform(
            errands(1, 0)[0],
            lambda task, own, _: seen.append(own.unfinished_path(task.key)),
            1,
            Home(store.folder, sign),
            {},
        )
        workbench._LIVING.pop().release()
    workbench._own_store.cache_clear()
    assert seen[0] == store.unfinished_path("m0")
    assert tmp_path / "store" not in seen[1].parents


def test_cpus_are_those_this_process_may_use():
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
