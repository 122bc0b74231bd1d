import torch
from tests.networks import MLP, build, example
from tests.planting import split
from torch import Tensor, nn

import neurograft as ng
from neurograft.alignment.matching import Everything
from neurograft.alignment.products import Products
from neurograft.alignment.weight_similarity import (
    Network,
    WeightSimilarity,
    aligned,
    neuron_norms,
    unit_features,
    weight_axes,
)
from neurograft.axes.layout import Factor
from neurograft.axes.maps import NeuronMap
from neurograft.members.states import state_of


def network(model: nn.Module, inputs: Tensor) -> Network:
    return Network(state_of(model), ng.trace(model, inputs, verify=False))


def mlps(*sizes: int, bias: bool = True) -> tuple[Network, Network]:
    nets = [MLP(*sizes, bias=bias).double() for _ in range(2)]
    return network(nets[0], torch.randn(2, sizes[0]).double()), network(nets[1], torch.randn(2, sizes[0]).double())


def test_products_are_those_of_the_incoming_weights_and_biases() -> None:
    target, member = mlps(5, 7, 4)
    found = WeightSimilarity(target, member).products("layers.0.weight:0", {}, (), readers=False)
    assert found is not None
    ours = torch.cat([member.state["layers.0.weight"], member.state["layers.0.bias"][:, None]], 1)
    theirs = torch.cat([target.state["layers.0.weight"], target.state["layers.0.bias"][:, None]], 1)
    torch.testing.assert_close(found.cross, ours @ theirs.T)
    torch.testing.assert_close(found.distances("euclidean"), (ours[:, None] - theirs[None]).norm(dim=2))
    torch.testing.assert_close(found.distances("squared"), (ours[:, None] - theirs[None]).square().sum(2))
    cosine = 1 - nn.functional.cosine_similarity(ours[:, None], theirs[None], dim=2)
    torch.testing.assert_close(found.distances("cosine"), cosine)


def test_the_members_inputs_are_aligned_by_its_unmerge_map() -> None:
    target, member = mlps(5, 7, 6, 4, bias=False)
    first = "layers.0.weight:0"
    soft = NeuronMap(torch.rand(7, 7).double(), torch.rand(7, 7).double())
    found = WeightSimilarity(target, member).products("layers.1.weight:0", {first: soft}, {first}, readers=False)
    assert found is not None
    assert isinstance(soft.unmerge, Tensor)
    ours = member.state["layers.1.weight"] @ soft.unmerge.T
    torch.testing.assert_close(found.cross, ours @ target.state["layers.1.weight"].T)


def test_a_producer_whose_inputs_are_not_aligned_says_nothing() -> None:
    target, member = mlps(5, 7, 6, 4, bias=False)
    evidence = WeightSimilarity(target, member)
    assert evidence.products("layers.1.weight:0", {}, (), readers=False) is None
    assert evidence.products("layers.1.weight:0", {}, (), readers=True) is not None  # the head's outputs are fixed
    assert evidence.products("layers.0.weight:0", {}, (), readers=False) is not None


def test_several_producers_add_up_and_running_statistics_do_not_count() -> None:
    model, inputs = build("resnet").double(), example("resnet").double()
    here = network(model, inputs)
    stream = "conv1.weight:0"
    made = list(weight_axes(here.graph, stream, readers=False))
    assert made == [
        ("conv1.weight", 0),
        ("norm1.weight", 0),
        ("norm1.bias", 0),
        ("blocks.0.conv2.weight", 0),
        ("blocks.0.norm2.weight", 0),
        ("blocks.0.norm2.bias", 0),
        ("blocks.1.conv2.weight", 0),
        ("blocks.1.norm2.weight", 0),
        ("blocks.1.norm2.bias", 0),
    ]
    found = WeightSimilarity(here, here).products(stream, {}, Everything(), readers=False)
    assert found is not None
    norms = sum(here.state[name].reshape(8, -1).square().sum(1) for name, _ in made)
    torch.testing.assert_close(found.member, norms)


def test_an_aligned_tensor_has_every_axis_in_the_fused_basis_but_one() -> None:
    _, member = mlps(5, 7, 6, 4, bias=False)
    swap = {
        "layers.0.weight:0": NeuronMap.permutation(torch.randperm(7)),
        "layers.1.weight:0": NeuronMap.permutation(torch.randperm(6)),
    }
    columns = swap["layers.0.weight:0"].merge.source
    rows = swap["layers.1.weight:0"].merge.source
    weight = member.state["layers.1.weight"]
    torch.testing.assert_close(aligned(member, "layers.1.weight", swap)[0], weight[rows][:, columns])
    left, layout = aligned(member, "layers.1.weight", swap, leave=(["layers.1.weight:0"], 0))
    torch.testing.assert_close(left, weight[:, columns])
    assert layout == ((Factor("layers.1.weight:0", 6),),)


def test_features_of_units_with_several_positions() -> None:
    tensor = torch.arange(8).reshape(2, 4)
    found = unit_features(tensor, 1, torch.tensor([[0, 2], [1, 3]]))
    torch.testing.assert_close(found, torch.tensor([[0, 2, 4, 6], [1, 3, 5, 7]]))


def test_mass_is_kept_by_splitting_and_by_rescaling() -> None:
    torch.manual_seed(0)
    net = MLP(5, 3, 4, bias=True).double()
    x = torch.randn(2, 5).double()
    wide = split(net, [[3, 1, 1]])
    torch.testing.assert_close(wide(x), net(x))

    def mass(model: MLP) -> Tensor:
        made, read = neuron_norms(network(model, x), "layers.0.weight:0")
        return made * read

    before = mass(net)
    source = torch.tensor([0, 0, 0, 1, 2])
    torch.testing.assert_close(torch.zeros(3).double().index_add(0, source, mass(wide)), before)
    with torch.no_grad():
        net.layers[0].weight[1] *= 4
        net.layers[0].bias[1] *= 4
        net.layers[1].weight[:, 1] /= 4
    torch.testing.assert_close(mass(net), before)


def test_half_precision_is_compared_in_float32() -> None:
    model = MLP(5, 7, 4).half()
    here = Network(state_of(model), ng.trace(MLP(5, 7, 4), torch.randn(2, 5), verify=False))
    found = WeightSimilarity(here, here).products("layers.0.weight:0", {}, (), readers=True)
    assert found is not None
    assert found.cross.dtype is torch.float32


def test_a_cosine_without_weights_is_one() -> None:
    nothing = Products(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1))
    torch.testing.assert_close(nothing.distances("cosine"), torch.ones(1, 1))
