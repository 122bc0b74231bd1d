"""Tensors from nothing: equal values everywhere have no order, counted or random ones do."""

from neurograft.tracing.algebra import free
from neurograft.tracing.labels import Labels
from neurograft.tracing.rules.table import Result, result_shape, rule
from neurograft.tracing.tape import Op

UNIFORM = (
    "zeros",
    "ones",
    "full",
    "empty",
    "empty_strided",
    "scalar_tensor",
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "new_empty_strided",
    "empty_permuted",
)


@rule(*UNIFORM)
def uniform(_: Labels, op: Op) -> Result:
    """One value everywhere: every dim is free, and what is written into it decides."""
    return tuple(free(n) for n in result_shape(op))


@rule(
    "arange",
    "linspace",
    "logspace",
    "eye",
    "rand",
    "randn",
    "randint",
    "randperm",
    "rand_like",
    "randn_like",
    "randint_like",
    "tril_indices",
    "triu_indices",
    "bernoulli",
    "multinomial",
    "normal",
    "normal_",
    "uniform_",
    "hann_window",
    "hamming_window",
)
def counted(labels: Labels, op: Op) -> Result:
    """Each position has a value of its own: every dim is fixed."""
    for x in op.args:
        if hasattr(x, "untyped_storage"):
            for axis in labels.of(x):
                labels.fix(axis)
    if op.name == "arange" and _from_zero(op):
        labels.numbers.counting.add(id(op.results[0]))
    return tuple(labels.fixed(n) for n in result_shape(op))


def _from_zero(op: Op) -> bool:
    # 0, 1, 2, …: the numbers of its own positions
    (count,) = result_shape(op)
    numbers = {"default": (0, *op.args, 1), "start": (*op.args, 1)}.get(op.overload, op.args)
    return numbers == (0, count, 1)


@rule("_local_scalar_dense", "item", "is_nonzero", "equal", "is_same_size", "_assert_async", "_assert_tensor_metadata")
def scalar(labels: Labels, op: Op) -> Result:
    """A value read by Python: every dim of what it is read from is fixed."""
    for x in op.args:
        if hasattr(x, "untyped_storage") and op.name in ("_local_scalar_dense", "item", "equal"):
            labels.numbers.meaning_of(x, "range")
            for axis in labels.of(x):
                labels.fix(axis)
    return [None for _ in op.results]


__all__ = ["UNIFORM"]
