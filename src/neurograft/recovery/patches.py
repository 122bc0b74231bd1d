"""What one output position of a layer reads, as one row: inputs of matrices, patches of convolutions."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a convolution slides: one entry per spatial dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial sizes of the output for spatial sizes of the input.

        Example:
            >>> Geometry((3, 3), (2, 2), (1, 1), (1, 1)).output_size((8, 7))
            (4, 4)
        """
        rows = zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        if self.transposed:
            extra = self.output_padding or (0,) * len(self.kernel)
            return tuple(
                (n - 1) * s - 2 * p + d * (k - 1) + e + 1 for (n, k, s, p, d), e in zip(rows, extra, strict=True)
            )
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in rows)

    def table(self, size: Sequence[int]) -> Tensor:
        """Which input position every output position meets under every kernel entry.

        Returns:
            int64 of shape `(output positions, kernel entries)`; the number of input positions stands for a zero.
        """
        outside = prod(size)
        index = torch.zeros(1, 1, dtype=torch.long)
        inside = torch.ones(1, 1, dtype=torch.bool)
        for axis, (n, out) in enumerate(zip(size, self.output_size(size), strict=True)):
            met, valid = self._met(axis, n, out)
            index = (index[:, None, :, None] * n + met[None, :, None, :]).flatten(2).flatten(0, 1)
            inside = (inside[:, None, :, None] & valid[None, :, None, :]).flatten(2).flatten(0, 1)
        return torch.where(inside, index, outside)

    def _met(self, axis: int, size: int, out: int) -> tuple[Tensor, Tensor]:
        """Input coordinate and whether it exists, both of shape `(output coordinates, kernel entries of this axis)`."""
        at = torch.arange(out)[:, None]
        entry = torch.arange(self.kernel[axis])[None] * self.dilation[axis]
        stride, padding = self.stride[axis], self.padding[axis]
        if self.transposed:
            scaled = at + padding - entry
            met, valid = scaled.div(stride, rounding_mode="floor"), scaled % stride == 0
        else:
            met, valid = at * stride - padding + entry, torch.ones(out, self.kernel[axis], dtype=torch.bool)
        valid = valid & (met >= 0) & (met < size)
        return met.clamp(0, size - 1), valid


def patches(inputs: Tensor, geometry: Geometry, positions: Tensor, table: Tensor | None = None) -> Tensor:
    """The patches that make the given output positions.

    Args:
        inputs: activations, shape `(samples, channels, *spatial)`.
        geometry: of the convolution.
        positions: flat output positions per sample, int64, shape `(samples, positions)`.
        table: `geometry.table(spatial)` if it is at hand.

    Returns:
        Shape `(groups, samples · positions, channels per group · kernel entries)`, in the order of `matrix_of`.

    Example:
        >>> x = torch.arange(4.0).reshape(1, 1, 4)
        >>> patches(x, Geometry((3,), (1,), (1,), (1,)), torch.tensor([[0, 2]]))
        tensor([[[0., 0., 1.],
                 [1., 2., 3.]]])
    """
    table = geometry.table(inputs.shape[2:]) if table is None else table
    n, channels = inputs.shape[:2]
    flat = torch.nn.functional.pad(inputs.flatten(2), (0, 1))
    index = table.to(inputs.device)[positions]
    count, entries = index.shape[1:]
    taken = flat.gather(2, index.reshape(n, 1, count * entries).expand(n, channels, count * entries))
    g = geometry.groups
    taken = taken.reshape(n, g, channels // g, count, entries).permute(1, 0, 3, 2, 4)
    return taken.reshape(g, n * count, channels // g * entries)


def matrix_of(weight: Tensor, geometry: Geometry | None) -> Tensor:
    """A weight as one matrix per group, shape `(groups, inputs, outputs per group)`.

    A matrix (geometry None) comes as `(inputs, outputs)`; a convolution's weight in torch's own layout.
    """
    if geometry is None:
        return weight.unsqueeze(0)
    g = geometry.groups
    if geometry.transposed:
        split = weight.reshape(g, weight.shape[0] // g, weight.shape[1], -1)
        return split.transpose(2, 3).flatten(1, 2)
    return weight.reshape(g, weight.shape[0] // g, -1).transpose(1, 2)


def weight_of(matrix: Tensor, like: Tensor, geometry: Geometry | None) -> Tensor:
    """The inverse of `matrix_of`: a weight of the shape of `like`."""
    if geometry is None:
        return matrix.squeeze(0)
    g = geometry.groups
    if geometry.transposed:
        split = matrix.reshape(g, like.shape[0] // g, -1, like.shape[1])
        return split.transpose(2, 3).reshape(like.shape)
    return matrix.transpose(1, 2).reshape(like.shape)
