"""The tables of a study: accuracies with their spread and marks of equality, costs, epochs to recover."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from neurograft.reporting.tables import Table
from neurograft_experiments.reports.measures import MARKS, TUNINGS, measure_named
from neurograft_experiments.reports.panels import ReportPanel
from neurograft_experiments.reports.results import RowGroup, StudyResults, Which
from neurograft_experiments.rows import BEST, CONTINUE, ENSEMBLE

Key = TypeVar("Key", bound=Hashable)
FINE = 5000
"""Test images from which on a second decimal is above the noise."""
SIGNS = (
    "↑ above, ↓ below, = not distinguishable from its rival on the same budget: the best member for what is not "
    "trained further, the best member continued in the same way for what is. Bold: not distinguishable from the best "
    "network of a member's size, nor below its rival. Noise is that over seeds (Student's t; with few seeds much is "
    "noise) and of the test set's size, together. The best member is the one that validation prefers."
)
NOTES = {"accuracy": (SIGNS,), "epochs": ("One epoch more than there were: never.",)}


def comparison_table(panel: ReportPanel) -> Table:
    """Test accuracies of a single setting.

    A line per start and a column per way of training on; where nothing is trained on, a column per recovery.
    """
    whiches, setting = panel.whiches(), panel.settings[0]
    recoveries = dict.fromkeys(which.recovery for which in whiches)
    if len(panel.tunings()) == 1 and len(recoveries) > 1:
        lines = {Which(which.row).start: Which(which.row) for which in whiches}
        columns = {Which("", own).recovery_words: {"recovery": own} for own in recoveries}
    else:
        lines = {which.start: replace(which, tuning="none") for which in whiches}
        columns = {TUNINGS[own]: {"tuning": own} for own in panel.tunings()}
    grid = [[panel.results.find(setting, replace(line, **how)) for how in columns.values()] for line in lines.values()]
    leads = [_leader(panel.results, panel.results.in_setting(setting))] * len(columns)
    return _table(panel, "Test accuracy in %", ("network", *columns), list(lines.values()), grid, leads)


def over_table(panel: ReportPanel, tuning: str, measure: str = "accuracy") -> Table:
    """One measure over the varied quantity: a line per start, a column per value."""
    whiches, words = panel.whiches(tuning), measure_named(measure).words
    groups = [[g for g in panel.results.in_setting(setting) if g.which.tuning == tuning] for setting in panel.settings]
    trained = f", {TUNINGS[tuning]}" if len(panel.tunings()) > 1 else ""
    return _table(
        panel,
        f"{words[:1].upper()}{words[1:]}{trained}",
        (panel.x_label, *panel.ticks),
        whiches,
        [panel.along(which) for which in whiches],
        [_leader(panel.results, own) for own in groups],
        measure,
        tuning,
    )


def _table(
    panel: ReportPanel,
    title: str,
    columns: tuple[str, ...],
    whiches: Sequence[Which],
    grid: Sequence[Sequence[RowGroup | None]],
    leads: Sequence[RowGroup | None],
    measure: str = "accuracy",
    tuning: str | None = None,
) -> Table:
    """Figures with their marks; what is level with the leader of its column stands out."""
    results, digits = panel.results, digits_of(panel.groups) if measure == "accuracy" else None
    places = [(r, c) for r, line in enumerate(grid) for c in range(len(line))]
    marks, strong = dict[tuple[int, int], int](), set()
    if measure == "accuracy":
        marks = signs(results, {(r, c): (grid[r][c], rival_of(results, grid[r][c])) for r, c in places})
        level = signs(results, {(r, c): (grid[r][c], leads[c]) for r, c in places})
        for r, c in places:
            group = grid[r][c]
            single = group is not None and group.rows and not group.reference and leads[c] is not None
            if single and marks.get((r, c)) != -1 and (group is leads[c] or level.get((r, c), -1) >= 0):
                strong.add((r, c + 1))
    texts = {(r, c): cell(results, grid[r][c], measure, digits, marks.get((r, c))) for r, c in places}
    rows = [(which.start, *(texts[r, c] for c in range(len(columns) - 1))) for r, which in enumerate(whiches)]
    return Table(
        title=_title(title, panel),
        columns=columns,
        rows=tuple(rows),
        numeric=len(columns) - 1,
        strong=frozenset(strong),
        rules=_rules([which.row for which in whiches]),
        note=" ".join([*NOTES.get(measure, ()), *_footnotes(panel, tuning)]),
    )


def won_back_table(panel: ReportPanel) -> Table | None:
    """How much of what fusing lost each recovery of a single setting brought back; None if nothing was recovered."""
    results, setting = panel.results, panel.settings[0]
    recovered = [w for w in panel.whiches() if w.recovery != "none" and w.tuning == "none"]
    recoveries = dict.fromkeys(which.recovery for which in recovered)
    rows = []
    for row in dict.fromkeys(which.row for which in recovered):
        groups = [results.find(setting, Which(row, recovery)) for recovery in recoveries]
        if any(results.figure(group, "won back") for group in groups):
            rows.append((Which(row).start, *(cell(results, group, "won back") for group in groups)))
    if not rows:
        return None
    return Table(
        title=_title("Won back of what fusing lost against the best member, in %", panel),
        columns=("network", *(Which("", recovery).recovery_words for recovery in recoveries)),
        rows=tuple(rows),
        numeric=len(recoveries),
        note="100: as good as the best member. 0: no better than before. Seeds that had lost nothing are left out.",
    )


def cost_table(panel: ReportPanel) -> Table:
    """What each start costs in a single setting, and how soon training brings it back."""
    results, setting = panel.results, panel.settings[0]
    trained = [tuning for tuning in panel.tunings() if tuning != "none"]
    rows = []
    for start in dict.fromkeys(replace(which, tuning="none") for which in panel.whiches() if not which.member):
        own = [results.find(setting, replace(start, tuning=tuning)) for tuning in ("none", *trained)]
        measured = next((group for group in own if group is not None and group.rows), None)
        line = [start.start, *(_mean(results, measured, f"seconds.{what}") for what in ("fuse", "recover"))]
        for group in own[1:]:
            line += [_mean(results, group, "seconds.tune"), _rates(group), _mean(results, group, "epochs")]
        rows.append(tuple(line))
    names = {"finetune": "fine-tuning, s", "distill": "distilling, s"}
    more = [column for tuning in trained for column in (names[tuning], "learning rate", "epochs to best")]
    return Table(
        title="Costs, mean over seeds",
        columns=("network", "fusing, s", "recovering, s", *more),
        rows=tuple(rows),
        numeric=len(more) + 2,
        note=(
            "Seconds of training are those at the learning rate that validation chose. Epochs to best: how many until "
            "the validation accuracy first reaches the best member's; one more than there were if it never does."
        ),
    )


def cell(
    results: StudyResults, group: RowGroup | None, measure: str, digits: int | None = None, sign: int | None = None
) -> str:
    """A figure with its spread, its mark of equality, and what is missing of it.

    "–" where the study has no such row, "not run" or "failed" where it has but nothing was measured, "(2 of 3)" where
    only some seeds were; "†" where training diverged.
    """
    if group is None:
        return "–"
    if not group.rows:
        return "not run" if set(group.missing.values()) == {"not run"} else "failed"
    text = measure_named(measure).shown(results.figure(group, measure), digits)
    text += MARKS[sign] if sign is not None else ""
    text += f" ({len(group.rows)} of {len(group.rows) + len(group.missing)})" if group.missing else ""
    return text + (" †" if group.diverged else "")


def signs(results: StudyResults, pairs: Mapping[Key, tuple[RowGroup | None, RowGroup | None]]) -> dict[Key, int]:
    """1 where the first is above the second, -1 below, 0 not distinguishable; left out where one was not measured."""
    gaps = zip(pairs, results.differences(list(pairs.values())), strict=True)
    return {key: gap.sign for key, gap in gaps if gap is not None}


def rival_of(results: StudyResults, group: RowGroup | None) -> RowGroup | None:
    """What a row must beat to have been worth while, None for those rows themselves."""
    if group is None or group.which.row in (BEST, CONTINUE) or group.which.member:
        return None
    tuning = group.which.tuning
    return results.find(group.setting, Which(BEST) if tuning == "none" else Which(CONTINUE, tuning=tuning))


def digits_of(groups: Sequence[RowGroup]) -> int:
    """Decimals of a percentage that are above the noise for so many test images."""
    return 2 if min(_images(groups), default=0) >= FINE else 1


def _images(groups: Sequence[RowGroup]) -> list[int]:
    return sorted({row["test"]["samples"] for g in groups for row in g.rows.values() if row.get("test")})


def _leader(results: StudyResults, groups: Sequence[RowGroup]) -> RowGroup | None:
    """The network of a member's size with the highest mean test accuracy: what others may be equal to."""
    single = [group for group in groups if group.rows and not group.reference]
    return max(single, key=lambda group: results.figure(group).mean, default=None) if _images(single) else None


def _rules(rows: Sequence[str]) -> frozenset[int]:
    """Lines after the members, after best member and ensemble, and after "continue"."""
    kinds = ["member" if row.startswith("member ") else row for row in rows]
    ends = [len(kinds) - 1 - kinds[::-1].index(kind) for kind in ("member", ENSEMBLE, CONTINUE) if kind in kinds]
    return frozenset(r for r in ends if r < len(rows) - 1)


def _title(what: str, panel: ReportPanel) -> str:
    seeds = {seed for group in panel.groups for seed in (*group.rows, *group.missing)}
    images = _images(panel.groups)
    on = f", {' or '.join(f'{n:,}' for n in images)} test images" if images else ""
    over = f"mean ± standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    return f"{what} ({over}{on})"


def _footnotes(panel: ReportPanel, tuning: str | None) -> Iterator[str]:
    groups = [group for group in panel.groups if tuning is None or group.which.tuning == tuning]
    if any(group.diverged for group in groups):
        yield "† Training diverged at every learning rate; the start itself was measured."
    for why in dict.fromkeys(why for group in groups for why in group.missing.values() if why != "not run"):
        yield f"Failed: {why}."


def _mean(results: StudyResults, group: RowGroup | None, measure: str) -> str:
    if group is None or not group.rows:
        return "–" if group is None else "not run"
    figure = results.figure(group, measure)
    return f"{figure.mean:.3g}" if figure else "–"


def _rates(group: RowGroup | None) -> str:
    if group is None:
        return "–"
    rates = sorted({row["lr"] for row in group.rows.values() if row.get("lr") is not None})
    return " or ".join(f"{rate:g}" for rate in rates) if rates else "not run"
