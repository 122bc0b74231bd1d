"""Recurrent layers in one op: the gates of a weight's rows are fixed, the hidden neurons inside each are free."""

from torch import Tensor

from neurograft.tracing.algebra import Axis, axis_size, free, merge
from neurograft.tracing.labels import Labels
from neurograft.tracing.rules.pointwise import mark
from neurograft.tracing.rules.table import Result, Results, arg, result_shape, rule, tensor
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
    results: Results = [out, *states]
    for s in op.shapes[3:]:
        # a workspace: opaque bytes, nothing reads it
        results.append(None if s is None else tuple(labels.fixed(n) for n in s))
    return results


@rule("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell")
def fused_cell(labels: Labels, op: Op) -> Result:
    """One step of an LSTM or GRU cell on a GPU: the gates of both projections are (gates, hidden neurons)."""
    x, h, state = (labels.of(tensor(op, i)) for i in range(3))
    hidden = state[-1]
    gates = merge([labels.fixed(axis_size(x[-1]) // axis_size(hidden), f"the gates of {labels.why}"), hidden])
    for axes in (x, h):
        labels.unify(axes[-1], gates)
        labels.unify(axes[0], state[0])
    for position in (3, 4):
        bias = arg(op, position)
        if isinstance(bias, Tensor):
            labels.unify(labels.of(bias)[0], gates)
            mark(labels, bias, "out")
    workspace = op.shapes[-1]
    states: Results = [(state[0], hidden)] * (len(op.results) - 1)
    return [*states, None if workspace is None else tuple(free(n) for n in workspace)]


@rule("_pack_padded_sequence")
def pack(labels: Labels, op: Op) -> Result:
    """Samples of several lengths laid end to end, step by step: positions in time have a meaning, features pass."""
    axes = labels.of(tensor(op, 0))
    for axis in axes[:2]:
        labels.fix(axis)
    return [(labels.fixed(result_shape(op)[0]), *axes[2:]), tuple(labels.fixed(n) for n in result_shape(op, 1))]


__all__: list[str] = []
