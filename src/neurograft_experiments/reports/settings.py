"""What a comparison is made in, and how people read it."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

ComparisonSetting: TypeAlias = tuple[tuple[str, Any], ...]
"""("network", "vgg11"), ("data", "cifar10"), …: the same for all rows of a comparison."""

LABELS = ("case", "network", "data", "members")
SAME = {"members.count": "members", "network.name": "network", "data.source": "data"}
"""Varied quantities that are labels as well."""


def setting_of(labels: Mapping[str, Any]) -> ComparisonSetting:
    """What a trial's comparison is made in, from its labels; a varied quantity that is a label already is left out.

    Example:
        >>> setting_of({"network": "mlp", "members": 4, "varied": {"members.count": 4, "network.width": 8}})
        (('network', 'mlp'), ('members', 4), ('network.width', 8))
    """
    fixed = {name: labels[name] for name in LABELS if labels.get(name, "") != ""}
    varied = (labels.get("varied") or {}).items()
    return (*fixed.items(), *((path, value) for path, value in varied if SAME.get(path) not in fixed))


def named(setting: ComparisonSetting, only: Sequence[str] | None = None) -> str:
    """A setting in words, or those parts of it.

    Example:
        >>> named((("network", "mlp"), ("members", 4), ("network.width", 64)))
        'mlp, 4 members, width 64'
    """
    words = {"members": "{value} members", "case": "{value}", "network": "{value}", "data": "{value}"}
    return ", ".join(
        words.get(name, "{name} {value}").format(name=short(name), value=text_of(value))
        for name, value in setting
        if only is None or name in only
    )


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
