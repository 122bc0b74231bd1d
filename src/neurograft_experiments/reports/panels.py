"""Which settings of a study belong into one table and one plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from neurograft_experiments.reports.results import Group, Results, Setting, Which, named, short, text_of

TUNINGS = {"none": "at once", "finetune": "fine-tuned", "distill": "distilled"}


@dataclass(frozen=True, eq=False)
class Panel:
    """Settings that differ in one quantity only, or a single setting.

    Attributes:
        title: what its settings have in common, of what varies in the study.
        settings: in the order of the quantity's values.
        x: the quantity, None for a single setting.
    """

    title: str
    settings: tuple[Setting, ...]
    x: str | None = None

    @property
    def ticks(self) -> tuple[str, ...]:
        """The quantity's values."""
        return tuple(text_of(dict(setting)[self.x]) for setting in self.settings) if self.x is not None else ()

    @property
    def x_label(self) -> str:
        """The quantity in words."""
        return short(self.x) if self.x is not None else ""

    def whiches(self, results: Results, tuning: str | None = None) -> tuple[Which, ...]:
        """Every row that at least one of its settings has, in order, members first."""
        groups = (group for setting in self.settings for group in results.in_setting(setting))
        found = dict.fromkeys(g.which for g in groups if tuning is None or g.which.tuning == tuning)
        return tuple(sorted(found, key=lambda which: not which.row.startswith("member ")))

    def tunings(self, results: Results) -> tuple[str, ...]:
        """Every way its rows were trained on, in the order of `TUNINGS`."""
        there = {which.tuning for which in self.whiches(results)}
        return tuple(tuning for tuning in TUNINGS if tuning in there)

    def groups(self, results: Results, which: Which) -> tuple[Group | None, ...]:
        """One row's results in every setting."""
        return tuple(results.find(setting, which) for setting in self.settings)


def panels_of(results: Results, x: str | None, *, single: bool = False) -> tuple[Panel, ...]:
    """The panels of a study: one per combination of everything that varies besides `x`.

    Args:
        results: of the study.
        x: the quantity along an axis; None, or one that does not vary, gives a panel per setting.
        single: whether a quantity of a single value is an axis too.
    """
    name = _field(results, x, 1 if single else 2)
    others = [field for field in results.varying if field != name]
    if name is None:
        return tuple(Panel(named(setting, others), (setting,)) for setting in results.settings)
    found: dict[tuple[Any, ...], list[Setting]] = {}
    for setting in results.settings:
        values = dict(setting)
        if name in values:
            found.setdefault(tuple(text_of(values.get(field)) for field in others), []).append(setting)
    panels = []
    for settings in found.values():
        ordered = sorted(settings, key=lambda setting: _place(dict(setting)[name], settings, name))
        panels.append(Panel(named(settings[0], others), tuple(ordered), name))
    return tuple(panels)


def _field(results: Results, x: str | None, least: int) -> str | None:
    """The name by which settings know a varied quantity; a setting may know "members.count" as "members"."""
    if x is None:
        return None
    same = {"members.count": "members", "network.name": "network", "data.source": "data"}
    for candidate in (x, same.get(x, x)):
        found = {text_of(dict(setting)[candidate]) for setting in results.settings if candidate in dict(setting)}
        if len(found) >= least:
            return candidate
    return None


def _place(value: Any, settings: Sequence[Setting], name: str) -> float:
    """Numbers in their order, everything else as it came."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return float([text_of(dict(setting)[name]) for setting in settings].index(text_of(value)))
