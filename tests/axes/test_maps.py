"""The two matrices per member and group."""

import pytest
import torch
from torch import Tensor

from neurograft.axes.maps import NeuronMap, Pairs, kept_share, mixing_shape
from neurograft.errors import PlanError


def test_pairs_are_the_matrix_they_stand_for() -> None:
    pairs = Pairs(torch.tensor([0, 2, 2]), torch.tensor([1, 0, 3]), 3, 4, torch.tensor([1.0, 0.5, 0.25]))
    expected = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0], [0.5, 0, 0, 0.25]])
    assert torch.equal(pairs.dense(), expected)
    assert mixing_shape(pairs) == mixing_shape(expected) == (3, 4)


def test_entries_of_one_place_add_up() -> None:
    pairs = Pairs(torch.tensor([0, 0]), torch.tensor([1, 1]), 1, 2)
    assert torch.equal(pairs.dense(), torch.tensor([[0.0, 2.0]]))


def test_a_selection_reads_what_it_makes() -> None:
    found = NeuronMap.selection(torch.tensor([1, 3]), torch.tensor([0, 2]), 4, 5)
    assert found.merge is found.unmerge
    assert (found.fused, found.member) == (4, 5)
    assert torch.equal(found.merge.dense() @ found.unmerge.dense().T, torch.diag(torch.tensor([0.0, 1, 0, 1])))


def test_a_permutation_and_its_transpose_cancel() -> None:
    order = torch.tensor([2, 0, 3, 1])
    matrix = NeuronMap.permutation(order).merge.dense()
    assert torch.equal(matrix @ matrix.T, torch.eye(4))
    assert torch.equal(matrix @ torch.arange(4.0), order.float())


def test_matrices_of_different_shapes_are_refused() -> None:
    with pytest.raises(PlanError, match=r"merge has shape \(2, 3\) but unmerge \(3, 2\)"):
        NeuronMap(torch.zeros(2, 3), torch.zeros(3, 2))


@pytest.mark.parametrize("dense", [False, True])
def test_kept_shares_are_shares_of_the_fused_neurons(dense: bool) -> None:
    first = NeuronMap.selection(torch.arange(3), torch.tensor([0, 4, 5]), 4, 6)
    second = NeuronMap.selection(torch.tensor([3]), torch.tensor([2]), 4, 6)
    if dense:
        first, second = (NeuronMap(m.merge.dense(), m.unmerge.dense()) for m in (first, second))
    assert kept_share((first, second)) == (0.75, 0.25)


def test_weighted_pairs_count_by_weight() -> None:
    def half(source: Tensor) -> NeuronMap:
        pairs = Pairs(torch.arange(2), source, 2, 2, torch.tensor([0.5, 0.5]))
        return NeuronMap(pairs, pairs)

    assert kept_share((half(torch.tensor([0, 1])), half(torch.tensor([1, 0])))) == (0.5, 0.5)
