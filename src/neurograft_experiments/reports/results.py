"""Result rows grouped over seeds, in a pandas frame, with the rows that are still missing in their places."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas

from neurograft.errors import InputError
from neurograft_experiments.reports.settings import ComparisonSetting, named, setting_of, text_of
from neurograft_experiments.rows import BEST, ENSEMBLE

RECOVERIES = {"none": "as it is", "batch_norm": "BatchNorm", "repair": "REPAIR", "data_free": "REPAIR without data"}
"""Recoveries that are called otherwise by people."""
REFERENCES = ("ensemble", "combine", "pooled")
"""Starts that are several times the size of a member, or were trained on the images of all members."""
SHARES = ("accuracy", "validation")
"""Measures that are shares of images."""
MOST = 1e15
"""Numbers that are larger were not measured."""
CERTAINTY = 2.0
"""Standard errors that a difference must exceed."""


@dataclass(frozen=True, slots=True)
class Which:
    """A row of a comparison: how the network is made, recovered without training, and trained on."""

    row: str
    recovery: str = "none"
    tuning: str = "none"

    @property
    def start(self) -> str:
        """Its name but for the training.

        Example:
            >>> Which("optimal_transport", "refit", "distill").start
            'optimal transport + refit'
        """
        return " + ".join([self.row, *([self.recovery_words] if self.recovery != "none" else [])]).replace("_", " ")

    @property
    def recovery_words(self) -> str:
        """How it was recovered, in words."""
        return RECOVERIES.get(self.recovery, self.recovery)

    @property
    def member(self) -> bool:
        """Whether it is a single member, not chosen by anything."""
        return self.row.startswith("member ")


@dataclass(frozen=True, eq=False)
class RowGroup:
    """The results of one row of a comparison, one per seed.

    Attributes:
        number: in the frame.
        setting: what the comparison is made in.
        which: the row.
        rows: seed -> what was measured.
        missing: seed -> why there is nothing: "not run", or what failed.
    """

    number: int
    setting: ComparisonSetting
    which: Which
    rows: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)

    @property
    def reference(self) -> bool:
        """Whether the network is no choice, only a figure to compare with: the ensemble, or what saw all images."""
        starts = (row.get("configuration", {}).get("start") or {} for row in self.rows.values())
        return self.which.row == ENSEMBLE or any(start.get("method") in REFERENCES for start in starts)

    @property
    def diverged(self) -> bool:
        """Whether training diverged at every learning rate for some seed, so that the start itself was measured."""
        tried = (row.get("tried") for row in self.rows.values() if self.which.tuning != "none")
        return any(all(reached is None for _, reached in pairs) for pairs in tried if pairs)


@dataclass(frozen=True, slots=True)
class Figure:
    """A measure of a group over its seeds: mean and standard deviation, nan for too few."""

    mean: float = math.nan
    deviation: float = math.nan

    def __bool__(self) -> bool:
        return not math.isnan(self.mean)


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one figure is above another, and how much of that may be noise.

    Attributes:
        mean: of the differences, over the seeds that both have.
        noise: what it must exceed to count.
    """

    mean: float
    noise: float

    @property
    def sign(self) -> int:
        """1 above, -1 below, 0 not distinguishable."""
        return 0 if not abs(self.mean) > self.noise else 1 if self.mean > 0 else -1


@dataclass(frozen=True, eq=False)
class StudyResults:
    """All results of one study and preset.

    Attributes:
        groups: setting and row -> results over seeds, in the study's order.
    """

    groups: Mapping[tuple[ComparisonSetting, Which], RowGroup]
    _values: dict[str, pandas.DataFrame] = field(default_factory=dict)
    _figures: dict[str, dict[int, Figure]] = field(default_factory=dict)
    _wide: dict[str, tuple[pandas.DataFrame, pandas.Series]] = field(default_factory=dict)

    @cached_property
    def settings(self) -> tuple[ComparisonSetting, ...]:
        """Every setting, in order."""
        return tuple(dict.fromkeys(setting for setting, _ in self.groups))

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """The names of what differs between settings, without those that an earlier one determines."""
        columns: dict[str, list[str]] = {}
        for name in dict.fromkeys(name for setting in self.settings for name, _ in setting):
            values = [text_of(dict(setting).get(name)) for setting in self.settings]
            determined = any(len(set(zip(other, values, strict=True))) == len(set(other)) for other in columns.values())
            if len(set(values)) > 1 and not determined:
                columns[name] = values
        return tuple(columns)

    def find(self, setting: ComparisonSetting, which: Which) -> RowGroup | None:
        """The results of a row in a setting, None if the study has no such row."""
        return self.groups.get((setting, which))

    def in_setting(self, setting: ComparisonSetting) -> tuple[RowGroup, ...]:
        """All rows of a setting."""
        return tuple(group for (own, _), group in self.groups.items() if own == setting)

    def __iter__(self) -> Iterator[RowGroup]:
        return iter(self.groups.values())

    @property
    def rows(self) -> Iterator[Mapping[str, Any]]:
        """All rows that were measured."""
        for group in self:
            yield from group.rows.values()

    @property
    def missing(self) -> int:
        """How many results are not there."""
        return sum(len(group.missing) for group in self)

    @cached_property
    def frame(self) -> pandas.DataFrame:
        """A line per measured trial: its group's number, its seed, its curve, accuracies and number of test images."""
        columns = {"accuracy": "test.accuracy", "validation": "validation.accuracy", "samples": "test.samples"}
        lines = [
            {"group": group.number, "seed": seed, "curve": row.get("curve")}
            | {name: _number_at(row, path) for name, path in columns.items()}
            for group in self
            for seed, row in group.rows.items()
        ]
        frame = pandas.DataFrame(lines, columns=["group", "seed", "curve", *columns])
        return frame.assign(samples=frame.groupby("group")["samples"].transform("min"))

    def values(self, measure: str) -> pandas.DataFrame:
        """Columns `group`, `seed`, `samples` and `value`, a line per trial that has this measure.

        Args:
            measure: "accuracy" on the test images; "validation", the accuracy there; "epochs" of training until the
                validation accuracy first reaches the best member's (one more than there were if it never does); "won
                back" by recovering: (x − b) / (m − b) with x the accuracy of this network, b of the bare one, m of the
                best member, for seeds with b < m; or the dotted path of a number in a row.
        """
        if measure not in self._values:
            frame = self.frame
            if measure == "epochs":
                levels = self._beside(lambda _: Which(BEST), "validation")
                value = pandas.Series(map(_reached, frame["curve"], levels), frame.index, dtype=float)
            elif measure == "won back":
                bare = self._beside(lambda group: Which(group.which.row), "accuracy")
                best = self._beside(lambda _: Which(BEST), "accuracy")
                value = ((frame["accuracy"] - bare) / (best - bare)).where(bare < best)
            elif measure in SHARES:
                value = frame[measure]
            else:
                value = pandas.Series([_number_at(row, measure) for row in self.rows], frame.index, dtype=float)
            self._values[measure] = frame[["group", "seed", "samples"]].assign(value=value).dropna(subset="value")
        return self._values[measure]

    def _beside(self, which: Callable[[RowGroup], Which], column: str) -> pandas.Series:
        """Beside every line of the frame, a number of another row of the same setting and seed."""
        pairs = [(group.number, self.find(group.setting, which(group))) for group in self]
        numbers = self.frame["group"].map({number: other.number for number, other in pairs if other is not None})
        places = pandas.MultiIndex.from_arrays([numbers, self.frame["seed"]])
        found = self.frame.set_index(["group", "seed"])[column].reindex(places)
        return pandas.Series(found.to_numpy(), self.frame.index)

    def figure(self, group: RowGroup | None, measure: str = "accuracy") -> Figure:
        """One measure of a group over its seeds.

        Raises:
            InputError: if a row has no such number.
        """
        if group is None or not group.rows:
            return Figure()
        if measure not in self._figures:
            by = self.values(measure).groupby("group")["value"]
            self._figures[measure] = {n: Figure(*line) for n, *line in by.agg(["mean", "std"]).itertuples()}
        found = self._figures[measure].get(group.number)
        if found is None and measure not in ("epochs", "won back"):
            raise InputError(f"the rows of {group.which.start!r} have no number {measure!r}")
        return found or Figure()

    def differences(
        self, pairs: Sequence[tuple[RowGroup | None, RowGroup | float | None]], measure: str = "accuracy"
    ) -> list[Difference | None]:
        """For each pair, the first minus the second; None if they share no seed, or one is not there.

        With d_s the differences of the n seeds that both have, s their standard deviation, t Student's 97.5 % quantile
        for n − 1 degrees of freedom, p and q the mean shares of right outputs on N test images:

            noise² = (t · s)² / n  +  2² · (p (1 − p) + q (1 − q)) / (n · N)

        The first term is the noise over seeds (unknown, so left out, for a single seed), the second that of the test
        set's size; it is left out for measures that are no shares of images, and against a number.
        """
        from scipy.stats import t

        if measure not in self._wide:
            own = self.values(measure)
            samples = own.groupby("group")["samples"].first()
            self._wide[measure] = own.pivot(index="seed", columns="group", values="value"), samples
        wide, samples = self._wide[measure]
        if wide.empty:
            return [None] * len(pairs)
        numbers = [[_number(side) for side in sides] for sides in zip(*pairs, strict=True)] if pairs else [[], []]
        p, q = (wide.reindex(columns=side).to_numpy(copy=True) for side in numbers)  # shape (seeds, pairs)
        for place, (_, side) in enumerate(pairs):
            if isinstance(side, (int, float)):
                q[:, place] = side
        gaps = pandas.DataFrame(p - q)
        n = gaps.count()
        squared = (t.ppf(0.975, n - 1) * gaps.std()).fillna(0.0) ** 2 / n
        if measure in SHARES:
            means = [pandas.DataFrame(side).where(gaps.notna()).mean() for side in (p, q)]
            images = [samples.reindex(side).to_numpy() for side in numbers]
            binomial = [mean * (1 - mean) / count for mean, count in zip(means, images, strict=True)]
            squared += (CERTAINTY**2 * (binomial[0] + binomial[1]) / n).fillna(0.0)
        found = zip(n, gaps.mean(), squared**0.5, strict=True)
        return [Difference(mean, noise) if count else None for count, mean, noise in found]


def _number(of: RowGroup | float | None) -> float:
    return of.number if isinstance(of, RowGroup) else math.nan


def _number_at(row: Mapping[str, Any], path: str) -> float:
    """The number at a dotted path, nan where there is none."""
    value: Any = row
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and abs(value) < MOST else math.nan


def _reached(curve: Sequence[float], level: float) -> float:
    if math.isnan(level):
        return math.nan
    return next((epoch for epoch, accuracy in enumerate(curve) if accuracy >= level), len(curve))


def collect(
    expected: Iterable[Mapping[str, Any]], rows: Mapping[str, Mapping[str, Any]], failures: Mapping[str, str] = {}
) -> StudyResults:
    """RowGroup results over seeds.

    Args:
        expected: the labels of every trial that the study has (`row`, `recovery`, `tuning`, `seed`, `network`, …),
            with its `key`.
        rows: key -> what was measured.
        failures: key -> why a trial has no row, for those that were tried.

    Raises:
        InputError: if two trials have the same labels but different keys.

    Example:
        >>> labels = {"row": "average", "recovery": "none", "tuning": "none", "members": 2}
        >>> found = collect([labels | {"seed": s, "key": str(s)} for s in (0, 1)], {"0": {"test": {"accuracy": 0.9}}})
        >>> [(group.which.start, len(group.rows), group.missing) for group in found]
        [('average', 1, {1: 'not run'})]
    """
    groups: dict[tuple[ComparisonSetting, Which], RowGroup] = {}
    for labels in expected:
        setting = setting_of(labels)
        which = Which(labels["row"], labels.get("recovery", "none"), labels.get("tuning", "none"))
        group = groups.setdefault((setting, which), RowGroup(len(groups), setting, which))
        seed, key = labels.get("seed", 0), labels["key"]
        if seed in group.rows or seed in group.missing:
            raise InputError(
                f"two trials are both called {which.start!r}, {named(setting)}, seed {seed}; give one of them another "
                "name"
            )
        if key in rows:
            group.rows[seed] = {**rows[key], **labels}
        else:
            group.missing[seed] = failures.get(key, "not run")
    return StudyResults(groups)
