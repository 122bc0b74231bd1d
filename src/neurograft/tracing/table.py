"""Print a graph so that a person sees which neurons move together, who makes them and who reads them."""

from collections.abc import Sequence

from neurograft.axes.layout import Role
from neurograft.text_table import text_table
from neurograft.tracing.parts import Group, Tied

_SHOWN = 3


def groups_table(groups: Sequence[Group]) -> str:
    """The groups as a table: size, what makes them, what reads them, free or fixed and why."""
    rows = [(g.name, str(g.size), _made_by(g), _tensors(g, "in"), _state(g)) for g in groups]
    columns = ("group", "units", "made by", "read by", "free or fixed")
    return text_table(columns, rows, numbers={"units"}, boxed=True, width=140)


def _made_by(group: Group) -> str:
    return _tensors(group, "out") or _tensors(group, "elementwise")


def _tensors(group: Group, role: Role) -> str:
    names = list(dict.fromkeys(slot.tensor for slot in group.slots if slot.role == role))
    # a bias shows nothing that its weight does not
    weights = [n for n in names if not (n.endswith("bias") and f"{n[:-4]}weight" in names)]
    more = f" and {len(weights) - _SHOWN} more" if len(weights) > _SHOWN else ""
    return ", ".join(weights[:_SHOWN]) + more


def _state(group: Group) -> str:
    if group.fixed:
        return f"fixed: {group.why}"
    notes = [f"free, {group.symmetry.value}" + (f" ({group.limit})" if group.limit else "")]
    if group.inside:
        notes.append(f"inside {group.inside}" + (", in each by itself" if group.per_unit else ""))
    if group.ranked_by:
        notes.append(f"chosen from by {group.ranked_by[0]}" + _others(group.ranked_by))
    elif group.reduced_by:
        notes.append(f"reduced by {group.reduced_by[0]}" + _others(group.reduced_by))
    if group.bilinear:
        notes.append(f"contracted in {group.bilinear[0]}" + _others(group.bilinear))
    return "; ".join(notes)


def _others(items: tuple[str, ...]) -> str:
    return f" and {len(items) - 1} more" if len(items) > 1 else ""


def footnotes(unruled: Sequence[str], unreached: Sequence[str], tied: Sequence[Tied]) -> list[str]:
    """What the table does not show: ops without a rule, tensors no input reached, tied ones."""
    lines = []
    if unruled:
        lines.append(f"no rule for: {'; '.join(unruled)}")
    if unreached:
        lines.append(f"not reached by the example inputs: {', '.join(unreached)}")
    for one in tied:
        norm = f"; the norm in front of the reader: {', '.join(one.norm)}" if one.norm else ""
        lines.append(f"{one.tensor} both makes and reads {one.group}{norm}")
    return lines


__all__ = ["footnotes", "groups_table"]
