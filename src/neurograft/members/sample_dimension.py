"""Along which dimension of a batch the samples lie, if a batch can be cut into samples at all."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from neurograft.inputs import Inputs, call, device_of, is_sparse, to_device
from neurograft.preserve_state import preserve_state

TESTED = 8  # samples that it is tried on
ROUNDING = {torch.float16: 5e-2, torch.bfloat16: 1e-1, torch.complex32: 5e-2}


def sample_dimension(model: nn.Module, batch: Inputs) -> int | None:
    """The first dimension, 0 or 1, along which a batch can be cut so that every sample keeps its outputs.

    The first few positions run together, then every second of these alone: their outputs must be the same. That is so
    along the samples, but not along time, the nodes of a graph, the channels of images in a list.

    Returns:
        None where neither is, so that the batch must be used whole; 0 where there is only one position to cut.

    Example:
        >>> lstm, x = nn.LSTM(3, 4), torch.randn(6, 5, 3)
        >>> sample_dimension(lstm, x), sample_dimension(nn.LSTM(3, 4, batch_first=True), x)
        (1, 0)
        >>> sample_dimension(nn.Softmax(0), x[0, :, 0]) is None
        True
    """
    for dim in (0, 1):
        count = length_along(batch, dim)
        if count == 1 and dim == 0:
            return 0
        if count is not None and count > 1 and _keeps_outputs(model, batch, dim, min(count, TESTED)):
            return dim
    return None


def length_along(batch: Inputs, dim: int) -> int | None:
    """How many positions all dense tensors of a batch have along a dimension; None where they have not as many."""
    tensors = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
    lengths = {x.shape[dim] if x.dim() > dim and not is_sparse(x) else None for x in tensors}
    return lengths.pop() if len(lengths) == 1 else None


def positions_of(batch: Inputs, dim: int, positions: Tensor | slice) -> Inputs:
    """The batch at some positions along a dimension; a slice shares its memory."""

    def taken(x: Tensor) -> Tensor:
        if isinstance(positions, slice):
            return x[(slice(None),) * dim + (positions,)]
        return x.index_select(dim, positions.to(x.device))

    found: Inputs = pytree.tree_map_only(Tensor, taken, batch)
    return found


def _keeps_outputs(model: nn.Module, batch: Inputs, dim: int, count: int) -> bool:
    few, apart = positions_of(batch, dim, slice(0, count)), torch.arange(1, count, 2)
    try:
        with preserve_state(model), torch.no_grad():
            together = _outputs(model, few)
            alone = _outputs(model, positions_of(few, dim, apart))
    except Exception:  # whatever a network raises that cannot take a part of the batch
        return False
    pairs = list(zip(together, alone, strict=False))
    if len(together) != len(alone) or all(one.shape == other.shape for one, other in pairs):
        return False
    return all(one.shape == other.shape or _are_rows(one, other, apart, count) for one, other in pairs)


def _are_rows(whole: Tensor, part: Tensor, rows: Tensor, count: int) -> bool:
    # whether the part is the whole at these rows along one of its dimensions
    differing = [d for d, (n, k) in enumerate(zip(whole.shape, part.shape, strict=False)) if n != k]
    if whole.dim() != part.dim() or len(differing) != 1 or whole.shape[differing[0]] % count:
        return False
    (d,) = differing
    step = whole.shape[d] // count  # several rows of each sample, one after the other
    every = (rows[:, None] * step + torch.arange(step)).flatten().to(whole.device)
    wanted = whole.index_select(d, every)
    if wanted.shape != part.shape:
        return False
    if not (part.is_floating_point() or part.is_complex()):
        return bool(torch.equal(wanted, part))
    away, size = float((wanted - part).abs().max()), float(wanted.abs().max())
    return away <= ROUNDING.get(part.dtype, 1e-4) * size


def _outputs(model: nn.Module, batch: Inputs) -> list[Tensor]:
    found: Any = call(model, to_device(batch, device_of(model)))
    return [x for x in pytree.tree_leaves(found) if isinstance(x, Tensor)]
