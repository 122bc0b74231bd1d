"""Views: the same values in other dims."""

from neurograft.tracing.algebra import ONE, axis_size, fix, free, merge
from neurograft.tracing.labels import Axes, Labels
from neurograft.tracing.rules.blockwise import whole
from neurograft.tracing.rules.reshaping import viewed
from neurograft.tracing.rules.table import Result, Rule, arg, dim_of, dims_of, result_shape, rule, shape, tensor
from neurograft.tracing.tape import Op


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy", "flatten", "unflatten")
def view(labels: Labels, op: Op) -> Result:
    """Row-major regrouping: dims of equal product are merged and split again."""
    if op.overload == "dtype":
        return keep_or_fix(labels, op)
    return viewed(labels.label(tensor(op, 0)), result_shape(op), labels.why)


@whole("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy", "flatten", "unflatten")
def view_of_blocks(labels: Labels, op: Op, found: Rule) -> Result | None:
    """The rule for views takes blocks."""
    return found(labels, op)


def keep_or_fix(labels: Labels, op: Op) -> Result:
    """A change of dtype keeps dims of unchanged size and fixes the others."""
    axes, target = labels.of(tensor(op, 0)), result_shape(op)
    for axis, n in zip(axes, target, strict=False):
        if axis_size(axis) != n:
            labels.fix(axis)
    return tuple(a if axis_size(a) == n else labels.fixed(n) for a, n in zip(axes, target, strict=False))


@rule("t", "t_", "numpy_T")
def t(labels: Labels, op: Op) -> Result:
    """The two dims change places."""
    return labels.of(tensor(op, 0))[::-1]


@rule("transpose", "transpose_", "swapaxes", "transpose_copy")
def transpose(labels: Labels, op: Op) -> Result:
    """Two dims change places."""
    axes = list(labels.of(tensor(op, 0)))
    i, j = dim_of(arg(op, 1), tuple(axes)), dim_of(arg(op, 2), tuple(axes))
    if axes:
        axes[i], axes[j] = axes[j], axes[i]
    return tuple(axes)


@rule("permute", "permute_copy")
def permute(labels: Labels, op: Op) -> Result:
    """The dims in another order."""
    axes = labels.of(tensor(op, 0))
    return tuple(axes[dim_of(d, axes)] for d in arg(op, 1))


@rule("unsqueeze", "unsqueeze_", "unsqueeze_copy")
def unsqueeze(labels: Labels, op: Op) -> Result:
    """A new dim of size 1."""
    axes = labels.of(tensor(op, 0))
    dim = arg(op, 1) % (len(axes) + 1)
    return (*axes[:dim], ONE, *axes[dim:])


@rule("squeeze", "squeeze_", "squeeze_copy")
def squeeze(labels: Labels, op: Op) -> Result:
    """Dims of size 1 leave."""
    axes = labels.of(tensor(op, 0))
    chosen = dims_of(arg(op, 1), axes)
    return tuple(axis for d, axis in enumerate(axes) if d not in chosen or axis_size(axis) != 1)


@rule("expand", "expand_copy", "broadcast_to", "expand_as")
def expand(labels: Labels, op: Op) -> Result:
    """A repeated value does not care for the order of its copies: the new dims are free."""
    axes, target = labels.of(tensor(op, 0)), result_shape(op)
    padded = (*[ONE] * (len(target) - len(axes)), *axes)
    labels.repeated[id(op.results[0])] = frozenset(d for d, n in enumerate(target) if n > axis_size(padded[d]))
    return tuple(free(n) if axis_size(axis) == 1 else axis for axis, n in zip(padded, target, strict=True))


@rule("repeat")
def repeat(labels: Labels, op: Op) -> Result:
    """Copies side by side: (copies, dim), the copies free."""
    axes, counts = labels.of(tensor(op, 0)), arg(op, 1)
    padded = (*[ONE] * (len(counts) - len(axes)), *axes)
    return tuple(merge([free(n), axis]) for axis, n in zip(padded, counts, strict=True))


@rule("as_strided", "as_strided_", "as_strided_copy")
def as_strided(labels: Labels, op: Op) -> Result:
    """The same sizes are the same tensor; any other walk through memory fixes it."""
    axes, target = labels.of(tensor(op, 0)), tuple(result_shape(op))
    size, stride = tuple(arg(op, 1)), tuple(arg(op, 2))
    if size == shape(axes) and _row_major(size, stride):
        return axes
    kept = _by_stride(axes, size, stride)
    if kept is not None:
        return kept
    for axis in axes:
        fix(axis, labels.why)
    return tuple(labels.fixed(n) for n in target)


def _row_major(size: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    step = 1
    for n, s in zip(reversed(size), reversed(stride), strict=True):
        if n > 1 and s != step:
            return False
        step *= n
    return True


def _by_stride(axes: Axes, size: tuple[int, ...], stride: tuple[int, ...]) -> Axes | None:
    # dims of a contiguous tensor in another order, recognised by (size, stride); only sizes above 1 count
    step, place = 1, {}
    for axis in reversed(axes):
        n = axis_size(axis)
        if n > 1:
            place[(n, step)] = axis
        step *= n
    wanted = [(n, s) for n, s in zip(size, stride, strict=True) if n > 1]
    if sorted(wanted) != sorted(place):
        return None
    return tuple(place[(n, s)] if n > 1 else ONE for n, s in zip(size, stride, strict=True))


@rule("view_as_complex", "view_as_complex_copy")
def view_as_complex(labels: Labels, op: Op) -> Result:
    """The last dim holds real and imaginary part."""
    axes = labels.of(tensor(op, 0))
    labels.fix(axes[-1])
    return axes[:-1]


@rule("view_as_real", "view_as_real_copy")
def view_as_real(labels: Labels, op: Op) -> Result:
    """A new last dim of real and imaginary part."""
    axes = labels.of(tensor(op, 0))
    return (*axes, labels.fixed(2, "real and imaginary part"))


@rule(
    "conj",
    "_conj",
    "resolve_conj",
    "resolve_neg",
    "_neg_view",
    "real",
    "imag",
    "_conj_physical",
    "_coalesce",
    "_to_dense",
    "_to_sparse",
    "_to_sparse_csr",
    "_to_sparse_csc",
)
def elementwise_view(labels: Labels, op: Op) -> Result:
    """The same positions."""
    return labels.of(tensor(op, 0))


@rule("diagonal", "diagonal_copy")
def diagonal(labels: Labels, op: Op) -> Result:
    """Positions (i, i): both dims get a meaning."""
    axes = labels.of(tensor(op, 0))
    i, j = dim_of(arg(op, 2, 0), axes), dim_of(arg(op, 3, 1), axes)
    labels.fix(axes[i])
    labels.fix(axes[j])
    rest = tuple(axis for d, axis in enumerate(axes) if d not in (i, j))
    return (*rest, labels.fixed(result_shape(op)[-1]))


@rule("unfold")
def unfold(labels: Labels, op: Op) -> Result:
    """Windows along one dim give its positions a meaning."""
    axes = labels.of(tensor(op, 0))
    dim, target = dim_of(arg(op, 1), axes), result_shape(op)
    labels.fix(axes[dim])
    return (*axes[:dim], labels.fixed(target[dim]), *axes[dim + 1 :], labels.fixed(target[-1]))


__all__ = ["view"]
