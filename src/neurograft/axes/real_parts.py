"""Complex tensors as real ones, where only lengths and angles count."""

import torch
from torch import Tensor


def real_parts(tensor: Tensor) -> Tensor:
    """A complex tensor as its real and imaginary parts along a new last dimension; a real one as it is.

    Distances are those of complex numbers, and Σ a·b becomes Re Σ a·conj(b).

    Example:
        >>> real_parts(torch.tensor([3 + 4j])).tolist()
        [[3.0, 4.0]]
    """
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


__all__ = ["real_parts"]
