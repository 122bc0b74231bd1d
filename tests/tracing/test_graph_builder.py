"""What the graph hands on: slots, roles, kinds, nesting, reductions, uses, ties."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import neurograft as ng
from neurograft.tracing.graph import NeuronGraph, Role
from tests.networks import NETWORKS, build, example


def traced(name: str) -> NeuronGraph:
    return ng.trace(build(name), example(name), verify=False)


def roles(graph: NeuronGraph, tensor: str) -> list[set[Role]]:
    """The roles of each dim, all groups together."""
    return [set().union(*dim.values()) for dim in graph.tensors[tensor].roles]


@pytest.mark.parametrize(
    ("name", "tensor", "expected"),
    [
        ("mlp", "layers.1.weight", [{"out"}, {"in"}]),
        ("mlp_bias", "layers.0.bias", [{"out"}]),
        ("mlp_batch_norm", "norms.0.weight", [{"elementwise"}]),
        ("mlp_batch_norm", "norms.0.running_var", [{"elementwise"}]),
        ("mlp_prelu", "norms.0.weight", [{"elementwise"}]),
        ("lenet", "c2.weight", [{"out"}, {"in"}, set(), set()]),
        ("autoencoder", "up1.weight", [{"in"}, {"out"}, set(), set()]),
        ("depthwise", "inner.weight", [{"elementwise"}, set(), set(), set()]),
        ("grouped", "inner.weight", [{"out", "elementwise"}, {"in"}, set(), set()]),
        ("tied", "embed.weight", [{"out"}, {"out", "in"}]),
        ("bare", "first", [{"in"}, {"out"}]),
        ("bare", "second", [{"in"}, {"out"}]),
        ("bare", "gain", [{"elementwise"}]),
        ("bare", "query", [{"in"}]),
        ("attention", "qkv.weight", [{"out"}, {"in"}]),
        ("mixer", "position", [set(), {"out"}, {"out"}]),
        ("weight_norm", "first.parametrizations.weight.original0", [{"out"}, set()]),
        ("weight_norm", "first.parametrizations.weight.original1", [{"out"}, {"in"}]),
    ],
)
def test_roles(name: str, tensor: str, expected: list[set[Role]]) -> None:
    assert roles(traced(name), tensor) == expected


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("mlp_bias", {"layers.0.weight": "weight", "layers.0.bias": "bias"}),
        (
            "mlp_batch_norm",
            {
                "norms.0.weight": "scale",
                "norms.0.bias": "shift",
                "norms.0.running_mean": "mean",
                "norms.0.running_var": "variance",
            },
        ),
        ("mlp_layer_norm", {"norms.0.weight": "scale", "norms.0.bias": "shift"}),
        ("mlp_prelu", {"norms.0.weight": "scale"}),
        ("resnet_group_norm", {"norm1.weight": "scale", "norm1.bias": "shift"}),
        ("bare", {"first": "weight", "gain": "scale", "query": "weight", "scales.0": "scale"}),
        ("mixer", {"position": "weight", "patch.bias": "bias"}),
        ("tied", {"embed.weight": "weight"}),
        (
            "weight_norm",
            {
                "first.parametrizations.weight.original0": "scale",
                "first.parametrizations.weight.original1": "weight",
                "second.parametrizations.weight.original": "weight",
                "second.parametrizations.weight.0._u": "statistic",
            },
        ),
    ],
)
def test_kinds(name: str, kinds: Mapping[str, str]) -> None:
    graph = traced(name)
    assert {tensor: graph.tensors[tensor].kind for tensor in kinds} == kinds


def test_a_weight_behind_a_norm_is_curved() -> None:
    graph = traced("weight_norm")
    assert graph.tensors["first.parametrizations.weight.original1"].curved
    assert not graph.tensors["head.weight"].curved


def test_slots_of_a_flatten_step_over_image_positions() -> None:
    graph = traced("lenet")
    slot = next(slot for slot in graph["c2.weight:0"].slots if slot.tensor == "f1.weight")
    assert (slot.start, slot.stride, slot.inner, slot.role) == (0, 4, ((4, 1),), "in")
    assert slot.positions(6)[1].tolist() == [4, 5, 6, 7]


def test_slots_of_a_concatenation_start_behind_what_comes_first() -> None:
    graph = traced("unet")
    places = {(slot.tensor, slot.start) for slot in graph["enter.weight:0"].slots if slot.role == "in"}
    assert places == {("down.weight", 0), ("join.weight", 5)}


def test_slots_of_a_fused_projection_repeat_per_part() -> None:
    graph = traced("attention")
    heads = next(slot for slot in graph["qkv.weight:0.1"].slots if slot.tensor == "qkv.weight")
    assert heads.positions(3)[1].tolist() == [4, 5, 6, 7, 16, 17, 18, 19, 28, 29, 30, 31]


def test_inside_names_the_group_whose_units_hold_it() -> None:
    graph = traced("attention")
    assert graph["qkv.weight:0.2"].inside == "qkv.weight:0.1"
    assert graph["qkv.weight:0.1"].inside is None
    graph = traced("grouped")
    assert graph["enter.weight:0.1"].inside == "enter.weight:0"
    assert graph["inner.weight:0"].inside == "enter.weight:0"


def test_tokens_and_channels_of_a_mixer_are_not_nested() -> None:
    class Latents(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.position = nn.Linear(5, 6 * 8), nn.Parameter(torch.randn(6, 8))
            self.tokens, self.channels = nn.Linear(6, 7), nn.Linear(8, 9)
            self.head = nn.Linear(7 * 9, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).view(-1, 6, 8) + self.position
            x = self.channels(x).relu()
            x = self.tokens(x.transpose(1, 2)).relu().transpose(1, 2)
            return self.head(x.flatten(1))

    graph = ng.trace(Latents(), torch.randn(3, 5))
    assert {(g.size, g.inside) for g in graph.free} == {(6, None), (8, None), (7, None), (9, None)}


def test_reductions_and_bilinear_contractions_are_marked() -> None:
    graph = traced("attention")
    assert graph["stem.weight:0"].reduced_by == ("native_layer_norm in norm",)
    assert graph["qkv.weight:0.2"].bilinear == ("bmm in the network itself",)
    assert traced("mlp").free[0].reduced_by == ()
    assert traced("resnet_group_norm")["conv1.weight:0.1"].reduced_by[0] == "native_group_norm in norm1"


def test_uses_say_what_faces_what() -> None:
    graph = traced("lenet_bias")
    first = graph.uses[0]
    assert (first.tensor, first.bias, first.op, first.module, first.nth) == (
        "c1.weight",
        "c1.bias",
        "convolution",
        "c1",
        0,
    )
    assert (first.input_dims, first.output_dims) == ({1: 1}, {0: 1})
    assert [use.tensor for use in graph.uses] == ["c1.weight", "c2.weight", "f1.weight", "f2.weight"]
    linear = graph.uses[2]
    assert (linear.input_dims, linear.output_dims) == ({1: 1}, {0: 1})


def test_uses_count_a_layer_that_is_called_twice() -> None:
    graph = traced("twice")
    assert [(use.tensor, use.nth) for use in graph.uses][1:3] == [("again.weight", 0), ("again.weight", 1)]


def test_uses_of_an_embedding_have_no_input() -> None:
    use = traced("tied").uses[0]
    assert use.input is None
    assert use.output_dims == {1: 2}


def test_the_norm_in_front_of_a_tied_head_is_named() -> None:
    (tied,) = traced("tied").tied
    assert (tied.tensor, tied.group, tied.norm) == ("embed.weight", "embed.weight:1", ("norm.weight", "norm.bias"))
    assert traced("tied_without_norm").tied[0].norm == ()


def test_a_written_out_norm_is_found_too() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.scale = nn.Embedding(11, 8), nn.Parameter(torch.rand(8))

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)
            x = self.scale * (x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt())
            return x @ self.embed.weight.t()

    (tied,) = ng.trace(Model(), example("tied")).tied
    assert tied.norm == ("scale",)


@pytest.mark.parametrize("name", NETWORKS)
def test_slots_alone_say_where_units_sit(name: str) -> None:
    model = build(name)
    graph = ng.trace(model, example(name), verify=False)
    for group in graph.free:
        order = torch.randperm(group.size)
        other = dict(ng.permute(model, graph, {group.name: order}).state_dict())
        moved = dict(model.state_dict())
        for slot in {(s.tensor, s.dim, s.start): s for s in group.slots}.values():
            places = slot.positions(group.size)
            index = torch.arange(moved[slot.tensor].shape[slot.dim])
            index[places.flatten()] = places[order].flatten()
            moved[slot.tensor] = moved[slot.tensor].index_select(slot.dim, index)
        for tensor in {slot.tensor for slot in group.slots}:
            assert torch.equal(moved[tensor], other[tensor])


def test_resized_widens_every_tensor_that_holds_a_group() -> None:
    graph = traced("lenet").resized({"c2.weight:0": 9})
    assert graph.tensors["f1.weight"].shape == (12, 36)
    assert graph.tensors["c2.weight"].shape == (9, 4, 3, 3)
