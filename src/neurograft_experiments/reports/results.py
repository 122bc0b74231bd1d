"""Result rows grouped over seeds, with the rows that are still missing in their places."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from neurograft.errors import InputError

Setting: TypeAlias = tuple[tuple[str, Any], ...]
"""What a comparison is made in: ("network", "vgg11"), ("data", "cifar10"), …, the same for all its rows."""

BEST, ENSEMBLE, CONTINUE = "best member", "ensemble", "continue the best member"
LABELS = ("case", "network", "data", "members")
RECOVERIES = {"none": "as it is", "batch_norm": "BatchNorm", "repair": "REPAIR", "data_free": "REPAIR without data"}
"""Recoveries that are called otherwise by people."""
LARGE = ("ensemble", "combine")
"""Starts that are several times the size of a member."""


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
        parts = [self.row] if self.recovery == "none" else [self.row, self.recovery_words]
        return " + ".join(parts).replace("_", " ")

    @property
    def recovery_words(self) -> str:
        """How it was recovered, as people say it.

        Example:
            >>> Which("transplant", "batch_norm").recovery_words, Which("transplant").recovery_words
            ('BatchNorm', 'as it is')
        """
        return RECOVERIES.get(self.recovery, self.recovery)


@dataclass(frozen=True, eq=False)
class Group:
    """The results of one row of a comparison, one per seed.

    Attributes:
        setting: what the comparison is made in.
        which: the row.
        rows: seed -> what was measured.
        missing: seed -> why there is nothing: "not run", or what failed.
    """

    setting: Setting
    which: Which
    rows: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)

    @property
    def seeds(self) -> int:
        """How many results there should be."""
        return len(self.rows) + len(self.missing)

    @property
    def large(self) -> bool:
        """Whether the network is larger than a member, as an ensemble is."""
        if self.which.row == ENSEMBLE:
            return True
        starts = (row.get("configuration", {}).get("start") or {} for row in self.rows.values())
        return any(start.get("method") in LARGE for start in starts)

    @property
    def diverged(self) -> bool:
        """Whether training diverged at every step size for some seed, so that the start itself was measured."""
        tried = (row.get("tried") for row in self.rows.values() if self.which.tuning != "none")
        return any(bool(pairs) and all(reached is None for _, reached in pairs) for pairs in tried if pairs)


@dataclass(frozen=True, eq=False)
class Results:
    """All results of one study and preset.

    Attributes:
        groups: setting and row -> results over seeds, in the study's order.
    """

    groups: Mapping[tuple[Setting, Which], Group]

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """Every setting, in order."""
        return tuple(dict.fromkeys(setting for setting, _ in self.groups))

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """The names of what differs between settings, without those that an earlier one says already."""
        columns: dict[str, tuple[Any, ...]] = {}
        names = dict.fromkeys(name for setting in self.settings for name, _ in setting)
        for name in names:
            values = tuple(_hashable(dict(setting).get(name)) for setting in self.settings)
            if len(set(values)) > 1 and not any(_says(other, values) for other in columns.values()):
                columns[name] = values
        return tuple(columns)

    def find(self, setting: Setting, which: Which) -> Group | None:
        """The results of a row in a setting, None if the study has no such row."""
        return self.groups.get((setting, which))

    def in_setting(self, setting: Setting) -> tuple[Group, ...]:
        """All rows of a setting."""
        return tuple(group for (own, _), group in self.groups.items() if own == setting)

    def __iter__(self) -> Iterator[Group]:
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


def collect(
    expected: Iterable[Mapping[str, Any]], rows: Mapping[str, Mapping[str, Any]], failures: Mapping[str, str] = {}
) -> Results:
    """Group results over seeds.

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
    groups: dict[tuple[Setting, Which], Group] = {}
    for labels in expected:
        setting = setting_of(labels)
        which = Which(labels["row"], labels.get("recovery", "none"), labels.get("tuning", "none"))
        group = groups.setdefault((setting, which), Group(setting, which))
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
    return Results(groups)


def setting_of(labels: Mapping[str, Any]) -> Setting:
    """What a trial's comparison is made in, from its labels; a varied quantity that is a label already is left out.

    Example:
        >>> setting_of({"network": "mlp", "members": 4, "varied": {"members.count": 4, "network.width": 8}})
        (('network', 'mlp'), ('members', 4), ('network.width', 8))
    """
    fixed = [(name, labels[name]) for name in LABELS if labels.get(name, "") != ""]
    same = {"members.count": "members", "network.name": "network", "data.source": "data"}
    varied = labels.get("varied") or {}
    return (*fixed, *((path, value) for path, value in varied.items() if same.get(path) not in dict(fixed)))


def named(setting: Setting, only: Sequence[str] | None = None) -> str:
    """A setting in words.

    Args:
        setting: names and values.
        only: the names to mention, None for all.

    Example:
        >>> named((("network", "mlp"), ("members", 4), ("network.width", 64)))
        'mlp, 4 members, width 64'
    """
    words = []
    for name, value in setting:
        if only is not None and name not in only:
            continue
        if name == "members":
            words.append(f"{value} members")
        elif name in ("case", "network", "data"):
            words.append(str(value))
        else:
            words.append(f"{short(name)} {text_of(value)}")
    return ", ".join(words)


def short(path: str) -> str:
    """The last word of a dotted path, as people read it.

    Example:
        >>> short("starts.transplant.options.ratio"), short("members.count")
        ('ratio', 'members')
    """
    return "members" if path == "members.count" else path.rpartition(".")[2].replace("_", " ")


def text_of(value: Any) -> str:
    """A varied value as text.

    Example:
        >>> text_of(0.9375), text_of([{"width": 8}, {"width": 16}]), text_of(None)
        ('0.9375', '8 / 16', 'none')
    """
    if isinstance(value, Mapping):
        return ", ".join(text_of(inner) for inner in value.values())
    if isinstance(value, (list, tuple)):
        return " / ".join(text_of(inner) for inner in value)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None))) else text_of(value)


def _says(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether who knows the first knows the second."""
    return len(set(zip(one, other, strict=True))) == len(set(one))
