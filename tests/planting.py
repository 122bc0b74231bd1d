"""Networks that compute the same: randomly permuted, or with every hidden neuron split into copies."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import neurograft as ng
from neurograft.tracing.class_proof import disturbed
from neurograft.tracing.labelling import tensors_of_model
from tests.networks import MLP


def planted(model: nn.Module, graph: ng.NeuronGraph, seed: int, apart: bool = False) -> nn.Module:
    """The network with the neurons of every free group in random order; `apart`: another in every unit, if allowed."""
    return ng.permute(model, graph, random_orders(graph, seed, apart))


def planted_in_class(model: nn.Module, graph: ng.NeuronGraph, seed: int) -> nn.Module:
    """The network moved by a random element of the class of every free group: orders, signs, scales, rotations."""
    other = planted(model, graph, seed, apart=True)
    tensors = tensors_of_model(other).by_name
    names = [group.name for group in graph.free]
    with torch.no_grad():
        for name, x in disturbed({n: t.detach() for n, t in tensors.items()}, graph, names, seed).items():
            tensors[name].copy_(x)
    return other


def random_orders(graph: ng.NeuronGraph, seed: int, apart: bool = True) -> dict[str, Tensor]:
    """An order for every free group, `(units, neurons)` where it is one for every unit that holds the group."""
    generator = torch.Generator().manual_seed(seed)
    orders = {}
    for group in graph.free:
        units = graph[group.inside].size if apart and group.per_unit and group.inside else 0
        found = [torch.randperm(group.size, generator=generator) for _ in range(units or 1)]
        orders[group.name] = torch.stack(found) if units else found[0]
    return orders


def largest_change(one: nn.Module, other: nn.Module) -> float:
    """The largest difference between two networks' tensors."""
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    return max(float((left[name].double() - right[name].double()).abs().max()) for name in left)


def split(net: MLP, copies: Sequence[Sequence[int]]) -> MLP:
    """A wider network of the same function: `copies[l][i]` copies of neuron i of layer l, which share its readers."""
    sources = [torch.arange(len(c)).repeat_interleave(torch.tensor(c)) for c in copies]
    layers = [layer for layer in net.layers if isinstance(layer, nn.Linear)]
    sizes = [layers[0].in_features, *(len(s) for s in sources), layers[-1].out_features]
    wide = MLP(*sizes, bias=layers[0].bias is not None).to(layers[0].weight.dtype)
    with torch.no_grad():
        for i, (new, old) in enumerate(zip(wide.layers, layers, strict=True)):
            weight, bias = old.weight, old.bias
            if i > 0:
                weight = _shared(weight, sources[i - 1])
            if i < len(sources):
                weight = weight[sources[i]]
                bias = None if bias is None else bias[sources[i]]
            new.weight.copy_(weight)
            if bias is not None:
                new.bias.copy_(bias)
    return wide


def _shared(weight: Tensor, source: Tensor) -> Tensor:
    return weight[:, source] / torch.bincount(source)[source]
