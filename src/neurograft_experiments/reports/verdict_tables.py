"""Verdicts on claims as tables."""

from neurograft.reporting.tables import Table
from neurograft_experiments.claims import Figure
from neurograft_experiments.reports.measures import measure_named
from neurograft_experiments.reports.panels import TUNINGS
from neurograft_experiments.reports.results import Results, Which, named
from neurograft_experiments.reports.tables import digits_of, spread_text
from neurograft_experiments.reports.verdicts import Finding, Verdict, setting_name


def claims_table(verdicts: tuple[Verdict, ...]) -> Table:
    """Each claim, whether it held, and by how much."""
    return Table(
        title="Claims and measurements",
        columns=("claim", "source", "verdict", "by how much"),
        rows=tuple((v.claim.text, v.claim.source, v.text, how_much(v)) for v in verdicts),
        note=(
            "By how much: the claimed figure minus what it is compared with, ± what a difference must exceed to count "
            "(noise over seeds and of the test set's size); several settings: from the lowest to the highest."
        ),
    )


def how_much(verdict: Verdict) -> str:
    """The differences behind a verdict in words."""
    gaps = [finding.difference for finding in verdict.findings if finding.difference is not None]
    if not gaps:
        return "–"
    measure = measure_named(verdict.claim.measure)
    if len(gaps) == 1:
        return f"{gap_text(verdict.findings, verdict.claim.measure)} {measure.unit}".strip()
    ordered = sorted(gap.mean * measure.scale for gap in gaps)
    digits = measure.digits
    return f"{ordered[0]:+.{digits}f} to {ordered[-1]:+.{digits}f} {measure.unit}".replace("-", "−").strip()


def gap_text(findings: tuple[Finding, ...], measure: str) -> str:
    """The first difference of some findings with its noise.

    Example:
        >>> from neurograft_experiments.reports.measures import Difference, Summary
        >>> one = Finding((), Summary({0: 0.9}), Summary({0: 0.91}), Difference(-0.01, 0.02, 1), False)
        >>> gap_text((one,), "accuracy")
        '−1.00 ± 2.00'
    """
    gap = next(finding.difference for finding in findings if finding.difference is not None)
    how = measure_named(measure)
    return f"{how.scale * gap.mean:+.{how.digits}f} ± {how.scale * gap.noise:.{how.digits}f}".replace("-", "−")


def findings_table(results: Results, verdict: Verdict) -> Table:
    """A claim, setting by setting: both figures, their difference, its noise, and whether the relation is there."""
    claim = verdict.claim
    unit = measure_named(claim.measure).unit or claim.measure
    rows = tuple(_line(results, verdict, finding) for finding in verdict.findings)
    against = "a number of ours" if isinstance(claim.against, float) else _side(claim.against)
    return Table(
        title="",
        columns=("setting", _side(claim.figure), against, f"difference ± noise, {unit}", f"{claim.holds_if}?"),
        rows=rows,
        numeric=4,
    )


def _line(results: Results, verdict: Verdict, finding: Finding) -> tuple[str, ...]:
    measure, how = verdict.claim.measure, measure_named(verdict.claim.measure)
    digits, scale = (digits_of(list(results)) if measure == "accuracy" else how.digits), how.scale
    name = setting_name(results, finding.setting) or "all"
    shown = f"{name}, at {finding.chosen}" if finding.chosen else name
    against = (
        f"{finding.against:g}" if isinstance(finding.against, float) else spread_text(finding.against, digits, scale)
    )
    answer = {True: "yes", False: "no", None: "not measured"}[finding.holds]
    gap = gap_text((finding,), measure) if finding.difference is not None else "–"
    return shown, spread_text(finding.figure, digits, scale), against, gap, answer


def _side(figure: Figure) -> str:
    """A claim's figure in words."""
    which = Which(figure.row, figure.recovery, figure.tuning)
    parts = [which.start] if figure.tuning == "none" else [which.start, TUNINGS[figure.tuning]]
    return ", ".join([*parts, *([named(tuple(figure.where.items()))] if figure.where else [])])
