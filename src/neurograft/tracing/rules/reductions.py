"""Reductions: the reduced dims leave (or stay with size 1); their order did not matter."""

from neurograft.tracing.algebra import ONE
from neurograft.tracing.labels import Axes, Labels
from neurograft.tracing.rules.pointwise import pointwise
from neurograft.tracing.rules.table import Result, Results, arg, dims_of, result_shape, rule, tensor
from neurograft.tracing.tape import Op


def _drop(axes: Axes, dims: tuple[int, ...], rank: int) -> Axes:
    if rank == len(axes):
        return tuple(ONE if d in dims else axis for d, axis in enumerate(axes))
    return tuple(axis for d, axis in enumerate(axes) if d not in dims)


@rule("sum", "mean", "amax", "amin", "any", "all", "prod", "logsumexp", "nansum", "count_nonzero")
@rule("_is_all_true", "_is_any_true")
def reduction(labels: Labels, op: Op) -> Result:
    """Out = f over a set of positions."""
    return _reduce(labels, op, arg(op, 1) if op.overload not in ("", "default") or op.name in _DIM_FIRST else None)


# their only overload takes the dims
_DIM_FIRST = {"amax", "amin", "logsumexp", "sum", "mean", "nansum"}


def _reduce(labels: Labels, op: Op, dims: object) -> Result:
    axes = labels.of(tensor(op, 0))
    chosen = dims_of(dims if isinstance(dims, (int, list, tuple)) and not isinstance(dims, bool) else None, axes)
    for dim in chosen:
        labels.reduced(axes[dim])
    results: Results = [_drop(axes, chosen, len(s or ())) for s in op.shapes]
    first = results[0]
    return results if len(results) > 1 or first is None else first


@rule("norm", "linalg_vector_norm")
def norm(labels: Labels, op: Op) -> Result:
    """A norm over some dims."""
    return _reduce(labels, op, arg(op, 2))


@rule("var", "std", "var_mean", "std_mean")
def variance(labels: Labels, op: Op) -> Result:
    """Mean and variance over some dims."""
    return _reduce(labels, op, arg(op, 1) if op.overload != "" else None)


@rule("max", "min")
def extreme(labels: Labels, op: Op) -> Result:
    """The largest value, or of two the larger."""
    return pointwise(labels, op) if op.overload == "other" else _reduce(labels, op, None)


@rule("tril", "triu", "tril_", "triu_")
def triangle(labels: Labels, op: Op) -> Result:
    """Positions in the last two dims have a meaning."""
    axes = labels.of(tensor(op, 0))
    for axis in axes[-2:]:
        labels.fix(axis)
    return axes


@rule("_fft_c2c", "_fft_r2c", "_fft_c2r")
def fourier(labels: Labels, op: Op) -> Result:
    """Sums over some dims, whose frequencies have a meaning as their positions had; the others pass."""
    axes, sizes = labels.of(tensor(op, 0)), result_shape(op)
    dims = dims_of(arg(op, 1), axes)
    for dim in dims:
        labels.fix(axes[dim])
    return tuple(labels.fixed(sizes[d]) if d in dims else axis for d, axis in enumerate(axes))


@rule("rot90", "nonzero", "unique_dim", "_unique2")
def meaningful(labels: Labels, op: Op) -> Result:
    """Every position has a meaning."""
    for x in op.args:
        if hasattr(x, "shape"):
            for axis in labels.of(x):
                labels.fix(axis)
    results: Results = [None if s is None else tuple(labels.fixed(n) for n in s) for s in op.shapes]
    return results if len(results) > 1 else results[0] or ()
