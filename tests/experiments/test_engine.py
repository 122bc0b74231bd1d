import errno
import io
import multiprocessing
import os
import random
from collections import Counter
from dataclasses import replace

import pytest
from rich.console import Console
from tests.experiments.errands import Errand, do, errands, table

from neurograft.errors import StoreError
from neurograft_experiments.engine import run_in_process
from neurograft_experiments.store import Store


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.prepare()
    return store


@pytest.fixture
def undisturbed(tmp_path):
    store = Store(tmp_path / "undisturbed")
    store.prepare()
    run_in_process(errands(), store, do)
    return table(store)


def with_settings(tasks, **settings):
    return tuple(replace(task, settings={**task.settings, **settings}) for task in tasks)


def done(log):
    return Counter(line.split()[0] for line in log.read_text().splitlines())


def test_members_come_first_and_every_trial_has_a_row(store, undisturbed):
    outcome = run_in_process(tuple(reversed(errands())), store, do)
    assert (outcome.trials, outcome.before, outcome.done, outcome.left) == (12, 0, 12, 0)
    assert table(store) == undisturbed
    assert undisturbed["t1-2"] == ((2 + 3) * 2, [4, 6])


def test_what_is_finished_never_runs_again(store, tmp_path):
    tasks = with_settings(errands(), log=str(tmp_path / "log"))
    run_in_process(tasks[:9], store, do)
    outcome = run_in_process(tasks, store, do)
    assert (outcome.before, outcome.done) == (6, 6)
    assert run_in_process(tasks, store, do).before == 12
    assert set(done(tmp_path / "log").values()) == {1}


def test_members_that_no_trial_needs_any_more_are_not_trained(store):
    tasks = errands()
    run_in_process(tasks, store, do)
    for number in range(3):
        store.member_path(f"m{number}").unlink()
    assert run_in_process(tasks, store, do).before == 12
    assert store.members() == ()


def test_a_failure_takes_only_those_down_that_need_it(store, undisturbed):
    tasks = [replace(task, settings={**task.settings, "fails": task.key in ("t0-1", "m2")}) for task in errands()]
    out = io.StringIO()
    outcome = run_in_process(tasks, store, do, console=Console(file=out, width=200))
    assert set(outcome.failed) == {"trial 1 of 0", "member 2"}
    assert len(outcome.skipped) == 8
    assert (outcome.done, outcome.left) == (3, 9)
    assert "FAILED member 2: RuntimeError: no such luck; 8 trials that need it left out" in out.getvalue()
    assert {failure["key"] for failure in store.failures()} == {"t0-1", "m2"}
    assert run_in_process(errands(), store, do).done == 9
    assert table(store) == undisturbed
    assert store.failures() == ()


def test_fail_fast_stops_at_the_first_failure(store):
    tasks = [replace(task, settings={**task.settings, "fails": task.key == "t0-1"}) for task in errands()]
    outcome = run_in_process(tasks, store, do, fail_fast=True)
    assert (outcome.failed, outcome.done, outcome.left) == (("trial 1 of 0",), 1, 11)


def test_lines_say_where_the_run_is(store):
    out = io.StringIO()
    run_in_process(errands(1, 2), store, do, console=Console(file=out, width=200))
    assert [line.split(" · ")[0] for line in out.getvalue().splitlines()] == [
        "[1/3] member 0",
        "[2/3] trial 0 of 0",
        "[3/3] trial 1 of 0",
    ]
    assert "left" in out.getvalue()


def test_a_terminal_gets_a_bar(store):
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True)
    run_in_process(with_settings(errands(1, 2), seconds=0.06), store, do, console=console)
    assert "2/3" in out.getvalue()
    assert "trial 1 of 0" in out.getvalue()


def test_an_interrupted_run_goes_on(store, undisturbed):
    def impatient(task, members, tick):
        if task.key == "t1-1":
            raise KeyboardInterrupt
        return do(task, members, tick)

    with pytest.raises(KeyboardInterrupt):
        run_in_process(errands(), store, impatient)
    assert 0 < len(store.rows()) < 12
    assert run_in_process(errands(), store, do).left == 0
    assert table(store) == undisturbed


def test_a_full_disk_ends_the_run_and_is_no_failure_of_the_trial(store, undisturbed):
    def full(task, store, tick):
        if task.key == "t1-1":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return do(task, store, tick)

    with pytest.raises(StoreError, match=r"trial 1 of 1: .*No space left.* Safe in .*store: 5 results and 3 members"):
        run_in_process(errands(), store, full)
    assert store.failures() == ()
    run_in_process(errands(), store, do)
    assert table(store) == undisturbed


def run_errands(folder, log):
    store = Store(folder)
    store.prepare()
    run_in_process(with_settings(errands(), log=log, seconds=0.02), store, do)


def test_killed_at_random_moments_it_ends_with_the_same_table(tmp_path, undisturbed):
    context = multiprocessing.get_context("fork")
    kills, folder, log = 0, tmp_path / "killed", tmp_path / "log"
    while len(Store(folder).rows()) < 12:
        process = context.Process(target=run_errands, args=(folder, str(log)))
        process.start()
        process.join(random.uniform(0.05, 0.15))
        kills += process.exitcode is None
        process.kill()
        process.join()
    assert kills > 1
    assert table(Store(folder)) == undisturbed
    assert sum(done(log).values()) <= len(errands()) + kills  # each kill costs one task, not more


def test_one_run_at_a_time_works_on_a_folder(store, undisturbed):
    with Store(store.folder).working(), pytest.raises(StoreError, match="another run is at work on .*--engine ray"):
        run_in_process(errands(), store, do)
    assert run_in_process(errands(), store, do).left == 0
    assert table(store) == undisturbed


def test_a_trial_whose_member_nobody_makes_is_a_mistake(store):
    with pytest.raises(KeyError, match="lonely needs m9"):
        run_in_process((Errand("t", "trial", "lonely", ("m9",)),), store, do)
