"""Where a dim of an op's operand is in its result, for ops that treat the dim's positions one like the other."""

from typing import Any

from neurograft.tracing.rules.blockwise import following
from neurograft.tracing.rules.table import arg
from neurograft.tracing.tape import Op


def _rank(op: Op) -> int:
    return len(op.shapes[0] or ())


def _chosen(dims: Any, rank: int) -> set[int]:
    # None or nothing means all dims
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return set(range(rank))
    return {d % rank for d in (dims if isinstance(dims, (list, tuple)) else (dims,))}


@following("t", "t_", "numpy_T")
def turned(_: Op, sizes: tuple[int, ...], dim: int) -> int | None:
    """The two dims change places."""
    return len(sizes) - 1 - dim


@following("transpose", "transpose_", "swapaxes", "transpose_copy")
def exchanged(op: Op, sizes: tuple[int, ...], dim: int) -> int | None:
    """Two dims change places."""
    i, j = int(arg(op, 1)) % len(sizes), int(arg(op, 2)) % len(sizes)
    return j if dim == i else i if dim == j else dim


@following("permute", "permute_copy")
def permuted(op: Op, sizes: tuple[int, ...], dim: int) -> int | None:
    """The dims in another order."""
    return [d % len(sizes) for d in arg(op, 1)].index(dim)


@following("unsqueeze", "unsqueeze_", "unsqueeze_copy")
def beside_new(op: Op, sizes: tuple[int, ...], dim: int) -> int | None:
    """A new dim of size 1 comes in."""
    return dim + (dim >= int(arg(op, 1)) % (len(sizes) + 1))


@following("squeeze", "squeeze_", "squeeze_copy")
def beside_gone(op: Op, sizes: tuple[int, ...], dim: int) -> int | None:
    """Dims of size 1 leave."""
    gone = [d for d in _chosen(arg(op, 1), len(sizes)) if sizes[d] == 1 and d < dim]
    return dim - len(gone)


@following("expand", "expand_copy", "broadcast_to", "expand_as")
def expanded(op: Op, sizes: tuple[int, ...], dim: int) -> int | None:
    """Dims are counted from the right."""
    return _rank(op) - len(sizes) + dim


@following("repeat")
def repeated(op: Op, sizes: tuple[int, ...], dim: int) -> int | None:
    """Copies side by side, of a dim that has only one."""
    target = _rank(op) - len(sizes) + dim
    return target if arg(op, 1)[target] == 1 else None


@following("select", "select_copy")
def beside_selected(op: Op, sizes: tuple[int, ...], dim: int) -> int | None:
    """Another dim leaves."""
    gone = arg(op, 1) % len(sizes)
    return None if gone == dim else dim - (gone < dim)


@following("unbind", "unbind_copy")
def beside_unbound(op: Op, sizes: tuple[int, ...], dim: int) -> int | None:
    """Another dim leaves."""
    gone = arg(op, 1, 0) % len(sizes)
    return None if gone == dim else dim - (gone < dim)


@following("slice", "slice_copy", "glu", "_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax")
def beside_second(op: Op, sizes: tuple[int, ...], dim: int) -> int | None:
    """What happens along another dim, given as the second argument."""
    return None if arg(op, 1, -1 if op.name == "glu" else 0) % len(sizes) == dim else dim


@following("cumsum", "cumprod", "logcumsumexp", "cumsum_", "flip", "_fft_c2c", "_fft_r2c", "_fft_c2r")
def beside_ordered(op: Op, sizes: tuple[int, ...], dim: int) -> int | None:
    """What happens along other dims."""
    return None if dim in _chosen(arg(op, 1), len(sizes)) else dim


@following(
    "split",
    "split_with_sizes",
    "chunk",
    "unsafe_split",
    "unsafe_chunk",
    "unsafe_split_with_sizes",
    "tensor_split",
    "split_copy",
    "split_with_sizes_copy",
)
def beside_split(op: Op, sizes: tuple[int, ...], dim: int) -> int | None:
    """Another dim is split."""
    return None if arg(op, 2, 0) % len(sizes) == dim else dim


@following("sum", "mean", "amax", "amin", "logsumexp", "nansum")
def beside_reduced(op: Op, sizes: tuple[int, ...], dim: int) -> int | None:
    """Other dims leave, or stay with one position."""
    return _beside(op, sizes, dim, arg(op, 1))


@following("norm", "linalg_vector_norm")
def beside_norm(op: Op, sizes: tuple[int, ...], dim: int) -> int | None:
    """Other dims leave, or stay with one position."""
    return _beside(op, sizes, dim, arg(op, 2))


@following("var", "std", "var_mean", "std_mean")
def beside_variance(op: Op, sizes: tuple[int, ...], dim: int) -> int | None:
    """Other dims leave, or stay with one position."""
    return _beside(op, sizes, dim, arg(op, 1) if op.overload != "" else None)


def _beside(op: Op, sizes: tuple[int, ...], dim: int, dims: Any) -> int | None:
    given = isinstance(dims, (int, list, tuple)) and not isinstance(dims, bool)
    chosen = _chosen(dims if given else None, len(sizes))
    if dim in chosen:
        return None
    return dim if _rank(op) == len(sizes) else dim - sum(d < dim for d in chosen)


@following("constant_pad_nd", "pad")
def beside_padded(op: Op, sizes: tuple[int, ...], dim: int) -> int | None:
    """Other dims get new positions."""
    amounts = list(arg(op, 1))
    k = 2 * (len(sizes) - 1 - dim)
    return None if any(amounts[k : k + 2]) else dim


@following("conj", "_conj", "resolve_conj", "resolve_neg", "_neg_view", "real", "imag", "_conj_physical")
def same(_op: Op, _sizes: tuple[int, ...], dim: int) -> int | None:
    """The same positions."""
    return dim


@following("view_as_complex", "view_as_complex_copy", "view_as_real", "view_as_real_copy")
def beside_last(op: Op, sizes: tuple[int, ...], dim: int) -> int | None:
    """The last dim comes or leaves."""
    return None if "complex" in op.name and dim == len(sizes) - 1 else dim


__all__: list[str] = []
