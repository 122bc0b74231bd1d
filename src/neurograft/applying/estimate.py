"""What fusing stored members will do and cost, from their headers and a trace alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from neurograft.applying.formula import BLOCK
from neurograft.checkpoints.writing import nbytes, size_text
from neurograft.errors import Unreached
from neurograft.members.graphs import check_unreached
from neurograft.members.members import Members
from neurograft.methods.method import Method
from neurograft.methods.planner import settled_operator
from neurograft.operators.operator import Operator
from neurograft.tracing.graph import NeuronGraph, TensorInfo

SPEED = 1e9  # bytes read or written per second: a common disk, and what one pass over the numbers takes on two cores
BASE = 400_000_000  # bytes of a process that has imported torch


@dataclass(frozen=True)
class Estimate:
    """What would happen: the graph, what becomes of every tensor, why it would be refused, and the cost."""

    graph: NeuronGraph
    method: str
    members: int
    fates: Mapping[str, str]
    refused: str | None
    bytes_read: int
    bytes_written: int
    memory: int
    seconds: float

    def __str__(self) -> str:
        counts: dict[str, int] = {}
        for fate in self.fates.values():
            counts[fate] = counts.get(fate, 0) + 1
        lines = [str(self.graph), "", f"{self.method} of {self.members} members:"]
        lines += [f"  {count} tensor{'s' if count > 1 else ''} {fate}" for fate, count in counts.items()]
        if self.refused:
            lines.append(f"  refused: {self.refused}")
        lines += [
            f"reads {size_text(self.bytes_read)}, writes {size_text(self.bytes_written)}",
            f"needs about {size_text(self.memory)} of memory and {_time(self.seconds)} at {SPEED / 1e9:.0f} GB/s",
        ]
        return "\n".join(lines)


def estimate(members: Members, method: Method, operator: Operator | None = None) -> Estimate:
    """Trace the network of members on disk and say what a method and an operator would do; no weight is read.

    Raises:
        OptionError: the operator cannot combine these members.
        NeurograftError: as `Members.graphs`.
    """
    graph, stored = members.graph, members.stored
    if operator is not None:
        operator = settled_operator(operator, members)
    moved = () if not method.moves else tuple(group.name for group in graph.outermost)
    states = stored[0].checkpoint.tensors
    fates = {
        name: _treatment(graph.tensors.get(name), moved, states[held].dtype.is_floating_point, operator)
        for name, held in stored[0].stored.items()
    }
    try:
        check_unreached(graph, moved, members.fixed)
        refused = None
    except Unreached as error:
        refused = str(error)
    with_base = operator is not None and (operator.needs_base or operator.takes_base)
    read = sum(member.checkpoint.nbytes for member in (members.files if with_base else stored))
    written = sum(nbytes((states[held].dtype, tuple(states[held].shape))) for held in stored[0].stored.values())
    passes = method.passes if operator is None or method.moves else 2  # numbers are checked, then the plan is applied
    cost = read * passes + written
    return Estimate(
        graph=graph,
        method=method.name if operator is None else f"{operator} after {method}" if method.moves else str(operator),
        members=len(stored),
        fates=fates,
        refused=refused,
        bytes_read=read,
        bytes_written=written,
        memory=BASE + _working(graph, method, moved) + _combining(graph, operator, len(members.files)),
        seconds=cost / SPEED,
    )


def _treatment(info: TensorInfo | None, moved: Sequence[str], floating: bool, operator: Operator | None) -> str:
    if not floating:
        return "taken from member 0 (whole numbers)"
    if operator is not None:
        statistic = info is not None and info.kind in ("mean", "variance")
        return "averaged (running statistics)" if statistic else f"combined by {operator.name}"
    if info is None:
        return "averaged (not reached by the example inputs)"
    roles = {role for dim in info.roles for group, own in dim.items() if group in moved for role in own}
    if roles & {"out", "elementwise"}:
        return "made of the members' neurons"
    if roles:
        return "read from the fused neurons and weighted (the output is fixed)"
    return "averaged"


def _working(graph: NeuronGraph, method: Method, moved: Sequence[str]) -> int:
    """Blocks of rows in float32; for dense methods the largest cost matrix with its solution, and what it mixes."""
    if not method.dense or not moved:
        return BLOCK * 4 * 8
    pairs = max(graph[name].size for name in moved) ** 2 * 8
    tensors = max(prod(info.shape) for info in graph.tensors.values()) * 4
    return 3 * pairs + 2 * tensors


def _combining(graph: NeuronGraph, operator: Operator | None, count: int) -> int:
    """Every member's block in float32, or whole tensor if the operator sees it at once, and what is made of them."""
    if operator is None or operator.sums:
        return 0
    largest = max((prod(info.shape) for info in graph.tensors.values()), default=0)
    return 4 * (2 * count + 4) * (largest if operator.sees_whole else min(largest, BLOCK))


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
