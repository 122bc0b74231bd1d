"""Figures with their spread over seeds, and when two of them are equal."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from neurograft.errors import InputError
from neurograft_experiments.reports.results import BEST, Group, Results, Which

CERTAINTY = 2.0
"""Standard errors that a difference must exceed."""


@dataclass(frozen=True, slots=True)
class Measure:
    """How people read a number of a row.

    Attributes:
        words: what it is, with the unit of a value.
        scale: what values are multiplied with.
        unit: of a difference.
        digits: decimals.
    """

    words: str
    scale: float = 1.0
    unit: str = ""
    digits: int = 3


MEASURES = {
    "accuracy": Measure("test accuracy in %", 100, "points", 2),
    "won back": Measure("won back of what fusing lost against the best member, in %", 100, "%", 0),
    "epochs": Measure("epochs until validation first reaches the best member", 1, "epochs", 1),
    "seconds.fuse": Measure("seconds of fusing", 1, "s"),
    "seconds.tune": Measure("seconds of training", 1, "s", 1),
    "memory": Measure("memory of fusing beyond the members, MB", 1e-6, "MB", 1),
}


def measure_named(path: str) -> Measure:
    """How to read a measure; one that is not known is a plain number.

    Example:
        >>> measure_named("memory").unit, measure_named("seconds.trace").words
        ('MB', 'seconds.trace')
    """
    return MEASURES.get(path, Measure(path))


@dataclass(frozen=True, slots=True)
class Summary:
    """A figure over seeds.

    Attributes:
        values: seed -> value.
        samples: test images that each value was measured on, 0 if it is no share of images.
    """

    values: Mapping[int, float]
    samples: int = 0

    @property
    def mean(self) -> float:
        """The mean over seeds, nan if there are none.

        Example:
            >>> Summary({0: 0.9, 1: 0.92}).mean
            0.91
        """
        return sum(self.values.values()) / len(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """The standard deviation over seeds, `√(Σ (x − mean)² / (n − 1))`; nan for fewer than two.

        Example:
            >>> round(Summary({0: 0.9, 1: 0.92, 2: 0.94}).deviation, 6)
            0.02
        """
        n, mean = len(self.values), self.mean
        return math.sqrt(sum((x - mean) ** 2 for x in self.values.values()) / (n - 1)) if n > 1 else math.nan

    def __bool__(self) -> bool:
        return bool(self.values)


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one figure is above another, and how much of that may be noise.

    Attributes:
        mean: of the differences, over the seeds that both have.
        noise: what it must exceed to count.
        seeds: how many both have.
    """

    mean: float
    noise: float
    seeds: int

    @property
    def sign(self) -> int:
        """1 above, -1 below, 0 not distinguishable."""
        return 0 if not abs(self.mean) > self.noise else 1 if self.mean > 0 else -1


def difference(one: Summary, other: Summary) -> Difference | None:
    """`one` minus `other`, None if they share no seed.

    With d_s the differences of the n seeds that both have, s their standard deviation, t Student's 97.5 % quantile for
    n − 1 degrees of freedom, p and q the mean shares of right answers on N test images:

        noise² = (t · s)² / n  +  2² · (p (1 − p) + q (1 − q)) / (n · N)

    The first term is the noise over seeds (unknown, so left out, for a single seed), the second that of the test set's
    size; it is left out for figures that are no shares.

    Example:
        >>> found = difference(Summary({0: 0.95}, 1000), Summary({0: 0.94}, 1000))
        >>> round(found.mean, 4), round(found.noise, 4), found.sign
        (0.01, 0.0204, 0)
    """
    seeds = sorted(one.values.keys() & other.values.keys())
    n = len(seeds)
    if n == 0:
        return None
    gaps = Summary({seed: one.values[seed] - other.values[seed] for seed in seeds})
    squared = 0.0
    if n > 1:
        from scipy.stats import t

        squared += float(t.ppf(0.975, n - 1)) ** 2 * gaps.deviation**2 / n
    if one.samples and other.samples:
        pairs = ((one, one.samples), (other, other.samples))
        for summary, samples in pairs:
            share = sum(summary.values[seed] for seed in seeds) / n
            squared += CERTAINTY**2 * share * (1 - share) / (n * samples)
    return Difference(gaps.mean, math.sqrt(squared), n)


def summary(results: Results, group: Group, measure: str = "accuracy", split: str = "test") -> Summary:
    """One measure of a row, over seeds.

    Args:
        results: where "epochs" finds the best member.
        group: the row.
        measure: "accuracy"; "epochs", of training until the validation accuracy first reaches the best member's (one
            more than there were if it never does); "won back", by recovering: (x − b) / (m − b) with x the accuracy of
            this network, b of the bare one, m of the best member, for seeds with b < m; or the dotted path of a number
            in a row.
        split: which split's accuracy.

    Raises:
        InputError: if a row has no such number.
    """
    if measure == "accuracy":
        scores = {seed: row[split] for seed, row in group.rows.items()}
        samples = min((int(score["samples"]) for score in scores.values()), default=0)
        return Summary({seed: float(score["accuracy"]) for seed, score in scores.items()}, samples)
    if measure == "epochs":
        best = results.find(group.setting, Which(BEST))
        return Summary({} if best is None else dict(_epochs(group, best)))
    if measure == "won back":
        return Summary(dict(_won_back(results, group, split)))
    return Summary({seed: _number(row, measure, group) for seed, row in group.rows.items()})


def _won_back(results: Results, group: Group, split: str) -> Iterator[tuple[int, float]]:
    best = results.find(group.setting, Which(BEST))
    bare = results.find(group.setting, Which(group.which.row))
    if best is None or bare is None:
        return
    for seed in sorted(group.rows.keys() & bare.rows.keys() & best.rows.keys()):
        x, b, m = (float(own.rows[seed][split]["accuracy"]) for own in (group, bare, best))
        if b < m:
            yield seed, (x - b) / (m - b)


def _epochs(group: Group, best: Group) -> list[tuple[int, float]]:
    found = []
    for seed, row in group.rows.items():
        if seed in best.rows:
            level, curve = best.rows[seed]["validation"]["accuracy"], row["curve"]
            reached = (epoch for epoch, accuracy in enumerate(curve) if accuracy >= level)
            found.append((seed, float(next(reached, len(curve)))))
    return found


def _number(row: Mapping[str, Any], path: str, group: Group) -> float:
    value: Any = row
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"the rows of {group.which.start!r} have no number {path!r} (found {value!r})")
    return float(value)
