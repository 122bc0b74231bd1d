"""Interpolation along great circles."""

import torch
from torch import Tensor

SMALLEST = 1e-7
"""Norms below this count as it."""


def great_circle(first: Tensor, second: Tensor, t: float, straight: float) -> Tensor:
    """sin((1−t)ω)/sin ω · a + sin(tω)/sin ω · b along the last dimension, cos ω = <a, b>/|a||b|.

    Args:
        first: a, where t = 0.
        second: b, where t = 1.
        t: how far from a to b.
        straight: cosines of at least this size are interpolated in a straight line.

    Source: Shoemake 1985, "Animating rotation with quaternion curves".
    """
    norms = [v.norm(dim=-1, keepdim=True).clamp_min(SMALLEST) for v in (first, second)]
    cosine = ((first / norms[0]) * (second / norms[1])).sum(-1, keepdim=True).clamp(-1, 1)
    in_line = cosine.abs() >= straight
    angle = torch.acos(torch.where(in_line, 0.0, cosine))
    sine = angle.sin()
    left = torch.where(in_line, 1 - t, ((1 - t) * angle).sin() / sine)
    right = torch.where(in_line, t, (t * angle).sin() / sine)
    return left * first + right * second
