"""Find the flow of activations while tapes are read."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from neurograft.tracing.flow import Edge, Flow, Node, NodeKind
from neurograft.tracing.tape import Op, op_tensors, storage_of

# ops whose result is what they take
_IDENTITY = {"alias", "clone", "contiguous", "detach", "lift_fresh", "_to_copy"}


@dataclass(frozen=True, slots=True)
class _Way:
    """Where a tensor comes from: the last node, the ops since, and when the last of them ran."""

    node: int
    ops: tuple[str, ...]
    at: int


class FlowBuilder:
    """Adds op after op; a second run adds what it does not share with the first."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.order: list[int] = []
        self.edges: dict[Edge, None] = {}
        self.number: dict[tuple[Node, int], int] = {}
        self.node_of: dict[int, int] = {}
        self.begin(())

    def begin(self, inputs: Iterable[tuple[str, Tensor]]) -> None:
        """A run starts, with these inputs by path."""
        self.ways: dict[int, _Way] = {}
        self.written: dict[int, _Way] = {}
        self.counts: Counter[Node] = Counter()
        self.last = -1
        self.now = 0
        for path, x in inputs:
            self.ways[id(x)] = _Way(self._node(Node(NodeKind.INPUT, path), ()), (), 0)

    def end(self, outputs: Iterable[tuple[str, Tensor]]) -> None:
        """The run is over, and has returned these tensors."""
        for path, x in outputs:
            way = self._way(x)
            if way is not None:
                self._node(Node(NodeKind.OUTPUT, path), (way,))

    def add(self, op: Op, weights: Sequence[str], *, constant: bool, alike: bool) -> None:
        """An op that does not work on weights alone has run.

        Args:
            op: as recorded.
            weights: the parameters behind its operands.
            constant: whether a constant with several values is among them.
            alike: whether its operands have one shape.
        """
        taken = [way for x in op_tensors(op) if (way := self._way(x)) is not None]
        if not taken and not weights:
            return
        self.now += 1
        name = op.name.rstrip("_")
        results = [r for r in op.results if isinstance(r, Tensor)]
        if results and len(taken) == 1 and not weights and not constant:
            way = taken[0]
            way = _Way(way.node, way.ops if name in _IDENTITY else (*way.ops, name), self.now)
        else:
            adds = name == "add" and alike and op.kwargs.get("alpha", 1) == 1
            kind = _node_kind(bool(results), bool(weights), len(taken), adds)
            way = _Way(self._node(Node(kind, name, op.module, tuple(weights)), taken), (), self.now)
            self.node_of[id(op)] = way.node
        self.ways.update((id(r), way) for r in results)
        self.written.update((storage_of(x), way) for x in op.mutates)

    def _way(self, x: Tensor) -> _Way | None:
        # what was last written into the tensor's memory counts, through whatever view
        own = self.ways.get(id(x))
        written = self.written.get(storage_of(x)) if self.written else None
        return written if own is None or (written is not None and written.at > own.at) else own

    def _node(self, node: Node, ways: Sequence[_Way]) -> int:
        key = node, self.counts[node]
        self.counts[node] += 1
        new = key not in self.number
        if new:
            self.number[key] = len(self.nodes)
            self.nodes.append(node)
            place = self.order.index(self.last) + 1 if self.last >= 0 and self.last != self.order[-1] else None
            self.order.insert(len(self.order) if place is None else place, self.number[key])
        found = self.last = self.number[key]
        self.edges.update(dict.fromkeys(Edge(way.node, found, way.ops) for way in ways))
        return found

    def flow(self) -> Flow:
        """What was found, the nodes in execution order."""
        places = self.places()
        edges = (Edge(places[e.source], places[e.target], e.ops) for e in self.edges)
        return Flow(tuple(self.nodes[i] for i in self.order), tuple(edges))

    def places(self) -> dict[int, int]:
        """The final number of every node."""
        return {node: place for place, node in enumerate(self.order)}


def _node_kind(results: bool, weights: bool, taken: int, adds: bool) -> NodeKind:
    if not results:
        return NodeKind.VALUE
    if weights:
        return NodeKind.WEIGHT
    if taken > 1:
        return NodeKind.SUM if adds and taken == 2 else NodeKind.MEETING
    return NodeKind.CONSTANT


__all__ = ["FlowBuilder"]
