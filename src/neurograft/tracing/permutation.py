"""Permute a network's neurons without changing its function."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from neurograft.axes.layout import Factor, Layout, layout_size
from neurograft.errors import OptionError
from neurograft.tracing.graph import NeuronGraph, TensorInfo
from neurograft.tracing.labelling import tensors_of_model

Permutation: TypeAlias = "Tensor | Sequence[int]"


def layout_index(layout: Layout, moved: Mapping[str, Tensor]) -> Tensor:
    """Where each position of the dim comes from when the groups in `moved` are permuted.

    Example:
        >>> from neurograft.axes.layout import Factor
        >>> layout_index(((Factor("heads", 2), Factor(None, 3)),), {"heads": torch.tensor([1, 0])}).tolist()
        [3, 4, 5, 0, 1, 2]
    """
    parts: list[Tensor] = []
    start = 0
    for segment in layout:
        index = torch.zeros(1, dtype=torch.long)
        for part in segment:
            if isinstance(part, Factor):
                size = part.size
                inner = moved.get(part.group) if part.group is not None else None
                inner = torch.arange(size) if inner is None else inner
            else:
                size, inner = layout_size(part), layout_index(part, moved)
            index = (index[:, None] * size + inner).flatten()
        parts.append(index + start)
        start += len(index)
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)


def permuted_tensor(x: Tensor, info: TensorInfo, moved: Mapping[str, Tensor]) -> Tensor:
    """A tensor with the groups in `moved` permuted along each of its dims."""
    for dim, layout in enumerate(info.layouts):
        if any(group in moved for group in info.roles[dim]):
            x = x.index_select(dim, layout_index(layout, moved).to(x.device))
    return x


def permute(model: nn.Module, graph: NeuronGraph, permutations: Mapping[str, Permutation]) -> nn.Module:
    """A copy of the network with neurons in another order: new neuron i is old neuron `permutation[i]`.

    The copy computes the same function.

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
    other = copy.deepcopy(model)
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


def _checked(graph: NeuronGraph, name: str, permutation: Permutation) -> Tensor:
    group = graph[name]
    if group.fixed:
        raise OptionError(f"group {name!r} is fixed ({group.why}): its neurons cannot be permuted")
    index = torch.as_tensor(permutation, dtype=torch.long).cpu()
    if index.shape != (group.size,) or not torch.equal(index.sort().values, torch.arange(group.size)):
        raise OptionError(f"group {name!r} needs a permutation of 0 … {group.size - 1}, got {index.tolist()[:12]}")
    return index


def _refresh(model: nn.Module) -> None:
    # recurrent modules keep a flat copy of their weights on some devices
    for module in model.modules():
        if isinstance(module, nn.RNNBase) and any(p.is_cuda for p in module.parameters()):
            module.flatten_parameters()


__all__ = ["Permutation", "layout_index", "permute", "permuted_tensor"]
