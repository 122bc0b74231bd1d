"""Print a graph so that a person sees which neurons move together, who makes them and who reads them."""

from io import StringIO

from neurograft.tracing.graph import Group, NeuronGraph, Role

_SHOWN = 3


def graph_table(graph: NeuronGraph, width: int = 140) -> str:
    """The groups as a table: size, what makes them, what reads them, free or fixed and why."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=_title(graph), title_justify="left", title_style="", header_style="bold")
    for column in ("group", "units", "made by", "read by", "free or fixed"):
        table.add_column(column, justify="right" if column == "units" else "left", overflow="fold")
    for group in graph.groups:
        table.add_row(group.name, str(group.size), _made_by(group), _tensors(group, "in"), _state(group))
    out = StringIO()
    Console(file=out, width=width, color_system=None).print(table)
    return "\n".join([*(line.rstrip() for line in out.getvalue().rstrip().splitlines()), *_footnotes(graph)])


def _title(graph: NeuronGraph) -> str:
    fixed = len(graph.groups) - len(graph.free)
    name = graph.model_class.rpartition(".")[2] or "network"
    return f"{name}: {len(graph.free)} free group{'s' if len(graph.free) != 1 else ''}, {fixed} fixed; {graph.proven}"


def _made_by(group: Group) -> str:
    return _tensors(group, "out") or _tensors(group, "elementwise")


def _tensors(group: Group, role: Role) -> str:
    names = list(dict.fromkeys(slot.tensor for slot in group.slots if slot.role == role))
    # a bias says nothing that its weight does not say
    weights = [n for n in names if not (n.endswith("bias") and f"{n[:-4]}weight" in names)]
    more = f" and {len(weights) - _SHOWN} more" if len(weights) > _SHOWN else ""
    return ", ".join(weights[:_SHOWN]) + more


def _state(group: Group) -> str:
    if group.fixed:
        return f"fixed: {group.why}"
    notes = ["free"]
    if group.inside:
        notes.append(f"inside {group.inside}")
    if group.ranked_by:
        notes.append(f"chosen from by {group.ranked_by[0]}" + _others(group.ranked_by))
    elif group.reduced_by:
        notes.append(f"reduced by {group.reduced_by[0]}" + _others(group.reduced_by))
    if group.bilinear:
        notes.append(f"contracted in {group.bilinear[0]}" + _others(group.bilinear))
    return "; ".join(notes)


def _others(items: tuple[str, ...]) -> str:
    return f" and {len(items) - 1} more" if len(items) > 1 else ""


def _footnotes(graph: NeuronGraph) -> list[str]:
    lines = []
    if graph.unruled:
        lines.append(f"no rule for: {'; '.join(graph.unruled)}")
    if graph.unreached:
        lines.append(f"not reached by the example inputs: {', '.join(graph.unreached)}")
    for tied in graph.tied:
        norm = f"; the norm in front of the reader: {', '.join(tied.norm)}" if tied.norm else ""
        lines.append(f"{tied.tensor} both makes and reads {tied.group}{norm}")
    return [*lines, *graph.notes]


__all__ = ["graph_table"]
