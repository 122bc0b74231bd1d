"""The tables of a study: accuracies with their spread and marks of equality, costs, epochs to recover."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from neurograft.reporting.tables import Table
from neurograft_experiments.reports.measures import Summary, difference, measure_named, summary
from neurograft_experiments.reports.panels import TUNINGS, Panel
from neurograft_experiments.reports.results import BEST, CONTINUE, ENSEMBLE, Group, Results, Setting, Which

MARKS = {1: " ↑", 0: " =", -1: " ↓"}
FINE = 5000
"""Test images from which on a second decimal says something."""
SIGNS = (
    "↑ above, ↓ below, = not distinguishable from its rival on the same budget: the best member for what is not "
    "trained further, the best member continued in the same way for what is. Bold: not distinguishable from the best "
    "network of a member's size, nor below its rival. Noise is that over seeds (Student's t; with few seeds much is "
    "noise) and of the test set's size, together. The best member is the one that validation prefers."
)

_NOTES = {"accuracy": (SIGNS,), "epochs": ("One epoch more than there were: never.",)}


def comparison_table(results: Results, panel: Panel) -> Table:
    """Test accuracies of a single setting.

    A line per start and a column per way of training on; where nothing is trained on, a column per recovery.
    """
    setting = panel.settings[0]
    lines, columns = _layout(panel.whiches(results), panel.tunings(results))
    digits = digits_of(results.in_setting(setting))
    lead = _leader(results, results.in_setting(setting))
    cells, strong = [], set()
    for r, (name, line) in enumerate(lines.items()):
        found = [name]
        for c, column in enumerate(columns.values(), 1):
            group = results.find(setting, replace(line, **column))
            found.append(cell(results, group, digits))
            if _level_with(results, group, lead):
                strong.add((r, c))
        cells.append(tuple(found))
    return Table(
        title=_title("Test accuracy in %", results, panel.settings),
        columns=("network", *columns),
        rows=tuple(cells),
        numeric=len(columns),
        strong=frozenset(strong),
        rules=_rules([line.row for line in lines.values()]),
        note=" ".join([SIGNS, *_footnotes(results, panel)]),
    )


def won_back_table(results: Results, panel: Panel) -> Table | None:
    """How much of what fusing lost each recovery of a single setting brought back; None if nothing was recovered."""
    setting = panel.settings[0]
    recovered = dict.fromkeys(w for w in panel.whiches(results) if w.recovery != "none" and w.tuning == "none")
    recoveries = dict.fromkeys(which.recovery for which in recovered)
    rows = []
    for row in dict.fromkeys(which.row for which in recovered):
        groups = [results.find(setting, Which(row, recovery)) for recovery in recoveries]
        if any(group is not None and summary(results, group, "won back") for group in groups):
            rows.append((Which(row).start, *(cell(results, group, 0, "won back") for group in groups)))
    if not rows:
        return None
    return Table(
        title=_title("Won back of what fusing lost against the best member, in %", results, panel.settings),
        columns=("network", *(Which("", recovery).recovery_words for recovery in recoveries)),
        rows=tuple(rows),
        numeric=len(recoveries),
        note="100: as good as the best member. 0: no better than before. Seeds that had lost nothing are left out.",
    )


def _layout(whiches: Sequence[Which], tunings: Sequence[str]) -> tuple[dict[str, Which], dict[str, dict[str, str]]]:
    """Lines and columns of a table of all networks of a setting."""
    recoveries = dict.fromkeys(which.recovery for which in whiches)
    if len(tunings) == 1 and len(recoveries) > 1:
        lines = {Which(which.row).start: Which(which.row) for which in whiches}
        return lines, {Which("", own).recovery_words: {"recovery": own} for own in recoveries}
    return {w.start: replace(w, tuning="none") for w in whiches}, {TUNINGS[own]: {"tuning": own} for own in tunings}


def over_table(results: Results, panel: Panel, tuning: str, measure: str = "accuracy") -> Table:
    """One measure over the varied quantity: a line per start, a column per value."""
    groups = [group for setting in panel.settings for group in results.in_setting(setting)]
    digits = digits_of(groups)
    leads = [
        _leader(results, [g for g in results.in_setting(setting) if g.which.tuning == tuning and measure == "accuracy"])
        for setting in panel.settings
    ]
    whiches = panel.whiches(results, tuning)
    cells, strong = [], set()
    for r, which in enumerate(whiches):
        line = [which.start]
        for c, group in enumerate(panel.groups(results, which), 1):
            line.append(cell(results, group, digits, measure))
            if measure == "accuracy" and _level_with(results, group, leads[c - 1]):
                strong.add((r, c))
        cells.append(tuple(line))
    words = measure_named(measure).words
    trained = f", {TUNINGS[tuning]}" if len(panel.tunings(results)) > 1 else ""
    return Table(
        title=_title(f"{words[:1].upper()}{words[1:]}{trained}", results, panel.settings),
        columns=(panel.x_label, *panel.ticks),
        rows=tuple(cells),
        numeric=len(panel.ticks),
        strong=frozenset(strong),
        rules=_rules([which.row for which in whiches]),
        note=" ".join([*_NOTES.get(measure, ()), *_footnotes(results, panel, tuning)]),
    )


def cost_table(results: Results, panel: Panel) -> Table:
    """What each start costs in a single setting, and how soon training brings it back."""
    setting = panel.settings[0]
    trained = [tuning for tuning in panel.tunings(results) if tuning != "none"]
    starts = [entry for entry in _starts(panel.whiches(results)) if not entry[0].startswith("member ")]
    cells = []
    for row, recovery, start in starts:
        own = [results.find(setting, Which(row, recovery, tuning)) for tuning in ("none", *trained)]
        measured = next((group for group in own if group is not None and group.rows), None)
        line = [start, _mean(results, measured, "seconds.fuse"), _mean(results, measured, "seconds.recover")]
        for group in own[1:]:
            line += [_mean(results, group, "seconds.tune"), _rates(group), _mean(results, group, "epochs")]
        cells.append(tuple(line))
    names = {"finetune": "fine-tuning, s", "distill": "distilling, s"}
    more = [column for tuning in trained for column in (names[tuning], "step size", "epochs to best")]
    return Table(
        title="Costs, mean over seeds",
        columns=("network", "fusing, s", "recovering, s", *more),
        rows=tuple(cells),
        numeric=len(more) + 2,
        note=(
            "Seconds of training are those at the step size that validation chose. Epochs to best: how many until "
            "the validation accuracy first reaches the best member's; one more than there were if it never does."
        ),
    )


def cell(results: Results, group: Group | None, digits: int, measure: str = "accuracy") -> str:
    """A figure with its spread, its mark of equality, and what is missing of it.

    "–" where the study has no such row, "not run" or "failed" where it has but nothing was measured, "(2 of 3)" where
    only some seeds were; "†" where training diverged.
    """
    if group is None:
        return "–"
    if not group.rows:
        return "not run" if all(why == "not run" for why in group.missing.values()) else "failed"
    figure = summary(results, group, measure)
    how = measure_named(measure)
    text = spread_text(figure, digits if measure == "accuracy" else how.digits, how.scale)
    if measure == "accuracy" and (rival := rival_of(results, group)) is not None:
        gap = difference(figure, summary(results, rival))
        text += MARKS[gap.sign] if gap is not None else ""
    if group.missing:
        text += f" ({len(group.rows)} of {group.seeds})"
    return text + (" †" if group.diverged else "")


def spread_text(figure: Summary, digits: int, scale: float = 100) -> str:
    """Mean and standard deviation.

    Example:
        >>> spread_text(Summary({0: 0.9, 1: 0.92}), 1), spread_text(Summary({0: 0.9}), 1)
        ('91.0 ± 1.4', '90.0')
    """
    if not figure:
        return "–"
    mean = f"{scale * figure.mean:.{digits}f}"
    return mean if math.isnan(figure.deviation) else f"{mean} ± {scale * figure.deviation:.{digits}f}"


def rival_of(results: Results, group: Group) -> Group | None:
    """What a row must beat to have been worth while, None for those rows themselves."""
    if group.which.row in (BEST, CONTINUE) or group.which.row.startswith("member "):
        return None
    tuning = group.which.tuning
    return results.find(group.setting, Which(BEST) if tuning == "none" else Which(CONTINUE, tuning=tuning))


def digits_of(groups: Sequence[Group]) -> int:
    """Decimals of a percentage that say something for so many test images."""
    samples = [row["test"]["samples"] for group in groups for row in group.rows.values() if row.get("test")]
    return 2 if samples and min(samples) >= FINE else 1


def _starts(whiches: Sequence[Which]) -> list[tuple[str, str, str]]:
    return list(dict.fromkeys((which.row, which.recovery, which.start) for which in whiches))


def _leader(results: Results, groups: Sequence[Group]) -> Group | None:
    """The network of a member's size with the highest mean test accuracy: what others may be equal to."""
    single = [group for group in groups if group.rows and not group.large]
    return max(single, key=lambda group: summary(results, group).mean, default=None)


def _level_with(results: Results, group: Group | None, lead: Group | None) -> bool:
    if group is None or lead is None or not group.rows or group.large:
        return False
    rival = rival_of(results, group)
    behind = difference(summary(results, group), summary(results, rival)) if rival is not None else None
    if behind is not None and behind.sign < 0:
        return False
    gap = difference(summary(results, group), summary(results, lead))
    return group is lead or (gap is not None and gap.sign >= 0)


def _rules(rows: Sequence[str]) -> frozenset[int]:
    """Lines after the members, after best member and ensemble, and after "continue"."""
    last_member = max((r for r, row in enumerate(rows) if row.startswith("member ")), default=None)
    after = {last_member} | {max((r for r, own in enumerate(rows) if own == row), default=None) for row in _APART}
    return frozenset(r for r in after if r is not None and r < len(rows) - 1)


_APART = (ENSEMBLE, CONTINUE)


def _title(what: str, results: Results, settings: Sequence[Setting]) -> str:
    groups = [group for setting in settings for group in results.in_setting(setting)]
    seeds = {seed for group in groups for seed in (*group.rows, *group.missing)}
    images = sorted({row["test"]["samples"] for group in groups for row in group.rows.values() if row.get("test")})
    on = f", {' or '.join(f'{n:,}' for n in images)} test images" if images else ""
    over = f"mean ± standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    return f"{what} ({over}{on})"


def _footnotes(results: Results, panel: Panel, tuning: str | None = None) -> Iterator[str]:
    groups = [
        group
        for setting in panel.settings
        for group in results.in_setting(setting)
        if tuning is None or group.which.tuning == tuning
    ]
    if any(group.diverged for group in groups):
        yield "† Training diverged at every step size; the start itself was measured."
    reasons = dict.fromkeys(why for group in groups for why in group.missing.values() if why != "not run")
    for why in reasons:
        yield f"Failed: {why}."


def _mean(results: Results, group: Group | None, measure: str) -> str:
    if group is None:
        return "–"
    if not group.rows:
        return "not run"
    figure = summary(results, group, measure)
    return f"{figure.mean:.3g}" if figure else "–"


def _rates(group: Group | None) -> str:
    if group is None:
        return "–"
    rates = sorted({row["lr"] for row in group.rows.values() if row.get("lr") is not None})
    return " or ".join(f"{rate:g}" for rate in rates) if rates else "not run"
