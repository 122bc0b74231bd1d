"""Attention in the forms that differ in how heads and their channels lie: fused, torch's own, grouped-query."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, CHANNELS, INPUTS, OUTPUTS = 12, 3, 5, 3


class Block(nn.Module):
    """A stem, one attention with a residual path, and a head over the mean of all positions."""

    def __init__(self, heads: int):
        super().__init__()
        self.heads = heads
        self.stem, self.norm = nn.Linear(INPUTS, WIDTH), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, OUTPUTS)

    def attend(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.attend(self.norm(x))).mean(1))


class Written(Block):
    """Multi-head attention written by hand, with three projections."""

    def __init__(self, heads: int):
        super().__init__(heads)
        self.q, self.k, self.v = (nn.Linear(WIDTH, heads * CHANNELS) for _ in range(3))
        self.project = nn.Linear(heads * CHANNELS, WIDTH)

    def attend(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (f(x).view(batch, length, self.heads, CHANNELS).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.project(y.transpose(1, 2).reshape(batch, length, self.heads * CHANNELS))


class Torch(Block):
    """nn.MultiheadAttention."""

    def __init__(self, heads: int):
        super().__init__(heads)
        self.attention = nn.MultiheadAttention(WIDTH, heads, batch_first=True)

    def attend(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class GroupedQuery(Block):
    """Two queries per key and value."""

    def __init__(self, heads: int):
        super().__init__(heads)
        self.q = nn.Linear(WIDTH, 2 * heads * CHANNELS)
        self.k, self.v = (nn.Linear(WIDTH, heads * CHANNELS) for _ in range(2))
        self.project = nn.Linear(2 * heads * CHANNELS, WIDTH)

    def attend(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (f(x).view(batch, length, -1, CHANNELS).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = (kv.repeat_interleave(2, 1) for kv in (k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.project(y.transpose(1, 2).reshape(batch, length, -1))


FORMS: dict[str, Callable[[int], Block]] = {"written": Written, "torch": Torch, "grouped_query": GroupedQuery}


def attention(form: str, heads: int, seed: int = 0) -> Block:
    """A network of that form with noise on every parameter, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = FORMS[form](heads).eval()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def sequences(seed: int = 7) -> Tensor:
    """Example inputs, shape (2, 6, 5)."""
    return torch.randn(2, 6, INPUTS, generator=torch.Generator().manual_seed(seed))
