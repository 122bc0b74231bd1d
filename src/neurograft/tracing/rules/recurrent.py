"""Recurrent layers in one op: the gates of a weight's rows are fixed, the hidden neurons inside each are free."""

from neurograft.tracing.algebra import Axis, merge
from neurograft.tracing.labels import Axes, Labels
from neurograft.tracing.rules.pointwise import mark
from neurograft.tracing.rules.table import Result, rule, tensor
from neurograft.tracing.tape import Op


@rule("mkldnn_rnn_layer")
def mkldnn_rnn_layer(labels: Labels, op: Op) -> Result:
    """One LSTM layer, one direction: input (T, N, I), weights (4H, I) and (4H, H), biases (4H), states (1, N, H)."""
    x, w_in, w_hidden, b_in, b_hidden, h, c = (tensor(op, i) for i in range(7))
    axes, hidden = labels.of(x), labels.of(w_hidden)[1]
    gates: Axis = merge([labels.fixed(4, f"the gates of {labels.why}"), hidden])
    for weight in (w_in, w_hidden, b_in, b_hidden):
        labels.unify(labels.of(weight)[0], gates)
    labels.unify(labels.of(w_in)[1], axes[-1])
    for state in (h, c):
        labels.unify(labels.of(state)[-1], hidden)
        labels.unify(labels.of(state)[-2], axes[-2])
    for weight in (w_in, w_hidden):
        labels.role(weight, 0, "out", "weight")
        labels.role(weight, 1, "in", "weight")
    mark(labels, b_in, "out")
    mark(labels, b_hidden, "out")
    out = (*axes[:-1], labels.of(w_hidden)[1])
    labels.use(w_in, x, out, {1: len(axes) - 1}, {0: len(out) - 1}, b_in)
    states = [(*labels.of(state)[:-2], axes[-2], labels.of(w_hidden)[1]) for state in (h, c)]
    results: list[Axes | None] = [out, *states]
    for s in op.shapes[3:]:
        # a workspace: opaque bytes, nothing reads it
        results.append(None if s is None else tuple(labels.fixed(n) for n in s))
    return results


__all__: list[str] = []
