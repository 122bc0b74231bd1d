"""Edges between uses of weights: who reads what a use makes, and what lies between."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import neurograft as ng
from neurograft.tracing.flow import Edge, Flow, Node, NodeKind
from tests.networks import NETWORKS, build, example


def named(flow: Flow) -> list[tuple[str, str]]:
    """What every node is called, with what it reads."""
    names = [node.tensors[0].rpartition(".")[0] if node.tensors else node.op for node in flow.nodes]
    return [
        (name, ", ".join(" ".join((names[e.source], *e.ops)) for e in edges))
        for name, edges in zip(names, flow.into, strict=True)
    ]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.up, self.down = nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.head(h + self.down(F.gelu(self.up(self.norm(h)))))


def test_a_residual_block() -> None:
    flow = ng.trace(Block(), torch.randn(4, 3)).flow
    assert named(flow) == [
        ("", ""),
        ("stem", ""),
        ("norm", "stem"),
        ("up", "norm"),
        ("down", "up gelu"),
        ("add", "stem, down"),
        ("head", "add"),
        ("", "head"),
    ]


def test_which_norm_a_layer_reads_and_that_all_its_readers_are_linear() -> None:
    graph = ng.trace(Block(), torch.randn(4, 3))
    nodes = {use.tensor: use.node for use in graph.uses}
    (edge,) = graph.flow.into[nodes["up.weight"]]
    assert (edge.source, edge.moves_only) == (nodes["norm.weight"], True)
    assert [e.target for e in graph.flow.readers(nodes["norm.weight"])] == [nodes["up.weight"]]
    # the stream is read by the norm and by the residual addition
    assert [graph.flow.nodes[e.target].happening for e in graph.flow.readers(nodes["stem.weight"])] == [
        NodeKind.WEIGHT,
        NodeKind.SUM,
    ]


class PostNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.stem(x))
        return self.head(h + self.down(F.gelu(self.up(h))))


def test_a_norm_that_the_stream_reads_has_a_reader_that_is_not_linear() -> None:
    graph = ng.trace(PostNorm(), torch.randn(4, 3))
    nodes = {use.tensor: use.node for use in graph.uses}
    readers = [graph.flow.nodes[e.target].happening for e in graph.flow.readers(nodes["norm.weight"])]
    assert readers == [NodeKind.WEIGHT, NodeKind.SUM]


class Branches(nn.Module):
    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.c1, self.c2 = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.n1, self.n2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            a, b = self.c1(x), self.c2(x)
            return self.n1(a) + self.n2(b)
        return self.n1(self.c1(x)) + self.n2(self.c2(x))


@pytest.mark.parametrize("first", [False, True])
def test_edges_do_not_depend_on_the_order_of_execution(first: bool) -> None:
    flow = ng.trace(Branches(first).eval(), torch.randn(2, 3, 2, 2)).flow
    found = dict(named(flow))
    assert (found["n1"], found["n2"], found["add"]) == ("c1", "c2", "n1, n2")


class Writing(nn.Module):
    """Fills a tensor of zeros part by part, and changes one in place through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.zeros(len(x), 2, 4)
        z[:, 0] = self.a(x)
        z[:, 1] = self.b(x)
        y = self.c(z)
        y[0].mul_(2)
        return y


def test_what_is_written_in_place_is_followed_through_other_views() -> None:
    found = named(ng.trace(Writing(), torch.randn(4, 3)).flow)
    assert [name for name, _ in found] == ["", "a", "b", "copy", "c", ""]
    assert found[3][1].split(", ")[1] == "b"
    assert found[3][1].startswith("a copy")
    assert found[4][1].startswith("copy")
    assert "mul" in found[5][1]


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.rand(4), persistent=False)
        self.a, self.gain, self.b = nn.Linear(3, 4), nn.Parameter(torch.rand(4)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if h.sum() > 1e9:
            h = h * 2
        return self.b(torch.add(h, h.sigmoid() * self.gain, alpha=2) * self.mask * 3)


def test_what_happens_at_nodes() -> None:
    flow = ng.trace(Gate(), torch.randn(5, 3)).flow
    kinds = [(node.happening, node.op, node.tensors) for node in flow.nodes]
    assert kinds == [
        (NodeKind.INPUT, "", ()),
        (NodeKind.WEIGHT, "addmm", ("a.bias", "a.weight")),
        (NodeKind.VALUE, "_local_scalar_dense", ()),
        (NodeKind.WEIGHT, "mul", ("gain",)),
        (NodeKind.MEETING, "add", ()),  # scaled
        (NodeKind.CONSTANT, "mul", ()),
        (NodeKind.WEIGHT, "addmm", ("b.bias", "b.weight")),
        (NodeKind.OUTPUT, "", ()),
    ]
    assert flow.into[6] == (Edge(5, 6, ("mul",)),)
    assert flow.into[2] == (Edge(1, 2, ("sum", "gt")),)


def test_who_depends_on_whom() -> None:
    graph = ng.trace(build("resnet"), example("resnet"))
    nodes = {use.tensor: use.node for use in graph.uses}
    shortcut, branch = nodes["blocks.2.shortcut.0.weight"], nodes["blocks.2.conv2.weight"]
    assert graph.flow.depends(branch, nodes["conv1.weight"])
    assert not graph.flow.depends(shortcut, branch)
    assert not graph.flow.depends(nodes["conv1.weight"], branch)


class Either(nn.Module):
    """Takes another way for large inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.extra, self.b = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(self.extra(h).relu() if x.shape[0] > 2 else h)


def test_another_example_adds_its_way_in_its_place() -> None:
    flow = ng.trace(Either(), [torch.randn(1, 3), torch.randn(4, 3)]).flow
    assert named(flow) == [("", ""), ("a", ""), ("extra", "a"), ("b", "a, extra relu"), ("", "b")]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_use_is_a_node_that_its_weights_enter(name: str) -> None:
    graph = ng.trace(build(name), example(name))
    assert graph.uses
    for use in graph.uses:
        node = graph.flow.nodes[use.node]
        assert (node.happening, node.op, node.module) == (NodeKind.WEIGHT, use.op.rstrip("_"), use.module)
        assert use.tensor in node.tensors
    assert all(edge.source < edge.target for edge in graph.flow.edges)
    outputs = [i for i, node in enumerate(graph.flow.nodes) if node.happening is NodeKind.OUTPUT]
    inputs = {i for i, node in enumerate(graph.flow.nodes) if node.happening is NodeKind.INPUT}
    assert all(any(graph.flow.depends(output, i) for i in inputs) for output in outputs)


def test_a_flow_prints_what_every_node_reads() -> None:
    flow = Flow((Node(NodeKind.INPUT, ""), Node(NodeKind.WEIGHT, "mm", "fc", ("fc.weight",))), (Edge(0, 1, ("t",)),))
    assert str(flow) == ("number  what enters or meets  reads\n     0  input\n     1  fc.weight (mm in fc)  0 t")
