"""Norms: positions pass; scale and shift meet the normalised axis."""

from torch import Tensor

from neurograft.tracing.algebra import ONE, axis_size, free, merge
from neurograft.tracing.graph import Kind
from neurograft.tracing.labels import Axes, Labels
from neurograft.tracing.rules.table import Result, Results, arg, dims_of, rule, tensor
from neurograft.tracing.tape import Op


def affine(
    labels: Labels, x: Tensor, result: Axes, facing: tuple[int, ...], parameters: list[tuple[Tensor | None, Kind]]
) -> None:
    """Parameters that face the dims `facing` of x, elementwise."""
    axes = labels.of(x)
    if labels.is_weight(x):
        for dim in range(len(axes)):
            labels.role(x, dim, "out", "weight")
    dims = dict(enumerate(facing))
    for parameter, kind in parameters:
        if parameter is None:
            continue
        for own, faced in dims.items():
            labels.unify(labels.of(parameter)[own], axes[faced])
            labels.role(parameter, own, "elementwise", kind)
    weight, bias, *statistics = (parameter for parameter, _ in parameters)
    if weight is not None:
        labels.use(weight, x, result, dims, dims, bias)
    elif bias is not None:
        labels.use(bias, x, result, dims, dims)
    elif statistics and statistics[0] is not None:
        labels.use(statistics[0], x, result, dims, dims)


@rule("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "batch_norm")
def batch_norm(labels: Labels, op: Op) -> Result:
    """Every channel by itself: weight, bias, mean and variance share the channels."""
    return _batch_norm(labels, op, 3, 4)


@rule(
    "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit",
    "_batch_norm_no_update",
    "_batch_norm_with_update",
)
def batch_norm_legit(labels: Labels, op: Op) -> Result:
    """Every channel by itself; without running statistics it has none to share."""
    has = op.overload != "no_stats"
    return _batch_norm(labels, op, 3 if has else -1, 4 if has else -1)


def _batch_norm(labels: Labels, op: Op, mean: int, variance: int) -> Result:
    x = tensor(op, 0)
    axes = labels.of(x)
    parameters: list[tuple[Tensor | None, Kind]] = [(arg(op, 1), "scale"), (arg(op, 2), "shift")]
    if mean > 0:
        parameters += [(arg(op, mean), "mean"), (arg(op, variance), "variance")]
    affine(labels, x, axes, (1,), parameters)
    channels = axes[1]
    rest: Results = [
        None if s is None else tuple(channels if n == axis_size(channels) else free(n) for n in s)
        for s in op.shapes[1:]
    ]
    return [axes, *rest] if len(op.results) > 1 else axes


@rule("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(labels: Labels, op: Op) -> Result:
    """Statistics over the last dims, the scale and shift elementwise on them."""
    x = tensor(op, 0)
    axes = labels.of(x)
    first = len(axes) - len(arg(op, 1))
    bias = None if "rms" in op.name else arg(op, 3)
    affine(labels, x, axes, tuple(range(first, len(axes))), [(arg(op, 2), "scale"), (bias, "shift")])
    for axis in axes[first:]:
        labels.reduced(axis)
    statistics = tuple(axis if d < first else ONE for d, axis in enumerate(axes))
    return [axes, *[statistics] * (len(op.results) - 1)] if len(op.results) > 1 else axes


@rule("native_group_norm", "group_norm")
def group_norm(labels: Labels, op: Op) -> Result:
    """Channels are (groups, channels per group); statistics over the latter and the image."""
    x = tensor(op, 0)
    axes = labels.of(x)
    groups = int(arg(op, 6) if op.name == "native_group_norm" else arg(op, 1))
    weight, bias = (arg(op, 1), arg(op, 2)) if op.name == "native_group_norm" else (arg(op, 2), arg(op, 3))
    outer, inner = free(groups), free(axis_size(axes[1]) // groups)
    labels.unify(axes[1], merge([outer, inner]))
    affine(labels, x, axes, (1,), [(weight, "scale"), (bias, "shift")])
    labels.reduced(inner)
    for axis in axes[2:]:
        labels.reduced(axis)
    return [axes, *[(axes[0], outer)] * (len(op.results) - 1)] if len(op.results) > 1 else axes


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax")
def softmax(labels: Labels, op: Op) -> Result:
    """Positions pass; the sum below the line runs over the dim."""
    axes = labels.of(tensor(op, 0))
    (dim,) = dims_of(arg(op, 1), axes)
    if axes:
        labels.reduced(axes[dim])
    return axes


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(labels: Labels, op: Op) -> Result:
    """V / |v| * g: v's positions pass, g shares the dims it has in common with v."""
    v, g = labels.of(tensor(op, 0)), labels.of(tensor(op, 1))
    for a, b in zip(v, g, strict=True):
        if axis_size(a) == axis_size(b):
            labels.unify(a, b)
    norms: Axes = g
    return [v, norms] if len(op.results) > 1 else v


@rule("renorm", "renorm_")
def renorm(labels: Labels, op: Op) -> Result:
    """Every slice along one dim by itself."""
    return labels.of(tensor(op, 0))


__all__ = ["affine"]
