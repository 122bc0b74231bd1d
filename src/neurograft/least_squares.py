"""Ridge regression on Gram matrices, which refit and RegMean share."""

import torch
from torch import Tensor


def ridge_change(gram: Tensor, cross: Tensor, ridge: float) -> Tensor | None:
    """Δ = (G + λ·mean(diag G)·I)⁻¹ C; without an inverse the smallest for λ = 0, else None.

    Args:
        gram: G = XᵀX, shape `(groups, inputs, inputs)`; only read.
        cross: C = XᵀR, shape `(groups, inputs, outputs)`.
        ridge: λ.

    Example:
        >>> ridge_change(torch.eye(2)[None], torch.ones(1, 2, 1), 1.0)
        tensor([[[0.5000],
                 [0.5000]]])
    """
    scale = gram.diagonal(dim1=1, dim2=2).mean(1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    factor = gram.clone(memory_format=torch.contiguous_format).mT  # columns lie together: factored where it lies
    factor.diagonal(dim1=1, dim2=2).add_((ridge * scale)[:, None])
    info = torch.empty(len(factor), dtype=torch.int32, device=factor.device)
    torch.linalg.cholesky_ex(factor, out=(factor, info))
    if not bool((info > 0).any()):
        half = torch.linalg.solve_triangular(factor, cross, upper=False)
        found: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
        return found
    if ridge == 0:
        smallest: Tensor = torch.linalg.pinv(gram, hermitian=True, rtol=1e-12)
        return smallest @ cross
    return None
