"""Which groups may be ordered differently in every unit that holds them, and the proof of it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import neurograft as ng
from neurograft.errors import OptionError
from neurograft.tracing import nesting
from neurograft.tracing.graph import NeuronGraph
from tests.attention import CHANNELS, WIDTH, Block, attention, sequences
from tests.networks import build, example
from tests.planting import random_orders


def insides(graph: NeuronGraph) -> dict[str, tuple[int, str, bool]]:
    return {g.name: (g.size, g.inside, g.per_unit) for g in graph.free if g.inside is not None}


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("written", {"q.weight:0.1": (3, "q.weight:0", True), "v.weight:0": (3, "q.weight:0", True)}),
        ("torch", {"attention.in_proj_weight:0.2": (3, "attention.in_proj_weight:0.1", True)}),
        (
            "grouped_query",
            {
                "q.weight:0.1": (2, "q.weight:0", True),
                "q.weight:0.2": (3, "q.weight:0", True),
                "v.weight:0": (3, "q.weight:0", True),
            },
        ),
    ],
)
def test_channels_may_differ_from_head_to_head(form: str, expected: dict[str, tuple[int, str, bool]]) -> None:
    net, x = attention(form, 4), sequences()
    graph = ng.trace(net, x)
    assert insides(graph) == expected
    with torch.device("meta"):
        shapes = attention(form, 4)
    assert insides(ng.trace(shapes, x.to("meta"))) == expected
    assert ng.verify(net, graph, x, deep=True).passed
    other = ng.permute(net, graph, random_orders(graph, 1))
    torch.testing.assert_close(other(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["attention", "grouped", "depthwise_double", "resnet_group_norm"])
def test_every_unit_permuted_by_itself_computes_the_same(name: str) -> None:
    net, x = build(name).double(), example(name).double()
    graph = ng.trace(net, x)
    assert any(group.per_unit for group in graph)
    other = ng.permute(net, graph, random_orders(graph, 3))
    torch.testing.assert_close(other(x), net(x), rtol=1e-10, atol=1e-12)


class Heads(Block):
    """Values per head, brought together across heads in some way before they are projected."""

    def __init__(self, mix: Callable[[Tensor, Tensor], Tensor]):
        super().__init__(4)
        self.v, self.project, self.mix = nn.Linear(WIDTH, 4 * CHANNELS), nn.Linear(4 * CHANNELS, WIDTH), mix
        self.gain = nn.Parameter(torch.rand(CHANNELS) + 0.5)

    def attend(self, x: Tensor) -> Tensor:
        v = self.mix(self.v(x).unflatten(-1, (4, CHANNELS)), self.gain)
        return self.project(v.flatten(-2))


MIXES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax over heads": lambda v, _: v * v.softmax(-2),
    "attention between heads": lambda v, _: (v @ v.transpose(-1, -2)).softmax(-1) @ v,
    "attention between heads, in one op": lambda v, _: nn.functional.scaled_dot_product_attention(v, v, v),
    "the mean head beside each": lambda v, _: (v + v.mean(-2, keepdim=True)).tanh(),
}


@pytest.mark.parametrize("mix", MIXES)
def test_channels_that_meet_across_heads_are_ordered_alike(mix: str) -> None:
    torch.manual_seed(0)
    net, x = Heads(MIXES[mix]), sequences()
    for graph in (ng.trace(net, x), ng.trace(net, x, verify=False)):
        assert insides(graph) == {"v.weight:0.1": (3, "v.weight:0", False)}


def test_a_weight_for_the_channels_of_any_head_is_shared() -> None:
    torch.manual_seed(0)
    net, x = Heads(lambda v, gain: v * gain), sequences()
    graph = ng.trace(net, x)
    assert insides(graph) == {"gain:0": (3, "v.weight:0", False)}
    with pytest.raises(OptionError, match=r"the units of 'v.weight:0' share one order of group 'gain:0'"):
        ng.permute(net, graph, {"gain:0": torch.stack([torch.arange(3)] * 4)})


@pytest.mark.parametrize("mix", ["softmax over heads", "attention between heads"])
def test_the_proof_refuses_a_freedom_that_is_not_there(mix: str) -> None:
    torch.manual_seed(0)
    net, x = Heads(MIXES[mix]), sequences()
    graph = ng.trace(net, x)
    claimed = replace(graph, groups=tuple(replace(g, per_unit=g.inside is not None) for g in graph))
    proof = ng.verify(net, claimed, x)
    assert not proof.passed
    assert (proof.alike, proof.guilty, proof.wrong_roles) == (("v.weight:0.1",), (), ())
    assert "v.weight:0.1 must be ordered alike in all units" in str(proof)


def test_where_rules_allow_too_much_the_proof_takes_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fixed and nobody is warned: the group keeps one order for all units."""
    monkeypatch.setattr(nesting._Meetings, "allowed", lambda self: list(self._inside))
    torch.manual_seed(0)
    net, x = Heads(MIXES["softmax over heads"]), sequences()
    assert insides(ng.trace(net, x, verify=False)) == {"v.weight:0.1": (3, "v.weight:0", True)}
    assert insides(ng.trace(net, x)) == {"v.weight:0.1": (3, "v.weight:0", False)}
    assert insides(ng.trace(net, x, strict=True)) == {"v.weight:0.1": (3, "v.weight:0", False)}


def test_what_rounding_hides_in_float32_shows_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that hardly meet: 1e-6 of the output, below what rounding may do in float32."""
    monkeypatch.setattr(nesting._Meetings, "allowed", lambda self: list(self._inside))
    torch.manual_seed(0)
    net, x = Heads(lambda v, _: v + 1e-6 * v.softmax(-2)), sequences()
    assert not ng.trace(net, x)["v.weight:0.1"].per_unit


def test_fixed_heads_have_no_insides() -> None:
    net, x = attention("written", 4), sequences()
    graph = ng.trace(net, x).fixing(["q.bias"])
    assert not any(group.per_unit for group in graph)


def test_orders_that_fit_no_group_are_refused() -> None:
    net, x = attention("torch", 4), sequences()
    graph = ng.trace(net, x)
    name = "attention.in_proj_weight:0.2"
    with pytest.raises(OptionError, match=r"needs 4 permutations of 0 … 2, got"):
        ng.permute(net, graph, {name: torch.stack([torch.arange(3)] * 3)})
    with pytest.raises(OptionError, match=r"needs 4 permutations of 0 … 2, got"):
        ng.permute(net, graph, {name: torch.zeros(4, 3, dtype=torch.long)})
    with pytest.raises(OptionError, match=r"group 'stem.weight:0' needs a permutation"):
        ng.permute(net, graph, {"stem.weight:0": torch.stack([torch.arange(12)] * 2)})


def test_a_printed_graph_says_it() -> None:
    assert "in each by itself" in str(ng.trace(attention("torch", 4), sequences(), verify=False))
