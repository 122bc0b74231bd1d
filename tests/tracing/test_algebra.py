"""The axis algebra against an oracle that moves index arrays through the same operations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neurograft.tracing.algebra import (
    ONE,
    Axis,
    Var,
    axis_size,
    canon,
    fix,
    fixed,
    free,
    leaves,
    merge,
    reason,
    reshape,
    show,
    split,
    unify,
)
from neurograft.tracing.deep import positions

WHY = "a test"


def permutations_of(axes: list[Axis], seed: int) -> dict[Var, Tensor]:
    """A random permutation for every free variable."""
    rng = torch.Generator().manual_seed(seed)
    return {var: torch.randperm(var.size, generator=rng) for axis in axes for var in leaves(axis) if not var.fixed}


def moved(array: np.ndarray, axes: tuple[Axis, ...], permutations: dict[Var, Tensor]) -> np.ndarray:
    """The array with each dimension permuted as its axis says."""
    return array[np.ix_(*(positions(axis, permutations) for axis in axes))]


def test_size_one_and_zero_need_no_variable() -> None:
    assert free(1) == ONE
    assert fixed(1, WHY) == ONE
    assert free(0) == ()
    assert axis_size(ONE) == 1
    assert axis_size(()) == 0


def test_unify_makes_one_variable_of_two() -> None:
    a, b = free(5), free(5)
    unify(a, b, WHY)
    assert canon(a) == canon(b)
    assert reason(a) is None


def test_unify_with_a_fixed_axis_fixes_and_keeps_the_first_reason() -> None:
    a = free(5)
    unify(a, fixed(5, "the input"), WHY)
    fix(a, "later")
    assert str(reason(a)) == "the input"


def test_unify_cuts_the_longer_segment() -> None:
    a, b, whole = free(3), free(4), free(7)
    unify(whole, a + b, WHY)
    assert canon(whole) == canon(a) + canon(b)


def test_unify_peels_units_where_a_boundary_lies_inside_one() -> None:
    outer, inner = free(3), free(4)
    whole = merge([outer, inner])
    unify(whole, free(6) + free(6), WHY)
    assert axis_size(canon(whole)) == 12


def test_products_that_do_not_nest_are_fixed_with_a_reason() -> None:
    a, b = merge([free(4), free(6)]), merge([free(6), free(4)])
    unify(a, b, "a clash")
    assert "a clash" in str(reason(a))
    assert "do not nest" in str(reason(b))


def test_a_leading_sum_is_distributed_and_a_later_one_stays_nested() -> None:
    a, b, c, heads = free(2), free(3), free(4), free(6)
    assert len(merge([a + b, c])) == 2
    nested = merge([heads, a + b])
    assert len(nested) == 1
    assert [var.size for var in leaves(nested)] == [6, 2, 3]


def test_a_nested_sum_can_be_factored() -> None:
    heads, q, k = free(3), free(4), free(8)
    whole = merge([heads, q + k])
    left, middle, right = split(whole, [3, 6, 2], WHY)
    assert canon(left) == canon(heads)
    assert axis_size(middle) == 6
    assert reason(right) is None
    assert [var.size for var in leaves(whole)] == [3, 2, 4, 2]


def test_chunks_share_what_a_view_shares() -> None:
    q, k, v = free(12), free(12), free(12)
    three, heads, width = split(q + k + v, [3, 3, 4], WHY)
    assert reason(three) is not None
    assert canon(q) == canon(k) == canon(v) == canon(merge([heads, width]))


def test_a_view_that_does_not_nest_fixes_the_axis() -> None:
    whole = merge([free(4), free(9)])
    parts = split(whole, [6, 6], "a view")
    assert "a view" in str(reason(whole))
    assert all(reason(part) is not None for part in parts)


def test_show_marks_what_is_fixed() -> None:
    assert show(merge([free(3), fixed(4, WHY)]) + free(8)) == "3*4! + 8"


sizes = st.sampled_from([1, 2, 3, 4, 6])


@given(st.lists(sizes, min_size=1, max_size=4), st.integers(0, 99), st.data())
@settings(max_examples=150, deadline=None)
def test_reshape_moves_as_the_array_does(shape: list[int], seed: int, data: st.DataObject) -> None:
    axes = tuple(free(n) for n in shape)
    total = int(np.prod(shape))
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    first = data.draw(st.sampled_from(divisors))
    second = data.draw(st.sampled_from([d for d in divisors if (total // first) % d == 0]))
    target = [first, second, total // first // second]
    after = reshape(axes, target, WHY)
    assert [axis_size(axis) for axis in after] == target
    array = np.arange(total).reshape(shape)
    permutations = permutations_of([*axes, *after], seed)
    lhs = moved(array, axes, permutations).reshape(target)
    assert np.array_equal(lhs, moved(array.reshape(target), after, permutations))


@given(st.lists(sizes, min_size=1, max_size=4), st.data())
@settings(max_examples=100, deadline=None)
def test_reshape_there_and_back_is_nothing_new(shape: list[int], data: st.DataObject) -> None:
    axes = tuple(free(n) for n in shape)
    flat = reshape(axes, [int(np.prod(shape))], WHY)
    back = reshape(flat, shape, WHY)
    assert [canon(a) for a in axes] == [canon(b) for b in back]


@given(st.lists(st.sampled_from([2, 3, 4, 5, 6]), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_split_then_cat_is_the_axis(parts: list[int], seed: int) -> None:
    whole = free(sum(parts))
    pieces = [free(n) for n in parts]
    unify(whole, tuple(segment for piece in pieces for segment in piece), WHY)
    assert canon(whole) == tuple(segment for piece in pieces for segment in canon(piece))
    permutations = permutations_of([whole], seed)
    index = positions(whole, permutations).numpy()
    assert sorted(index.tolist()) == list(range(sum(parts)))
    inverse = np.argsort(index)
    assert np.array_equal(index[inverse], np.arange(sum(parts)))


@given(st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_random_chains_move_as_index_arrays_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = [int(n) for n in rng.choice([2, 3, 4, 6], size=rng.integers(1, 4))]
    axes = tuple(free(n) for n in shape)
    array = np.arange(np.prod(shape)).reshape(shape)
    history = [(array, axes)]
    for _ in range(4):
        array, axes = random_step(rng, array, axes)
        history.append((array, axes))
    first, first_axes = history[0]
    permutations = permutations_of([axis for _, axes in history for axis in axes], seed)
    # every derived array holds positions of the first one, so it must move as the first one's content does
    content = moved(first, first_axes, permutations).reshape(-1)
    for array, axes in history:
        assert np.array_equal(content[array], moved(array, axes, permutations))


def random_step(rng: np.random.Generator, array: np.ndarray, axes: tuple[Axis, ...]) -> tuple[np.ndarray, tuple]:
    """One of: a permuted order of dims, a reshape, a cut and swap of the halves, a cat with itself."""
    kind = rng.integers(4)
    dim = int(rng.integers(array.ndim))
    if kind == 0:
        order = [int(i) for i in rng.permutation(array.ndim)]
        return array.transpose(order), tuple(axes[i] for i in order)
    if kind == 1:
        total = array.size
        first = int(rng.choice([d for d in range(1, total + 1) if total % d == 0]))
        return array.reshape(first, -1), reshape(axes, [first, total // first], WHY)
    if kind == 2 and array.shape[dim] > 1:
        at = int(rng.integers(1, array.shape[dim]))
        low, high = free(at), free(array.shape[dim] - at)
        unify(axes[dim], low + high, WHY)
        parts = np.split(array, [at], axis=dim)
        return np.concatenate(parts[::-1], axis=dim), (*axes[:dim], high + low, *axes[dim + 1 :])
    if array.size > 200:
        return array, axes
    return np.concatenate([array, array], axis=dim), (*axes[:dim], axes[dim] + axes[dim], *axes[dim + 1 :])


@pytest.mark.parametrize("size", [2, 6])
def test_fixed_axes_stay_cheap(size: int) -> None:
    flat = reshape([fixed(size, "the batch"), fixed(7, "time")], [size * 7], WHY)
    assert len(flat[0]) == 1
    assert len(flat[0][0]) == 1
    assert str(reason(flat[0])) == "the batch"
