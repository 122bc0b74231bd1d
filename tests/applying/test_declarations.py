"""Declared integers where two widths of a network happen to be equal."""

import pytest
import torch
from torch import Tensor, nn

import neurograft as ng


class Attention(nn.Module):
    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.n_head, self.head_dim = heads, width
        self.project, self.out = nn.Linear(5, 3 * heads * width), nn.Linear(heads * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.project(x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in parts)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("heads", "width"), [(4, 4), (2, 4), (4, 3)])
def test_as_many_heads_as_a_head_is_wide(heads: int, width: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 5).double()
    nets = [Attention(heads, width).double() for _ in "ab"]
    wide = ng.combine(nets, x)
    assert (wide.n_head, wide.head_dim) == (2 * heads, width)
    torch.testing.assert_close(wide(x), (nets[0](x) + nets[1](x)) / 2)
    pruned = ng.prune(wide, x, 0.5)
    assert (pruned.n_head, pruned.head_dim) == (heads, width)
    torch.testing.assert_close(pruned(x), ng.fuse(nets, x, recover=None)(x))
