"""Whether a paper's claim held in the rows that were measured, and by how much."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from neurograft.errors import StudyError
from neurograft.reporting.tables import Table
from neurograft_experiments.claims import Claim, ClaimSide, Relation
from neurograft_experiments.reports.measures import TUNINGS, measure_named
from neurograft_experiments.reports.results import Difference, Figure, RowGroup, StudyResults, Which
from neurograft_experiments.reports.settings import SAME, ComparisonSetting, named, text_of
from neurograft_experiments.reports.tables import digits_of

HOLDS: dict[Relation, tuple[int, ...]] = {
    "above": (1,),
    "below": (-1,),
    "not above": (-1, 0),
    "not below": (0, 1),
    "equal": (0,),
}
"""Relation -> the signs of a difference that meet it."""
STATES = ("held", "held in part", "did not hold", "not measured")


@dataclass(frozen=True, eq=False)
class Finding:
    """A claim in one setting.

    Attributes:
        setting: what both figures have in common.
        figure: what the claim is about, over seeds.
        against: what it is compared with.
        difference: between them, None where one was not measured.
        holds: whether the claimed relation is there, None where it was not measured.
        chosen: the value of `best_over` that validation chose, where the claim has one.
    """

    setting: ComparisonSetting
    figure: Figure
    against: Figure | float
    difference: Difference | None
    holds: bool | None
    chosen: str = ""


@dataclass(frozen=True, eq=False)
class Verdict:
    """A claim and what was found of it, setting by setting."""

    claim: Claim
    findings: tuple[Finding, ...]

    @property
    def state(self) -> str:
        """One of `STATES`."""
        held = [finding.holds for finding in self.findings if finding.holds is not None]
        return STATES[3 if not held else 0 if all(held) else 1 if any(held) else 2]

    @property
    def text(self) -> str:
        """The verdict in a few words, with the number of settings."""
        held = [finding.holds for finding in self.findings if finding.holds is not None]
        missing = len(self.findings) - len(held)
        more = f"; {missing} more not measured" if missing and held else ""
        if len(held) < 2:
            return self.state + more
        if sum(held) in (0, len(held)):
            return f"{self.state} in {'both' if len(held) == 2 else f'all {len(held)}'} settings{more}"
        return f"held in {sum(held)} of {len(held)} settings{more}"

    @property
    def difference_text(self) -> str:
        """The differences behind the verdict in words."""
        gaps = [finding.difference for finding in self.findings if finding.difference is not None]
        measure = measure_named(self.claim.measure)
        if len(gaps) < 2:
            return f"{measure.gap(gaps[0])} {measure.unit}".strip() if gaps else "–"
        low, *_, high = sorted(gap.mean * measure.scale for gap in gaps)
        words = f"{low:+.{measure.digits}f} to {high:+.{measure.digits}f} {measure.unit}"
        return words.replace("-", "−").strip()


def judge(claim: Claim, results: StudyResults) -> Verdict:
    """Compare the claim's figures in every setting that the study has.

    A setting is what both figures have in common: fields that one of them fixes by its own `where`, or that validation
    chooses by `best_over`, do not belong to it.

    Raises:
        StudyError: if what a figure is compared with is not one row per setting.
    """
    against = claim.against if isinstance(claim.against, ClaimSide) else None
    own = {SAME.get(name, name) for side in (claim.figure, against) if side is not None for name in _fixed(side)}
    left = _candidates(results, claim.figure, claim.where, own)
    right = _candidates(results, against, claim.where, own) if against is not None else {}
    found = []
    for setting, groups in left.items():
        other: RowGroup | float | None = None
        if isinstance(claim.against, ClaimSide):
            other = _chosen(results, claim, claim.against, right.get(setting, []))
        else:
            other = claim.against
        for candidates in [groups] if claim.figure.best_over is not None else [[group] for group in groups]:
            shown = setting if len(candidates) > 1 or len(groups) == 1 else candidates[0].setting
            found.append((shown, _chosen(results, claim, claim.figure, candidates), other))
    gaps = results.differences([(one, other) for _, one, other in found], claim.measure)
    return Verdict(claim, tuple(_finding(results, claim, *line, gap) for line, gap in zip(found, gaps, strict=True)))


def _finding(
    results: StudyResults,
    claim: Claim,
    setting: ComparisonSetting,
    one: RowGroup | None,
    other: RowGroup | float | None,
    gap: Difference | None,
) -> Finding:
    name = SAME.get(claim.figure.best_over or "", claim.figure.best_over)
    chosen = text_of(dict(one.setting).get(name, "")) if name is not None and one is not None else ""
    against = other if isinstance(other, float) else results.figure(other, claim.measure)
    holds = None if gap is None else replace(gap, mean=gap.mean + claim.margin).sign in HOLDS[claim.holds_if]
    return Finding(setting, results.figure(one, claim.measure), against, gap, holds, chosen)


def _fixed(side: ClaimSide) -> Iterator[str]:
    yield from side.where
    if side.best_over is not None:
        yield side.best_over


def _candidates(
    results: StudyResults, side: ClaimSide, where: Mapping[str, Any], own: set[str]
) -> dict[ComparisonSetting, list[RowGroup]]:
    """Common setting -> the rows a figure may be taken from there."""
    wanted = Which(side.row, side.recovery, side.tuning)
    found: dict[ComparisonSetting, list[RowGroup]] = {}
    for group in results:
        if group.which == wanted and _matches(group.setting, {**where, **side.where}):
            common = tuple((name, value) for name, value in group.setting if name not in own)
            found.setdefault(common, []).append(group)
    return found


def _matches(setting: ComparisonSetting, where: Mapping[str, Any]) -> bool:
    values = dict(setting)
    places = {name if name in values else SAME.get(name, name): wanted for name, wanted in where.items()}
    return all(name in values and text_of(values[name]) == text_of(wanted) for name, wanted in places.items())


def _chosen(results: StudyResults, claim: Claim, side: ClaimSide, groups: list[RowGroup]) -> RowGroup | None:
    """The row that a figure is taken from: of several, the one that validation prefers."""
    trials = {frozenset(row["key"] for row in group.rows.values()) for group in groups}
    if len(trials) > 1 and side.best_over is None:
        found = "; ".join(named(group.setting) for group in groups)
        raise StudyError(
            f"claim {claim.text!r}: {side.row!r} stands for several rows at once ({found}); name in its `where` which "
            "of them, or in `best_over` what validation may choose"
        )
    measured = [group for group in groups if group.rows]
    if len(measured) < 2:
        return measured[0] if measured else None
    return max(measured, key=lambda group: results.figure(group, "validation").mean)


def claims_table(verdicts: Sequence[Verdict]) -> Table:
    """Each claim, whether it held, and by how much."""
    return Table(
        title="Claims and measurements",
        columns=("claim", "source", "verdict", "by how much"),
        rows=tuple((v.claim.text, v.claim.source, v.text, v.difference_text) for v in verdicts),
        note=(
            "By how much: the claimed figure minus what it is compared with, ± what a difference must exceed to count "
            "(noise over seeds and of the test set's size); several settings: from the lowest to the highest."
        ),
    )


def findings_table(results: StudyResults, verdict: Verdict) -> Table:
    """A claim, setting by setting: both figures, their difference, its noise, and whether the relation is there."""
    claim, measure = verdict.claim, measure_named(verdict.claim.measure)
    digits = digits_of(list(results)) if claim.measure == "accuracy" else None
    rows = []
    for finding in verdict.findings:
        name = named(finding.setting, results.varying) or named(finding.setting) or "all"
        figures = [measure.shown(figure, digits) for figure in (finding.figure, finding.against)]
        gap = measure.gap(finding.difference) if finding.difference is not None else "–"
        word = {True: "yes", False: "no", None: "not measured"}[finding.holds]
        rows.append((f"{name}, at {finding.chosen}" if finding.chosen else name, *figures, gap, word))
    against = "a number of ours" if isinstance(claim.against, float) else _words(claim.against)
    unit = measure.unit or claim.measure
    columns = ("setting", _words(claim.figure), against, f"difference ± noise, {unit}", f"{claim.holds_if}?")
    return Table(title="", columns=columns, rows=tuple(rows), numeric=4)


def _words(side: ClaimSide) -> str:
    """A claim's figure in words."""
    which = Which(side.row, side.recovery, side.tuning)
    parts = [which.start, *([TUNINGS[side.tuning]] if side.tuning != "none" else [])]
    return ", ".join([*parts, *([named(tuple(side.where.items()))] if side.where else [])])
