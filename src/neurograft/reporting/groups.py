"""The neuron groups of a network as a table for people."""

from neurograft.reporting.tables import Table
from neurograft.tracing.graph import Group, NeuronGraph


def groups_table(graph: NeuronGraph) -> Table:
    """One row per group: its size, which tensors make it, which read it, and whether it may move or why not."""
    rows = tuple(
        (
            group.name,
            _tensors(group, "out"),
            _tensors(group, "elementwise"),
            _tensors(group, "in"),
            _state(group),
            str(group.size),
        )
        for group in graph
    )
    return Table(
        title=f"Neuron groups of {graph.model_class or 'the network'}",
        columns=("group", "made by", "beside it", "read by", "state", "neurons"),
        rows=rows,
        numeric=1,
        note=f"Proof by permutation: {graph.proven}.",
    )


def _tensors(group: Group, role: str) -> str:
    names = list(dict.fromkeys(slot.tensor for slot in group.slots if slot.role == role))
    return ", ".join(names) if names else "–"


def _state(group: Group) -> str:
    if group.fixed:
        return f"fixed: {group.why}" if group.why else "fixed"
    return f"free, inside {group.inside}" if group.inside else "free"
