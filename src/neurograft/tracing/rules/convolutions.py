"""Convolutions: channels meet as in a contraction, kernel and image positions have a meaning."""

from collections.abc import Sequence

from torch import Tensor

from neurograft.tracing.algebra import Axis, axis_size, free, merge
from neurograft.tracing.labels import Axes, Labels
from neurograft.tracing.reasons import FixedReason, Why
from neurograft.tracing.rules.pointwise import mark
from neurograft.tracing.rules.table import Result, arg, result_shape, rule, tensor
from neurograft.tracing.tape import Op

_KERNEL = Why(FixedReason.KERNEL, "kernel positions")


def _each(values: Sequence[int], rank: int) -> list[int]:
    return list(values) * rank if len(values) == 1 else list(values)


def window(labels: Labels, axis: Axis, size: int, whole: bool) -> Axis:
    """An image dim after a window op: itself if the window is one position wide, else fixed."""
    if whole and axis_size(axis) == size:
        return axis
    labels.fix(axis)
    return labels.fixed(size)


@rule("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution", "convolution_overrideable")
def convolution(labels: Labels, op: Op) -> Result:
    """out[n, g*o] = sum over i and window of x[n, g*i] w[g*o, i, window]; transposed: w[g*i, o, window]."""
    x, weight, bias = tensor(op, 0), tensor(op, 1), arg(op, 2)
    a, w = labels.of(x), labels.of(weight)
    transposed, groups = bool(arg(op, 6)), int(arg(op, 8, 1))
    batched = len(a) == len(w)
    channel = 1 if batched else 0
    made = _channels(labels, a[channel], w, groups, transposed)
    if not labels.is_weight(weight):
        # a kernel mixed per sample: both sides of the contraction are activations
        labels.bilinear(a[channel])
    _roles(labels, weight, bias, groups, transposed)
    rank = len(w) - 2
    shape = result_shape(op)
    spatial = []
    for i in range(rank):
        kernel = w[2 + i]
        settings = [_each(arg(op, k), rank)[i] for k in (3, 4)]
        labels.fix(kernel, _KERNEL)
        whole = axis_size(kernel) == 1 and settings == [1, 0]
        spatial.append(window(labels, a[channel + 1 + i], shape[channel + 1 + i], whole))
    result = (*a[:channel], made, *spatial)
    if bias is not None:
        labels.unify(labels.of(bias)[0], made)
    read, make = (0, 1) if transposed else (1, 0)
    along = {0: channel} if groups > 1 else {}
    labels.use(weight, x, result, {**along, read: channel}, {**along, make: channel}, bias)
    return result


def _channels(labels: Labels, incoming: Axis, w: Axes, groups: int, transposed: bool) -> Axis:
    # the axis of the channels that the convolution makes
    outer, inner = free(groups), w[1]
    other = free(axis_size(w[0]) // groups)
    labels.unify(w[0], merge([outer, other]))
    read, made = (other, inner) if transposed else (inner, other)
    labels.unify(incoming, merge([outer, read]))
    return merge([outer, made])


def _roles(labels: Labels, weight: Tensor, bias: Tensor | None, groups: int, transposed: bool) -> None:
    parts = (groups,) if groups > 1 else ()
    labels.role(weight, 0, "in" if transposed else "out", "weight", parts)
    labels.role(weight, 1, "out" if transposed else "in", "weight")
    for dim in range(2, weight.dim()):
        labels.role(weight, dim, "elementwise", "weight")
    if bias is not None:
        mark(labels, bias, "out")


@rule(
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "max_pool1d",
    "max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
)
def pooling(labels: Labels, op: Op) -> Result:
    """A window over the last dims; the others pass."""
    axes = labels.of(tensor(op, 0))
    rank = next(r for r in (1, 2, 3) if f"{r}d" in op.name)
    kernel = _each(arg(op, 1), rank)
    stride = _each(arg(op, 2) or kernel, rank)
    padding = _each(arg(op, 3, (0,)), rank)
    shape = result_shape(op)
    kept = axes[:-rank]
    last = [
        window(labels, axis, shape[len(kept) + i], kernel[i] == 1 and stride[i] == 1 and padding[i] == 0)
        for i, axis in enumerate(axes[-rank:])
    ]
    return [(*kept, *last) for _ in op.results]


@rule(
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
    "upsample_linear1d",
    "upsample_bilinear2d",
    "_upsample_bilinear2d_aa",
    "upsample_bicubic2d",
    "_upsample_bicubic2d_aa",
    "upsample_trilinear3d",
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
)
def resampling(labels: Labels, op: Op) -> Result:
    """The last dims get new positions; the others pass."""
    axes = labels.of(tensor(op, 0))
    rank = next(r for r in (1, 2, 3) if f"{r}d" in op.name)
    shape = result_shape(op)
    kept = axes[:-rank]
    last = [window(labels, axis, shape[len(kept) + i], False) for i, axis in enumerate(axes[-rank:])]
    return [(*kept, *last) for _ in op.results]


@rule("pixel_shuffle")
def pixel_shuffle(labels: Labels, op: Op) -> Result:
    """Channels are (channels, neighbours); the neighbours become image positions."""
    *lead, channels, height, width = labels.of(tensor(op, 0))
    shape, neighbours = result_shape(op), int(arg(op, 1)) ** 2
    outer = free(axis_size(channels) // neighbours)
    labels.unify(channels, merge([outer, labels.fixed(neighbours)]))
    labels.fix(height)
    labels.fix(width)
    return (*lead, outer, labels.fixed(shape[-2]), labels.fixed(shape[-1]))


@rule("pixel_unshuffle")
def pixel_unshuffle(labels: Labels, op: Op) -> Result:
    """Image positions become channels: (channels, neighbours)."""
    *lead, channels, height, width = labels.of(tensor(op, 0))
    shape, neighbours = result_shape(op), int(arg(op, 1)) ** 2
    labels.fix(height)
    labels.fix(width)
    made = merge([channels, labels.fixed(neighbours)])
    return (*lead, made, labels.fixed(shape[-2]), labels.fixed(shape[-1]))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(labels: Labels, op: Op) -> Result:
    """(groups, channels) become (channels, groups)."""
    axes = labels.of(tensor(op, 0))
    groups = int(arg(op, 1))
    outer, inner = free(groups), free(axis_size(axes[1]) // groups)
    labels.unify(axes[1], merge([outer, inner]))
    return (axes[0], merge([inner, outer]), *axes[2:])


@rule("im2col", "col2im")
def rearranging(labels: Labels, op: Op) -> Result:
    """Windows become channels: everything but the batch is fixed."""
    axes = labels.of(tensor(op, 0))
    for axis in axes[1:]:
        labels.fix(axis)
    return (axes[0], *(labels.fixed(n) for n in result_shape(op)[1:]))


__all__ = ["convolution", "window"]
