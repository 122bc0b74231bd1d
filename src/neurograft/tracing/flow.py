"""The flow of activations through a network: where weights enter, where activations meet, and what lies between."""

from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from neurograft.text_table import text_table

# ops that rearrange entries and change none
MOVING = frozenset(
    {
        *("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten", "unflatten"),
        *("t", "transpose", "permute", "swapaxes", "movedim"),
    }
)


class NodeKind(Enum):
    """What happens at a node."""

    INPUT = "input"
    """An activation enters the network; the node's `op` is the input's path."""
    WEIGHT = "weight"
    """Weights meet an activation, or are looked up."""
    SUM = "sum"
    """Two activations of one shape are added, neither scaled: a residual addition."""
    MEETING = "meeting"
    """Activations meet otherwise: gates, queries and keys, `cat`."""
    CONSTANT = "constant"
    """An activation meets a constant with several values: a mask, a rotary embedding."""
    VALUE = "value"
    """Python reads a value."""
    OUTPUT = "output"
    """An activation is returned; the node's `op` is the output's path."""


@dataclass(frozen=True, slots=True)
class Node:
    """An op at which more than one thing meets; `tensors` are the weights that enter, in the op's order."""

    happening: NodeKind
    op: str
    module: str = ""
    tensors: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" in {self.module}" if self.module else ""
        if self.happening in (NodeKind.INPUT, NodeKind.OUTPUT):
            return f"{self.happening.value} {self.op}".rstrip()
        # a module's weight stands for all its tensors
        own = [name for name in self.tensors if name.rpartition(".")[2] == "weight"] or list(self.tensors)
        return f"{', '.join(own)} ({self.op}{where})" if own else f"{self.op}{where}"


@dataclass(frozen=True, slots=True)
class Edge:
    """The way of an activation from one node to another, by their numbers, through `ops` that take nothing else."""

    source: int
    target: int
    ops: tuple[str, ...] = ()

    @property
    def moves_only(self) -> bool:
        """Whether all that happens on the way is that entries are rearranged."""
        return MOVING.issuperset(self.ops)


@dataclass(frozen=True)
class Flow:
    """Nodes in execution order, and the edges between them; those into one node come in the order of its operands."""

    nodes: tuple[Node, ...] = ()
    edges: tuple[Edge, ...] = ()

    @cached_property
    def into(self) -> tuple[tuple[Edge, ...], ...]:
        """For every node the edges that end there."""
        return self._by([edge.target for edge in self.edges])

    @cached_property
    def out_of(self) -> tuple[tuple[Edge, ...], ...]:
        """For every node the edges that start there."""
        return self._by([edge.source for edge in self.edges])

    def _by(self, ends: list[int]) -> tuple[tuple[Edge, ...], ...]:
        found: list[list[Edge]] = [[] for _ in self.nodes]
        for end, edge in zip(ends, self.edges, strict=True):
            found[end].append(edge)
        return tuple(map(tuple, found))

    def readers(self, node: int) -> tuple[Edge, ...]:
        """The edges to all that reads what a node makes inside the network."""
        return tuple(e for e in self.out_of[node] if self.nodes[e.target].happening is not NodeKind.OUTPUT)

    def depends(self, node: int, on: int) -> bool:
        """Whether what a node makes depends on what another one makes; every node depends on itself."""
        pending, seen = [node], {node}
        while pending:
            for edge in self.into[pending.pop()]:
                if edge.source not in seen:
                    seen.add(edge.source)
                    pending.append(edge.source)
        return on in seen

    def __str__(self) -> str:
        rows = []
        for number, node in enumerate(self.nodes):
            read = ", ".join(" ".join((str(edge.source), *edge.ops)) for edge in self.into[number])
            rows.append((str(number), str(node), read))
        return text_table(("number", "what enters or meets", "reads"), rows, numbers={"number"}, width=140)


__all__ = ["MOVING", "Edge", "Flow", "Node", "NodeKind"]
