"""Spectral norm: a fused weight acts as it was planned, although its members' singular vectors are not its own."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm

ROUNDS = 30  # of the power iteration
ROUNDING = 1e-5  # a member's own vectors are as near as this


def settle_spectral_norms(model: nn.Module) -> None:
    """Give spectral norms the singular vectors of their fused weights, in place.

    In eval mode the norm divides by uᵀWv with the vectors it has. Those of several members mean nothing to the fused
    W (their signs are arbitrary, so they may even cancel). Here v is its own, and u is scaled so that uᵀWv = 1: the
    fused weight acts as planned. In training mode the norm brings u back to length 1, as it does with any weight.

    Example:
        >>> layer = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)).eval()
        >>> layer.parametrizations.weight.original.data = 2 * torch.eye(3)
        >>> settle_spectral_norms(layer)
        >>> torch.allclose(layer.weight, 2 * torch.eye(3))
        True
    """
    for module in model.modules():
        for steps in getattr(module, "parametrizations", {}).values() if parametrize.is_parametrized(module) else ():
            if len(steps) == 1 and isinstance(steps[0], _SpectralNorm) and hasattr(steps[0], "_u"):
                _settle(steps[0], steps.original)


@torch.no_grad()
def _settle(norm: _SpectralNorm, weight: torch.Tensor) -> None:
    matrix = norm._reshape_weight_to_matrix(weight.to(torch.promote_types(weight.dtype, torch.float32)))
    u, v = norm._u.to(matrix), norm._v.to(matrix)
    if matrix.is_meta or abs(float(u @ matrix @ v) - 1) <= ROUNDING or not bool(matrix.any()):
        return
    v = F.normalize(matrix[matrix.norm(dim=1).argmax()], dim=0)
    for _ in range(ROUNDS):
        v = F.normalize(matrix.T @ (matrix @ v), dim=0)
    u = matrix @ v
    norm._u.copy_(u / (u @ u))
    norm._v.copy_(v)
