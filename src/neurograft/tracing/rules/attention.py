"""Attention kernels: softmax(q k^T) v in one op."""

from torch import Tensor

from neurograft.tracing.algebra import Axis, axis_size, canon, free, merge
from neurograft.tracing.labels import Axes, Labels
from neurograft.tracing.rules.pointwise import mark
from neurograft.tracing.rules.table import Result, Results, arg, rule, tensor
from neurograft.tracing.tape import Op


def heads(labels: Labels, q: Axis, kv: Axis) -> None:
    """Query heads are key/value heads, each perhaps shared by several query heads next to each other."""
    share = axis_size(q) // max(axis_size(kv), 1)
    labels.unify(q, kv if share == 1 else merge([kv, free(share)]))


def attend(labels: Labels, q: Axes, k: Axes, v: Axes, mask: Axes | None) -> tuple[Axes, Axes]:
    """Axes of the result and of the log-sum-exp, for q of (batch, heads, length, width)."""
    labels.unify(q[0], k[0])
    labels.unify(k[0], v[0])
    heads(labels, q[1], k[1])
    labels.unify(k[1], v[1])
    labels.unify(k[2], v[2])
    labels.unify(q[3], k[3])
    labels.bilinear(q[3])
    labels.bilinear(k[2])
    labels.reduced(k[2])
    if mask is not None:
        scores = (q[0], q[1], q[2], k[2])
        for a, b in zip(reversed(scores), reversed(mask), strict=False):
            if axis_size(b) > 1:
                labels.unify(a, b)
    return (q[0], canon(q[1]), q[2], v[3]), (q[0], canon(q[1]), q[2])


def _results(op: Op, labels: Labels, out: Axes, lse: Axes) -> Result:
    # further results are random states and sizes, not neurons
    results: Results = [out]
    for s in op.shapes[1:]:
        if s is None:
            results.append(None)
        elif len(s) == len(lse) and all(axis_size(a) == n for a, n in zip(lse, s, strict=True)):
            results.append(lse)
        elif len(s) == len(lse):
            # the kernel pads the last dim of the log-sum-exp
            labels.fix(lse[-1])
            results.append((*lse[:-1], labels.fixed(s[-1])))
        else:
            results.append(tuple(free(n) for n in s))
    return results if len(results) > 1 else out


@rule(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "scaled_dot_product_attention",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_attention_math_for_mps",
)
def scaled_dot_product(labels: Labels, op: Op) -> Result:
    """Heads and batch run along, q and k meet in width, k and v in length."""
    q, k, v = (labels.of(tensor(op, i)) for i in range(3))
    mask = _mask(op)
    if mask is not None:
        mark(labels, mask, "out")
    if len(q) != 4:
        lead = len(q) - 3
        out, lse = _plain(labels, q, k, v, lead)
    else:
        out, lse = attend(labels, q, k, v, None if mask is None else labels.of(mask))
    if op.results and op.shapes[0] is not None and len(op.results) > 1 and op.shapes[1] is not None:
        weights = op.shapes[1]
        if len(weights) == len(out) and "math" in op.name:
            return [out, (*out[:-1], k[-2])]
    return _results(op, labels, out, lse)


def _plain(labels: Labels, q: Axes, k: Axes, v: Axes, lead: int) -> tuple[Axes, Axes]:
    for d in range(lead + 1):
        if d < lead:
            labels.unify(q[d], k[d])
        labels.unify(k[d], v[d])
    labels.unify(k[-2], v[-2])
    labels.unify(q[-1], k[-1])
    labels.bilinear(q[-1])
    labels.reduced(k[-2])
    return (*q[:-1], v[-1]), q[:-1]


def _mask(op: Op) -> Tensor | None:
    for position, argument in enumerate(op.func._schema.arguments):
        if argument.name in ("attn_mask", "attn_bias"):
            mask = arg(op, position)
            return mask if isinstance(mask, Tensor) else None
    return None


__all__ = ["attend", "heads"]
