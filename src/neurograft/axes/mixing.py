"""Multiplying axes of a tensor by the matrices of the groups that lie along them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from neurograft.axes.layout import Factor, Layout, Role, part_size, segment_size
from neurograft.axes.maps import Mixing, NeuronMap


def roles_mixing(neuron_map: NeuronMap, roles: frozenset[Role]) -> Mixing:
    """The matrix that acts on an axis: A where the group is made or elementwise, Bᵀ where it is only read."""
    return neuron_map.unmerge if roles == {"in"} else neuron_map.merge


def mix_along(tensor: Tensor, dim: int, layout: Layout, fused: Layout, mixings: Mapping[str, Mixing]) -> Tensor:
    """Multiply one axis by its groups' matrices, sparse or dense; the other axes stay as they are.

    Args:
        tensor: any shape; axis `dim` is laid out as `layout`.
        dim: the axis to multiply.
        layout: how neurons lie along the axis before.
        fused: how neurons lie along it afterwards.
        mixings: matrix of shape `(fused, member)` per group.

    Returns:
        The same tensor with axis `dim` laid out as `fused`.

    Example:
        >>> layout = ((Factor("c", 2), Factor(None, 2)),)
        >>> swap = NeuronMap.permutation(torch.tensor([1, 0])).merge
        >>> mix_along(torch.tensor([0.0, 1.0, 2.0, 3.0]), 0, layout, layout, {"c": swap})
        tensor([2., 3., 0., 1.])
    """
    parts = []
    for own, new, piece in zip(layout, fused, torch.split(tensor, [segment_size(s) for s in layout], dim), strict=True):
        sizes = [part_size(part) for part in own]
        if len(sizes) > 1:
            piece = piece.reshape(*piece.shape[:dim], *sizes, *piece.shape[dim + 1 :])
        for i, (a, b) in enumerate(zip(own, new, strict=True)):
            if not isinstance(a, Factor):
                assert not isinstance(b, Factor)
                piece = mix_along(piece, dim + i, a, b, mixings)
            elif a.group is not None and a.group in mixings:
                piece = mix_axis(piece, dim + i, mixings[a.group])
        parts.append(piece.flatten(dim, dim + len(own) - 1) if len(own) > 1 else piece)
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def mix_axis(tensor: Tensor, dim: int, mixing: Mixing) -> Tensor:
    """Multiply one axis, which one group fills, by that group's matrix of shape `(fused, member)`."""
    if isinstance(mixing, Tensor):
        mixed: Tensor = torch.tensordot(mixing.to(tensor), tensor, dims=([1], [dim]))
        return mixed.movedim(0, dim)
    taken = tensor.index_select(dim, mixing.source.to(tensor.device))
    if mixing.weight is not None:
        taken = taken * mixing.weight.to(taken).reshape(-1, *[1] * (tensor.dim() - dim - 1))
    if len(mixing.target) == mixing.fused and bool((mixing.target == torch.arange(mixing.fused)).all()):
        return taken
    shape = (*tensor.shape[:dim], mixing.fused, *tensor.shape[dim + 1 :])
    return taken.new_zeros(shape).index_add_(dim, mixing.target.to(tensor.device), taken)
