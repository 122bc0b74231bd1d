"""Whether a paper's claim held in the rows that were measured, and by how much."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from neurograft.errors import StudyError
from neurograft_experiments.claims import Claim, Figure, Relation
from neurograft_experiments.reports.measures import Difference, Summary, difference, summary
from neurograft_experiments.reports.results import Group, Results, Setting, Which, named, text_of

ALIASES = {"members.count": "members", "network.name": "network", "data.source": "data"}


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

    setting: Setting
    figure: Summary
    against: Summary | float
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
        """One of "held", "held in part", "did not hold", "not measured"."""
        held = [finding.holds for finding in self.findings if finding.holds is not None]
        if not held:
            return "not measured"
        return "held" if all(held) else "held in part" if any(held) else "did not hold"

    @property
    def text(self) -> str:
        """The verdict in a few words, with the number of settings."""
        measured = [finding for finding in self.findings if finding.holds is not None]
        held = sum(bool(finding.holds) for finding in measured)
        missing = len(self.findings) - len(measured)
        if not measured:
            return self.state
        more = f"; {missing} more not measured" if missing else ""
        if len(measured) == 1:
            return self.state + more
        if held in (0, len(measured)):
            return f"{self.state} in {_all(len(measured))} settings{more}"
        return f"held in {held} of {len(measured)} settings{more}"


def judge(claim: Claim, results: Results) -> Verdict:
    """Compare the claim's figures in every setting that the study has.

    A setting is what both figures have in common: fields that one of them fixes by its own `where`, or that validation
    chooses by `best_over`, do not belong to it.

    Raises:
        StudyError: if what a figure is compared with is not one row per setting.
    """
    against = claim.against if isinstance(claim.against, Figure) else None
    own = {ALIASES.get(name, name) for side in (claim.figure, against) if side is not None for name in _fixed(side)}
    left = _candidates(results, claim.figure, claim.where, own)
    right = _candidates(results, against, claim.where, own) if against is not None else {}
    findings = []
    for setting, groups in left.items():
        others = None if against is None else right.get(setting, [])
        for candidates in [groups] if claim.figure.best_over is not None else [[group] for group in groups]:
            shown = setting if len(candidates) > 1 or len(groups) == 1 else candidates[0].setting
            findings.append(_finding(results, claim, shown, candidates, others))
    return Verdict(claim, tuple(findings))


def _finding(
    results: Results, claim: Claim, setting: Setting, groups: list[Group], others: list[Group] | None
) -> Finding:
    figure, chosen = _figure(results, claim, claim.figure, groups)
    other: Summary | float
    if isinstance(claim.against, Figure):
        other, _ = _figure(results, claim, claim.against, others or [])
        gap = difference(figure, other)
    else:
        other = claim.against
        gap = difference(figure, Summary(dict.fromkeys(figure.values, claim.against)))
    with_margin = None if gap is None else replace(gap, mean=gap.mean + claim.margin)
    holds = None if with_margin is None else _holds(claim.holds_if, with_margin.sign)
    return Finding(setting, figure, other, gap, holds, chosen)


def _fixed(figure: Figure) -> Iterator[str]:
    yield from figure.where
    if figure.best_over is not None:
        yield figure.best_over


def _candidates(
    results: Results, figure: Figure, where: Mapping[str, Any], own: set[str]
) -> dict[Setting, list[Group]]:
    """Common setting -> the rows a figure may be taken from there."""
    wanted = Which(figure.row, figure.recovery, figure.tuning)
    found: dict[Setting, list[Group]] = {}
    for group in results:
        if group.which == wanted and _matches(group.setting, {**where, **figure.where}):
            common = tuple((name, value) for name, value in group.setting if name not in own)
            found.setdefault(common, []).append(group)
    return found


def _matches(setting: Setting, where: Mapping[str, Any]) -> bool:
    values = dict(setting)
    for name, wanted in where.items():
        name = name if name in values else ALIASES.get(name, name)
        if name not in values or text_of(values[name]) != text_of(wanted):
            return False
    return True


def _figure(results: Results, claim: Claim, figure: Figure, groups: list[Group]) -> tuple[Summary, str]:
    """The figure over seeds, and what validation chose where it had a choice."""
    trials = {frozenset(row["key"] for row in group.rows.values()) for group in groups}
    if len(trials) > 1 and figure.best_over is None:
        found = "; ".join(named(group.setting) for group in groups)
        raise StudyError(
            f"claim {claim.text!r}: {figure.row!r} stands for several rows at once ({found}); say in its `where` which "
            "of them, or in `best_over` what validation may choose"
        )
    measured = [group for group in groups if group.rows]
    if not measured:
        return Summary({}), ""
    best = measured[0]
    if len(measured) > 1:
        best = max(measured, key=lambda group: summary(results, group, split="validation").mean)
    value = dict(best.setting).get(ALIASES.get(figure.best_over or "", figure.best_over or ""), "")
    shown = text_of(value) if figure.best_over is not None else ""
    return summary(results, best, claim.measure), shown


def _holds(relation: Relation, sign: int) -> bool:
    return {
        "above": sign > 0,
        "below": sign < 0,
        "not above": sign <= 0,
        "not below": sign >= 0,
        "equal": sign == 0,
    }[relation]


def _all(count: int) -> str:
    return "both" if count == 2 else f"all {count}"


def setting_name(results: Results, setting: Setting) -> str:
    """A setting in words: what varies in the study, or everything if nothing does."""
    return named(setting, results.varying) or named(setting)
