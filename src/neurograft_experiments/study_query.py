"""Studies by name or file, seeds, and trials by label, turned into tasks."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from neurograft.errors import InputError, OptionError, StudyError
from neurograft.escaping import named
from neurograft.factories import find_factory
from neurograft_experiments.data.loading import SPLIT_SEED, find
from neurograft_experiments.engine import TaskQueue
from neurograft_experiments.networks import is_factory
from neurograft_experiments.store import Store
from neurograft_experiments.study import MOST_SEED, MOST_SEEDS
from neurograft_experiments.study_file import Study, load_study, study_names
from neurograft_experiments.trials import Task, tasks_of

ALL = "all"


@dataclass(frozen=True, eq=False)
class StudyQuery:
    """One study and its tasks.

    Attributes:
        name: a name, or the path of a file, as it was given.
        study: what is in the file.
        tasks: members and trials, those of other studies included where they are the same.
    """

    name: str
    study: Study
    tasks: tuple[Task, ...]

    @property
    def trials(self) -> tuple[Task, ...]:
        """The tasks that give rows."""
        return tuple(task for task in self.tasks if task.kind == "trial")


def ask(
    studies: Sequence[str], preset: str, seeds: Sequence[int] | None = None, only: Sequence[str] = ()
) -> tuple[StudyQuery, ...]:
    """The tasks of studies.

    Args:
        studies: names, paths of YAML files, or "all"; of all studies, those without the preset are left out.
        preset: how long they may take.
        seeds: instead of the preset's own.
        only: patterns; trials whose label matches none of them are left out, with the members only they need.

    Raises:
        StudyError: a study is not known or not right, or has no such preset.
        OptionError: no trial matches.

    Example:
        >>> [asked.name for asked in ask(["comparison"], "smoke", seeds=[0])]
        ['comparison']
    """
    having = studies_named(studies, preset)
    found = tuple(StudyQuery(name, study, tasks_of(study, preset, seeds)) for name, study in having.items())
    _check_matches(found, only)
    return tuple(_matching(asked, only) for asked in found)


def studies_named(names: Sequence[str], preset: str | None = None) -> dict[str, Study]:
    """The named studies, by what they were called.

    Args:
        names: names, paths of YAML files, or "all".
        preset: of all studies those without it are left out; None for any.

    Raises:
        StudyError: a study is not known or not right, or has no such preset.
    """
    wanted = dict.fromkeys((*study_names(), *names) if ALL in names else names)
    loaded = {name: load_study(name) for name in wanted if name != ALL}
    if preset is None:
        return loaded
    for name in names:
        if name != ALL:
            loaded[name].points(preset)
    having = {name: study for name, study in loaded.items() if preset in study.presets}
    if not having:
        known = dict.fromkeys(name for study in loaded.values() for name in study.presets)
        raise StudyError(f"no study has a preset {preset!r}; there are {', '.join(known)}")
    return having


def _check_matches(found: Sequence[StudyQuery], only: Sequence[str]) -> None:
    trials = [task for asked in found for task in asked.trials]
    if only and not any(matches(task.label, only) for task in trials):
        raise OptionError(
            f"no trial matches --only {' '.join(only)}; of {len(trials)}, the first is called {trials[0].label!r} and "
            f"the last {trials[-1].label!r}"
        )


def _matching(asked: StudyQuery, only: Sequence[str]) -> StudyQuery:
    if not only:
        return asked
    trials = [task for task in asked.trials if matches(task.label, only)]
    needed = {key for task in trials for key in task.needs}
    members = [task for task in asked.tasks if task.key in needed]
    return StudyQuery(asked.name, asked.study, (*members, *trials))


def matches(label: str, patterns: Sequence[str]) -> bool:
    """Whether a label matches one of the patterns: as a whole if it has `*` or `?`, else anywhere in it.

    Example:
        >>> matches("mlp, digits, seed 0: transplant, distilled", ["Transplant"]), matches("mlp", ["*digits*"])
        (True, False)
    """
    lower = label.lower()
    return any(
        fnmatch(lower, pattern.lower()) if set("*?") & set(pattern) else pattern.lower() in lower
        for pattern in patterns
    )


def parse_seeds(text: str | None) -> list[int] | None:
    """Seeds from `5` (0 to 4), `3-5` or `0,7,9`.

    Raises:
        OptionError: if it cannot be read, or names more or larger seeds than a study may have.

    Example:
        >>> parse_seeds("3"), parse_seeds("3-5"), parse_seeds("7,"), parse_seeds("0,2-3")
        ([0, 1, 2], [3, 4, 5], [7], [0, 2, 3])
    """
    if text is None:
        return None
    try:
        parts = [f"0-{int(text) - 1}"] if text.strip().isdecimal() else filter(str.strip, text.split(","))
        ranges = [_range(part) for part in parts]
    except ValueError:
        ranges = []
    if not 0 < sum(map(len, ranges)) <= MOST_SEEDS:
        raise OptionError(
            f"--seeds '{named(text)}' names no seeds; write 5 (for 0 to 4), 3-5, or 0,7,9: at most {MOST_SEEDS:,}, all "
            f"below {MOST_SEED:,}"
        )
    return list(dict.fromkeys(seed for found in ranges for seed in found))


def _range(text: str) -> range:
    first, dash, last = text.strip().partition("-")
    start, stop = int(first), int(last if dash else first) + 1
    if not 0 <= start < stop <= MOST_SEED:
        raise ValueError
    return range(start, stop)


def check_factories(tasks: Sequence[Task]) -> None:
    """Import the factories that tasks name, before anything is trained.

    Raises:
        InputError: as `find_factory` of `neurograft.factories`.
    """
    networks = [entry["network"] for task in tasks for entry in (task.settings, *task.settings.get("members", ()))]
    for name in dict.fromkeys(network["name"] for network in networks if is_factory(network)):
        find_factory(name)


def check_data(tasks: Sequence[Task], data_folder: Path | None) -> None:
    """Find the data sets of tasks, without reading them: what is missing is reported before anything is trained.

    What fusing costs is measured on images made of random numbers.

    Raises:
        NeurograftError: as `find` of `neurograft_experiments.data.loading`, with what is missing and how to get it.
    """
    if data_folder is not None and not data_folder.is_dir():
        raise InputError(f"--data-folder {data_folder}: no such folder")
    sources = {task.settings["data"]["source"] for task in tasks if "costs" not in task.settings}
    for source in sorted(sources - {"digits"}):
        find(source, data_folder, SPLIT_SEED)


@dataclass(frozen=True, slots=True)
class StudyProgress:
    """How far a study is.

    Attributes:
        trials: how many there are.
        done: how many have rows.
        failed: how many failed last time and have no row.
        members: members that are still to be trained.
        epochs: of training that are left, those of members included.
    """

    trials: int
    done: int
    failed: int
    members: int
    epochs: int


def progress_of(tasks: Sequence[Task], store: Store) -> StudyProgress:
    """How far the tasks are done."""
    queue = TaskQueue(tasks, store)
    failed = {failure["key"] for failure in store.failures()}
    left = tuple(queue.pending.values())
    return StudyProgress(
        trials=queue.trials,
        done=queue.before,
        failed=sum(task.key in failed for task in left if task.kind == "trial"),
        members=sum(task.kind == "member" for task in left),
        epochs=sum(task.epochs for task in left),
    )
