"""Calibration samples, put together and cut as the memory allows."""

import pytest
import torch

from neurograft.recovery.samples import ACTIVATIONS, Samples

BATCHES = Samples((torch.arange(7.0)[:, None], torch.arange(7.0, 10.0)[:, None]), (7, 3))


def test_a_cut_keeps_every_sample_in_its_place() -> None:
    cut = BATCHES.cut(3)
    assert cut.counts == (3, 3, 1, 3)
    assert cut.total == BATCHES.total
    assert torch.equal(torch.cat(cut.batches), torch.cat(BATCHES.batches))


def test_a_batch_with_something_else_than_a_row_per_sample_stays_whole() -> None:
    batch = {"images": torch.zeros(4, 2), "temperature": torch.tensor(1.0)}
    assert Samples((batch,), (4,)).cut(1).batches == (batch,)


@pytest.mark.parametrize(("samples", "counts"), [(10, (10,)), (9, (7, 3)), (2, (2, 2, 2, 1, 2, 1)), (0, (1,) * 10)])
def test_batches_fit_into_the_room(samples: int, counts: tuple[int, ...]) -> None:
    found = BATCHES.fitted(8, ACTIVATIONS * 8 * samples)
    assert found.counts == counts
    assert torch.equal(torch.cat(found.batches), torch.cat(BATCHES.batches))
