"""Contractions: the contracted dims meet, the others stay; a weight reads on the one and makes on the others."""

from torch import Tensor

from neurograft.tracing.algebra import Axis
from neurograft.tracing.labels import Axes, Labels, ProductNote
from neurograft.tracing.rules.pointwise import broadcast, mark
from neurograft.tracing.rules.table import Result, arg, rule, tensor
from neurograft.tracing.tape import Op


def product(
    labels: Labels, first: Tensor, second: Tensor, pairs: tuple[int, int], batch: int, bias: Tensor | None = None
) -> Axes:
    """Contract dim pairs[0] of `first` with pairs[1] of `second`; the first `batch` dims of both run along."""
    a, b = labels.of(first), labels.of(second)
    for i in range(batch):
        labels.unify(a[i], b[i])
    i, j = pairs
    left = [d for d in range(batch, len(a)) if d != i]
    right = [d for d in range(batch, len(b)) if d != j]
    if labels.multiplying:
        # one parameter makes what the other reads: the product's reader decides which of them
        labels.notes.products.append(ProductNote(a[i], b[j], _all_but(a, i), _all_but(b, j)))
    else:
        labels.unify(a[i], b[j])
    result = (*a[:batch], *(a[d] for d in left), *(b[d] for d in right))
    weight = labels.pick_weight(first, second)
    if weight is None:
        labels.bilinear(a[i])
        return result
    weight_first = weight is first
    activation, read, faced = (second, i, j) if weight_first else (first, j, i)
    made = left if weight_first else right
    offset = batch if weight_first else batch + len(left)
    if labels.is_weight(activation):
        mark(labels, activation, "out")
    labels.roles(weight, dict.fromkeys(range(batch), "elementwise"), "weight")
    labels.role(weight, read, "in", "weight")
    labels.roles(weight, dict.fromkeys(made, "out"), "weight")
    along = {d: d for d in range(batch)}
    outputs = {d: offset + k for k, d in enumerate(made)}
    labels.use(weight, activation, result, {**along, read: faced}, {**along, **outputs}, bias)
    return result


def _all_but(axes: Axes, dim: int) -> Axes:
    return (*axes[:dim], *axes[dim + 1 :])


def with_bias(labels: Labels, bias: Tensor, result: Axes) -> Axes:
    """The result of a contraction plus a bias that makes the same neurons."""
    mark(labels, bias, "out")
    return broadcast(labels, [labels.of(bias), result])


@rule("mm", "_sparse_mm", "_int_mm")
def mm(labels: Labels, op: Op) -> Result:
    """out[i, k] = sum_j a[i, j] b[j, k]."""
    return product(labels, tensor(op, 0), tensor(op, 1), (1, 0), 0)


@rule("addmm", "addmm_", "_addmm_activation", "_sparse_addmm")
def addmm(labels: Labels, op: Op) -> Result:
    """out[i, k] = bias[k] + sum_j a[i, j] b[j, k]."""
    bias = tensor(op, 0)
    return with_bias(labels, bias, product(labels, tensor(op, 1), tensor(op, 2), (1, 0), 0, bias))


@rule("bmm")
def bmm(labels: Labels, op: Op) -> Result:
    """out[n, i, k] = sum_j a[n, i, j] b[n, j, k]."""
    return product(labels, tensor(op, 0), tensor(op, 1), (2, 1), 1)


@rule("baddbmm", "baddbmm_")
def baddbmm(labels: Labels, op: Op) -> Result:
    """out[n, i, k] = bias[n, i, k] + sum_j a[n, i, j] b[n, j, k]."""
    bias = tensor(op, 0)
    return with_bias(labels, bias, product(labels, tensor(op, 1), tensor(op, 2), (2, 1), 1, bias))


@rule("mv")
def mv(labels: Labels, op: Op) -> Result:
    """out[i] = sum_j a[i, j] b[j]."""
    return product(labels, tensor(op, 0), tensor(op, 1), (1, 0), 0)


@rule("addmv", "addmv_")
def addmv(labels: Labels, op: Op) -> Result:
    """out[i] = bias[i] + sum_j a[i, j] b[j]."""
    bias = tensor(op, 0)
    return with_bias(labels, bias, product(labels, tensor(op, 1), tensor(op, 2), (1, 0), 0, bias))


@rule("dot", "vdot")
def dot(labels: Labels, op: Op) -> Result:
    """Out = sum_j a[j] b[j]."""
    return product(labels, tensor(op, 0), tensor(op, 1), (0, 0), 0)


@rule("linear")
def linear(labels: Labels, op: Op) -> Result:
    """out[..., k] = bias[k] + sum_j x[..., j] w[k, j]."""
    x, weight, bias = tensor(op, 0), tensor(op, 1), arg(op, 2)
    result = product(labels, x, weight, (len(labels.of(x)) - 1, 1), 0, bias)
    return result if bias is None else with_bias(labels, bias, result)


@rule("_grouped_mm", "grouped_mm", "_scaled_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_mm(labels: Labels, op: Op) -> Result:
    """out[t, k] = sum_j a[t, j] b[e(t), j, k]: rows in the order of the experts, dealt to them by running counts."""
    first, second, ends = tensor(op, 0), tensor(op, 1), arg(op, 2)
    a, b = labels.of(first), labels.of(second)
    if (len(a), len(b)) != (2, 3):
        raise ValueError("only a matrix times a stack of matrices is known")
    bounds = labels.numbers.meaning_of(ends, "bounds") if isinstance(ends, Tensor) else None
    if bounds is not None and labels.numbers.dealt(a[0], bounds):
        labels.unify(b[0], bounds.axis)
    else:
        labels.fix(a[0], f"dealt to experts by index: {labels.why}")
        labels.fix(b[0], f"experts are looked up by index: {labels.why}")
        if bounds is not None:
            labels.fix(bounds.axis, f"experts are looked up by index: {labels.why}")
    labels.unify(a[1], b[1])
    result = (a[0], b[2])
    if labels.is_weight(second):
        labels.roles(second, {0: "elementwise", 1: "in", 2: "out"}, "weight")
        labels.use(second, first, result, {1: 1}, {2: 1})
    else:
        labels.bilinear(a[1])
    return result


@rule("_cdist_forward", "_euclidean_dist", "cdist")
def distances(labels: Labels, op: Op) -> Result:
    """out[..., i, k] = |a[..., i] - b[..., k]|."""
    a, b = labels.of(tensor(op, 0)), labels.of(tensor(op, 1))
    labels.unify(a[-1], b[-1])
    labels.bilinear(a[-1])
    labels.reduced(a[-1])
    return (*broadcast(labels, [a[:-2], b[:-2]]), a[-2], b[-2])


@rule("_trilinear")
def trilinear(labels: Labels, op: Op) -> Result:
    """A product of three over expanded dims, summed over some (nn.Bilinear): equal dims meet."""
    operands = [labels.of(tensor(op, i)) for i in range(3)]
    rank = len(operands[0]) + len(arg(op, 3))
    spread: list[list[Axis | None]] = []
    for axes, new in zip(operands, (arg(op, 3), arg(op, 4), arg(op, 5)), strict=True):
        rest = iter(axes)
        spread.append([None if d in new else next(rest) for d in range(rank)])
    whole: list[Axis] = []
    for dim in range(rank):
        present = [axes[dim] for axes in spread]
        given = [axis for axis in present if axis is not None]
        whole.append(broadcast(labels, [(axis,) for axis in given])[0])
    summed = set(arg(op, 6))
    _trilinear_roles(labels, op, spread, summed)
    for dim in summed:
        labels.bilinear(whole[dim])
    return tuple(axis for dim, axis in enumerate(whole) if dim not in summed)


def _trilinear_roles(labels: Labels, op: Op, spread: list[list[Axis | None]], summed: set[int]) -> None:
    weight = tensor(op, 1)
    own = [dim for dim, axis in enumerate(spread[1]) if axis is not None]
    for d, dim in enumerate(own):
        labels.role(weight, d, "in" if dim in summed else "out", "weight")


__all__ = ["product", "with_bias"]
