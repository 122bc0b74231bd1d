"""All rows of a study, for tests of trials."""

from neurograft_experiments.engine import run_in_process
from neurograft_experiments.running import run_task
from neurograft_experiments.store import Store
from neurograft_experiments.trials import study_rows, tasks_of


def prepared(folder):
    store = Store(folder)
    store.prepare()
    return store


def run_study(study, preset, folder, seeds=None):
    """All rows of a study, under its own labels."""
    store = prepared(folder)
    run_in_process(tasks_of(study, preset, seeds), store, run_task)
    for failure in store.failures():
        raise AssertionError(failure["trace"])
    return study_rows(study, preset, store, seeds)
