"""Held-out samples: who judges, and that a refit that makes things worse is not kept."""

import pytest
import torch
from tests.fusion import refit_and_report
from tests.recovery.test_refit import fused, noise
from torch import nn

import neurograft as ng
from neurograft.recovery.holdout import HoldOut, held_out
from neurograft.recovery.samples import Samples, read_samples


def numbered(*counts: int) -> Samples:
    batches, start = [], 0
    for count in counts:
        batches.append(torch.arange(start, start + count, dtype=torch.float32)[:, None])
        start += count
    return read_samples(batches, torch.device("cpu"))


def test_one_sample_in_five_judges_across_batches() -> None:
    solve, judges = held_out(numbered(7, 3, 5))
    assert judges is not None
    assert torch.cat(judges.batches).flatten().tolist() == [4, 9, 14]
    assert (solve.total, judges.total) == (12, 3)
    assert sorted(torch.cat([*solve.batches, *judges.batches]).flatten().tolist()) == list(range(15))


def test_of_many_samples_at_most_a_hundred_judge() -> None:
    solve, judges = held_out(numbered(1500, 1200))
    assert judges is not None
    assert 90 <= judges.total <= 100
    assert solve.total + judges.total == 2700


@pytest.mark.parametrize("counts", [(1,), (4,), (2, 2)])
def test_a_handful_of_samples_has_nobody_to_judge(counts: tuple[int, ...]) -> None:
    samples = numbered(*counts)
    assert held_out(samples) == (samples, None)


def test_batches_that_cannot_be_cut_go_one_way_as_a_whole() -> None:
    batches = [{"x": torch.randn(4, 3), "scale": torch.tensor(2.0)} for _ in range(5)]
    solve, judges = held_out(Samples(tuple(batches), (4,) * 5))
    assert judges is not None
    assert {id(b) for b in solve.batches} | {id(b) for b in judges.batches} == {id(b) for b in batches}
    assert solve.total + judges.total == 20


def test_the_error_is_that_of_the_outputs_against_the_weighted_mean() -> None:
    nets = [nn.Linear(3, 2).double() for _ in range(2)]
    x = torch.randn(10, 3, dtype=torch.float64)
    plan = ng.plan(nets, x[:2], "average", weights=[3, 1])
    other = nn.Linear(3, 2).double()
    mean = (0.75 * nets[0](x) + 0.25 * nets[1](x)).detach()
    judge = HoldOut.of(read_samples([x[:4], x[4:]], torch.device("cpu")), plan, nets)
    expected = float((other(x) - mean).detach().norm() / mean.norm())
    assert judge.error(other) == pytest.approx(expected)


def test_a_refit_that_is_farther_from_the_members_is_not_kept() -> None:
    start, plan, members = fused("mlp_bias", "average")
    x = noise("mlp_bias", 40, 1)
    x[4::5] *= 1000  # those that judge lie where none that is solved from does
    x[:, 1:][torch.arange(40) % 5 != 4] = 0
    better, report = refit_and_report(start, plan, members, [x], agree=False)
    assert report.held_out == 8
    assert report.after == report.before
    assert "nothing was changed: on 8 held-out samples" in report.notes[-1]
    assert all(torch.equal(a, b) for a, b in zip(better.parameters(), start.parameters(), strict=True))
    assert all(layer.before == layer.after for layer in report.layers if not layer.note)


def test_the_report_says_what_the_judges_saw() -> None:
    start, plan, members = fused("mlp_bias")
    better, report = refit_and_report(start, plan, members, [noise("mlp_bias", 200, 1)])
    assert report.held_out == 40
    assert report.after < report.before
    judged = HoldOut.of(read_samples([noise("mlp_bias", 200, 1)[4::5]], torch.device("cpu")), plan, members)
    assert report.before == pytest.approx(judged.error(start))
    assert report.after == pytest.approx(judged.error(better))
    assert "outputs on 40 held-out samples: relative error" in str(report)


def test_a_ridge_that_is_given_is_used_on_all_samples() -> None:
    start, plan, members = fused("mlp_bias")
    _, report = refit_and_report(start, plan, members, [noise("mlp_bias", 200, 1)], ridge=0.1)
    assert report.held_out == 0
    assert {layer.rows for layer in report.layers} == {200}
