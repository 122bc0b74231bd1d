"""Which settings of a study belong into one table and one plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from neurograft_experiments.reports.measures import TUNINGS
from neurograft_experiments.reports.results import RowGroup, StudyResults, Which
from neurograft_experiments.reports.settings import SAME, ComparisonSetting, named, short, text_of


@dataclass(frozen=True, eq=False)
class ReportPanel:
    """Settings that differ in one quantity only, or a single setting.

    Attributes:
        results: of the study.
        title: what its settings have in common, of what varies in the study.
        settings: in the order of the quantity's values.
        x: the quantity, None for a single setting.
    """

    results: StudyResults
    title: str
    settings: tuple[ComparisonSetting, ...]
    x: str | None = None

    @property
    def ticks(self) -> tuple[str, ...]:
        """The quantity's values."""
        return tuple(text_of(dict(setting)[self.x]) for setting in self.settings) if self.x is not None else ()

    @property
    def x_label(self) -> str:
        """The quantity in words."""
        return short(self.x) if self.x is not None else ""

    @property
    def groups(self) -> list[RowGroup]:
        """All rows of all its settings."""
        return [group for setting in self.settings for group in self.results.in_setting(setting)]

    def whiches(self, tuning: str | None = None) -> tuple[Which, ...]:
        """Every row that at least one of its settings has, in order, members first."""
        found = dict.fromkeys(g.which for g in self.groups if tuning is None or g.which.tuning == tuning)
        return tuple(sorted(found, key=lambda which: not which.member))

    def tunings(self) -> tuple[str, ...]:
        """Every way its rows were trained on, in the order of `TUNINGS`."""
        there = {which.tuning for which in self.whiches()}
        return tuple(tuning for tuning in TUNINGS if tuning in there)

    def along(self, which: Which) -> tuple[RowGroup | None, ...]:
        """One row's results in every setting."""
        return tuple(self.results.find(setting, which) for setting in self.settings)


def panels_of(results: StudyResults, x: str | None, *, single: bool = False) -> tuple[ReportPanel, ...]:
    """The panels of a study: one per combination of everything that varies besides `x`.

    Args:
        results: of the study.
        x: the quantity along an axis; None, or one that does not vary, gives a panel per setting.
        single: whether a quantity of a single value is an axis too.
    """
    name = _field(results, x, 1 if single else 2)
    others = [field for field in results.varying if field != name]
    if name is None:
        return tuple(ReportPanel(results, named(setting, others), (setting,)) for setting in results.settings)
    found: dict[tuple[str, ...], list[ComparisonSetting]] = {}
    for setting in results.settings:
        if name in dict(setting):
            found.setdefault(tuple(text_of(dict(setting).get(field)) for field in others), []).append(setting)
    return tuple(
        ReportPanel(results, named(settings[0], others), tuple(sorted(settings, key=_place(settings, name))), name)
        for settings in found.values()
    )


def _field(results: StudyResults, x: str | None, least: int) -> str | None:
    """The name that a varied quantity has in settings, where "members.count" may be called "members"."""
    for candidate in (x, SAME.get(x or "", x)):
        found = {text_of(dict(setting)[candidate]) for setting in results.settings if candidate in dict(setting)}
        if candidate is not None and len(found) >= least:
            return candidate
    return None


def _place(settings: Sequence[ComparisonSetting], name: str) -> Any:
    """A sorting key: numbers in their order, everything else as it came."""
    values = [dict(setting)[name] for setting in settings]
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return lambda setting: dict(setting)[name] if numbers else settings.index(setting)
