"""A store in memory, for tests of trials."""

from neurograft_experiments.running import run_task
from neurograft_experiments.trials import study_rows, tasks_of


class MemoryStore:
    def __init__(self, folder):
        self.folder = folder
        self.done = {}

    def has(self, key):
        return key in self.done

    def row(self, key):
        return self.done[key]

    def member_path(self, key):
        return self.folder / f"{key}.safetensors"

    def unfinished_path(self, key):
        return self.folder / "unfinished" / f"{key}.pt"


def run_study(study, preset, folder, seeds=None):
    """All rows of a study, under its own labels."""
    store = MemoryStore(folder)
    for task in tasks_of(study, preset, seeds):
        assert all(store.has(key) for key in task.needs)
        store.done[task.key] = run_task(task, store)
    return study_rows(study, preset, store, seeds)
