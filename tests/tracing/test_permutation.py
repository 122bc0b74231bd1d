"""`permute` reorders neurons and keeps the function."""

import pytest
import torch

import neurograft as ng
from neurograft.errors import OptionError
from neurograft.inputs import call, first_tensor
from tests.networks import NETWORKS, build, example


@pytest.mark.parametrize("name", NETWORKS)
def test_a_permuted_network_is_the_same_function_with_other_weights(name: str) -> None:
    model, inputs = build(name).double(), example(name)
    inputs = torch.utils._pytree.tree_map(lambda x: x.double() if x.is_floating_point() else x, inputs)
    graph = ng.trace(model, inputs)
    generator = torch.Generator().manual_seed(1)
    orders = {group.name: torch.randperm(group.size, generator=generator) for group in graph.free}
    other = ng.permute(model, graph, orders)
    with torch.no_grad():
        assert torch.allclose(first_tensor(call(other, inputs)), first_tensor(call(model, inputs)), rtol=1e-10)
    inverse = {name: order.argsort() for name, order in orders.items()}
    back = ng.permute(other, graph, inverse)
    assert all(torch.equal(x, y) for x, y in zip(back.state_dict().values(), model.state_dict().values(), strict=True))


def test_new_neuron_i_is_old_neuron_order_i() -> None:
    model = build("mlp")
    graph = ng.trace(model, example("mlp"))
    order = torch.randperm(16)
    other = ng.permute(model, graph, {"layers.0.weight:0": order})
    assert torch.equal(other.layers[0].weight, model.layers[0].weight[order])
    assert torch.equal(other.layers[1].weight, model.layers[1].weight[:, order])


def test_tied_weights_stay_tied() -> None:
    model = build("tied")
    graph = ng.trace(model, example("tied"))
    other = ng.permute(model, graph, {"embed.weight:1": list(range(8))[::-1]})
    assert other.head.weight is other.embed.weight


def test_what_is_no_permutation_is_refused() -> None:
    model = build("mlp")
    graph = ng.trace(model, example("mlp"))
    with pytest.raises(OptionError, match=r"needs a permutation of 0 … 15"):
        ng.permute(model, graph, {"layers.0.weight:0": [0, 1]})
    with pytest.raises(OptionError, match=r"is fixed \(the output\)"):
        ng.permute(model, graph, {"layers.2.weight:0": list(range(10))})
    with pytest.raises(OptionError, match="no neuron group is called 'layers.9'"):
        ng.permute(model, graph, {"layers.9": [0]})
