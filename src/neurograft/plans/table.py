"""A fusion plan as a table for people."""

from io import StringIO

from rich.console import Console
from rich.table import Table

from neurograft.plans.plan import FusionPlan


def plan_table(plan: FusionPlan) -> str:
    """The plan as text: one row per moved group with its sizes and every member's kept share."""
    weights = ", ".join(f"{w:.3g}" for w in plan.weights)
    out = StringIO()
    console = Console(file=out, width=120)
    console.print(f"{plan.method} of {plan.members} members, weights {weights}", highlight=False)
    if plan.maps:
        table = Table(box=None, pad_edge=False)
        table.add_column("group")
        table.add_column("members", justify="right")
        table.add_column("fused", justify="right")
        table.add_column("kept share of each member", justify="right")
        for name, maps in plan.maps.items():
            sizes = sorted({m.member for m in maps})
            shares = " ".join(f"{s:4.0%}" for s in plan.shares[name][:16]) + (" …" if plan.members > 16 else "")
            table.add_row(name, "/".join(map(str, sizes)), str(plan.sizes[name]), shares)
        console.print(table)
    else:
        console.print("every neuron keeps its place: the tensors are averaged")
    aligned = plan.details.get("aligned", ())
    if len(aligned) > 1 and all(aligned) and plan.method != "average":
        console.print('note: the members are aligned already (one ancestor): method="average" will do', highlight=False)
    for note in plan.warnings:
        console.print(f"warning: {note}", highlight=False)
    return out.getvalue().rstrip()
