"""Vision transformers for small images."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurograft.errors import OptionError
from neurograft_experiments.networks.shapes import Shape


class Attention(nn.Module):
    """Self-attention of normalised tokens, queries, keys and values made by one projection without biases."""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens of the shape of `tokens`, `(samples, length, width)`."""
        samples, length, width = tokens.shape
        parts = self.qkv(self.norm(tokens)).view(samples, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return cast(Tensor, self.drop(self.out(mixed.transpose(1, 2).reshape(samples, length, width))))


class ViT(nn.Module):
    """The papers' vision transformer: pre-norm blocks and a class token, LayerNorms around the patches' projection.

    Args:
        shape: channels, height and width of an image; both sides are multiples of `patch`.
        classes: outputs.
        width: channels of a token; a multiple of `heads`.
        depth: blocks of attention and feed-forward layers.
        heads: of each attention.
        mlp: hidden neurons of each feed-forward layer.
        patch: side of a patch, in pixels.
        dropout: of the embedding, the attention and all outputs of blocks, while training.
        bias: whether linear layers have biases; queries, keys and values have none.

    Raises:
        OptionError: if the image is not made of whole patches, or `heads` does not divide `width`.

    Example:
        >>> sum(p.numel() for p in ViT((3, 32, 32), 10).parameters())
        9524842

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, with the sizes of arXiv:2502.06849.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        *,
        width: int = 512,
        depth: int = 6,
        heads: int = 8,
        mlp: int = 512,
        patch: int = 4,
        dropout: float = 0.1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        channels, height, side = shape
        if height % patch or side % patch:
            raise OptionError(f"ViT cuts images into patches of {patch} x {patch} pixels, got {height} x {side} pixels")
        if width % heads:
            raise OptionError(f"ViT's width ({width}) is not a multiple of its heads ({heads})")
        inputs, count = channels * patch**2, (height // patch) * (side // patch)
        self.patch = patch
        self.embed = nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, width, bias), nn.LayerNorm(width))
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, count + 1, width))
        self.drop = nn.Dropout(dropout)
        self.attention = nn.ModuleList(Attention(width, heads, dropout, bias) for _ in range(depth))
        self.forwards = nn.ModuleList(_feed_forward(width, mlp, dropout, bias) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes, bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape `(samples, classes)` for images of shape `(samples, channels, height, width)`."""
        samples, channels, height, side = images.shape
        p = self.patch
        patches = images.view(samples, channels, height // p, p, side // p, p).permute(0, 2, 4, 3, 5, 1)
        tokens = self.embed(patches.reshape(samples, -1, p * p * channels))
        tokens = torch.cat([self.token.expand(samples, -1, -1), tokens], 1)
        tokens = self.drop(tokens + self.positions)
        for attention, forwards in zip(self.attention, self.forwards, strict=True):
            tokens = tokens + attention(tokens)
            tokens = tokens + forwards(tokens)
        return cast(Tensor, self.head(self.norm(tokens)[:, 0]))


def _feed_forward(width: int, hidden: int, dropout: float, bias: bool) -> nn.Sequential:
    up, down = nn.Linear(width, hidden, bias), nn.Linear(hidden, width, bias)
    return nn.Sequential(nn.LayerNorm(width), up, nn.GELU(), nn.Dropout(dropout), down, nn.Dropout(dropout))
