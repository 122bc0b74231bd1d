"""Permute a network's neurons without changing its function."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from neurograft.axes.maps import Mixing, Pairs, PerUnit
from neurograft.axes.mixing import Mixings, mix_along
from neurograft.errors import OptionError
from neurograft.preserve_state import copy_of, keeps_random_state
from neurograft.tracing.graph import NeuronGraph, TensorInfo
from neurograft.tracing.labelling import tensors_of_model

UnitOrder: TypeAlias = "Tensor | Sequence[int] | Sequence[Sequence[int]]"


def permuted_tensor(x: Tensor, info: TensorInfo, moved: Mixings) -> Tensor:
    """A tensor with the groups in `moved` permuted along each of its dims."""
    for dim, layout in enumerate(info.layouts):
        x = mix_along(x, dim, layout, layout, moved)
    return x


@keeps_random_state
def permute(model: nn.Module, graph: NeuronGraph, permutations: Mapping[str, UnitOrder]) -> nn.Module:
    """A copy of the network with neurons in another order: new neuron i is old neuron `permutation[i]`.

    A group that may be ordered differently in every unit it lies inside (`Group.per_unit`) takes one permutation for
    all units, or one for each: shape `(units, neurons)`, by the numbers of the old units. The copy computes the same
    function.

    Example:
        >>> import neurograft
        >>> net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))
        >>> graph = neurograft.trace(net, torch.randn(4, 3))
        >>> other = permute(net, graph, {"0.weight:0": [1, 0]})
        >>> torch.equal(other[0].weight, net[0].weight[[1, 0]])
        True

    Raises:
        OptionError: for an unknown or fixed group, or something that is no permutation of its units.
    """
    moved = {name: _checked(graph, name, permutation) for name, permutation in permutations.items()}
    other = copy_of(model)
    with torch.no_grad():
        for name, x in tensors_of_model(other).by_name.items():
            info = graph.tensors.get(name)
            if info is not None:
                x.data = permuted_tensor(x.data, info, moved).contiguous(memory_format=_format(x))
    _refresh(other)
    return other


def _format(x: Tensor) -> Any:
    dense = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if dense else torch.contiguous_format


def _checked(graph: NeuronGraph, name: str, permutation: UnitOrder) -> Mixing:
    group = graph[name]
    if group.fixed:
        raise OptionError(f"group {name!r} is fixed ({group.why}): its neurons cannot be permuted")
    index = torch.as_tensor(permutation, dtype=torch.long).cpu()
    each = index.dim() == 2 and group.inside is not None
    if each and not group.per_unit:
        raise OptionError(
            f"the units of {group.inside!r} share one order of group {name!r}: give one permutation for all"
        )
    shape = (graph[group.inside].size, group.size) if each and group.inside is not None else (group.size,)
    if index.shape != shape or not bool((index.sort(-1).values == torch.arange(group.size)).all()):
        many = f"{shape[0]} permutations" if each else "a permutation"
        raise OptionError(f"group {name!r} needs {many} of 0 … {group.size - 1}, got {index.tolist()[:12]}")
    return PerUnit.permutations(group.inside, index) if each and group.inside is not None else Pairs.permutation(index)


def _refresh(model: nn.Module) -> None:
    # recurrent modules keep a flat copy of their weights on some devices
    for module in model.modules():
        if isinstance(module, nn.RNNBase) and any(p.is_cuda for p in module.parameters()):
            module.flatten_parameters()


__all__ = ["UnitOrder", "permute", "permuted_tensor"]
