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
from neurograft_experiments.engine import run_in_process
from neurograft_experiments.store import Store

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
from rich.console import Console
from neurograft_experiments.cluster import run_on_ray
from neurograft_experiments.store import Store
from tests.experiments.errands import do, errands

folder, log, seconds, deadly, failing, retries = sys.argv[1:]


def more(task):
    return {"log": log, "seconds": float(seconds), "dies": task.key == deadly, "fails": task.key == failing}


tasks = [replace(task, settings={**task.settings, **more(task)}) for task in errands()]
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

    def start_one(*, seconds=0.0, deadly="none", failing="none", retries=2):
        arguments = [tmp_path / "store", tmp_path / "log", seconds, deadly, failing, retries]
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
    runs = Counter(key for key, _ in starts(log))
    assert {key for key, count in runs.items() if count > 1} == {"m1", "t1-2"}
    assert runs.total() == len(errands()) + 2


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
def test_a_trial_that_raises_is_written_down_with_its_place(start, tmp_path):
    process = start(failing="t1-2")
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 0, out
    assert "FAILED trial 2 of 1: RuntimeError: no such luck" in out
    (failure,) = Store(tmp_path / "store").failures()
    assert failure["error"] == "RuntimeError: no such luck\nat all"
    assert "errands.py" in failure["trace"]


@pytest.mark.slow
def test_the_whole_run_killed_goes_on_and_leaves_no_process(start, tmp_path, undisturbed):
    process, log = start(seconds=0.3), tmp_path / "log"
    wait_for(lambda: Store(tmp_path / "store").rows(), process)
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


def test_cpus_are_those_this_process_may_use():
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
