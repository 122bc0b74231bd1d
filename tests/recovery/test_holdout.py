"""Held-out samples: who judges, and that a refit that makes things worse is not kept."""

import pytest
import torch
from tests.fusion import refit_and_report
from tests.recovery.test_refit import fused, noise
from torch import nn

import neurograft as ng
from neurograft.errors import InputError
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


def test_groups_are_held_out_as_wholes_and_numbered_anew() -> None:
    names = torch.tensor([7, 3, 7, 5, 3, 9, 9, 11, 5, 40, 40, 2])
    x = torch.arange(12.0)[:, None]
    samples = read_samples([x[:5], x[5:]], torch.device("cpu")).grouped(names)
    solve, judges = held_out(samples)
    assert judges is not None
    assert solve.groups is not None
    chosen = torch.cat(judges.batches).flatten().long()
    kept = torch.cat(solve.batches).flatten().long()
    assert set(names[chosen].tolist()) == {9}  # the fifth of 2, 3, 5, 7, 9, 11, 40
    assert not set(names[chosen].tolist()) & set(names[kept].tolist())
    assert solve.groups.unique().tolist() == list(range(6))
    for part in (solve.joined(), solve.cut(2)):
        assert torch.equal(torch.cat(part.groups_of()), solve.groups)
        assert [len(of) for of in part.groups_of()] == list(part.counts)


def test_every_sample_is_its_own_group_where_none_are_named() -> None:
    plain, named = numbered(7, 3, 5), numbered(7, 3, 5)
    named = named.grouped(range(15))
    for one, other in zip(held_out(plain), held_out(named), strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(torch.cat(one.batches), torch.cat(other.batches))
        assert torch.equal(torch.cat(one.groups_of()), torch.cat(other.groups_of()))


def test_groups_lie_along_the_dimension_of_the_samples() -> None:
    """Twelve sequences of five steps, time first: one group per sequence, and groups per step are refused."""
    model, names = nn.LSTM(3, 4), torch.tensor([7, 3, 7, 5, 3, 9, 9, 11, 5, 40, 40, 2])
    x = torch.randn(5, 12, 3)
    x[0, :, 0] = torch.arange(12.0)
    seen = read_samples([x[:, :4], x[:, 4:]], torch.device("cpu")).seen_by(model)
    assert seen.dim == 1
    solve, judges = held_out(seen.grouped(names))
    assert judges is not None
    (judged,) = judges.batches
    assert judged.shape == (5, 2, 3)
    assert names[judged[0, :, 0].long()].tolist() == [9, 9]
    (joined,) = solve.joined().batches
    assert joined.shape == (5, 10, 3)
    kept = names[joined[0, :, 0].long()]
    for part in (solve.joined(), solve.cut(2)):
        assert torch.equal(torch.cat(part.groups_of()), kept.unique(return_inverse=True)[1])
        assert all(len(of) == batch.shape[1] for of, batch in zip(part.groups_of(), part.batches, strict=True))
    with pytest.raises(InputError, match="12 for these batches"):
        seen.grouped([0] * 10)


@pytest.mark.parametrize("groups", [[0, 1], torch.zeros(40, 1, dtype=torch.int64), torch.zeros(40), ["a"] * 40, None])
def test_groups_that_do_not_fit_the_samples_are_refused(groups: object) -> None:
    start, plan, members = fused("mlp_bias", "average")
    batches: list[object] = [noise("mlp_bias", 40, 1)]
    if groups is None:  # tensors without a row per sample
        batches, groups = [{"x": torch.ones(4, 2), "scale": torch.tensor(1.0)}] * 2, [0] * 8
        with pytest.raises(InputError, match="cannot be cut into samples"):
            read_samples(batches, torch.device("cpu")).grouped(groups)
        return
    with pytest.raises(InputError, match="groups must be one integer per sample"):
        ng.refit(start, plan, members, batches, groups=groups)  # type: ignore[arg-type]


def test_a_refit_on_groups_that_are_alike_is_better_on_new_ones() -> None:
    """Thirty samples around each of 24 centres: λ chosen on samples fits the centres, λ chosen on groups does not."""

    def net(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 2)).double()
        nn.init.normal_(made[0].weight, std=0.4)
        return made

    def around(count: int, each: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        g = torch.Generator().manual_seed(seed)
        groups = torch.randint(count, (count * each,), generator=g)
        centres = torch.randn(count, 40, generator=g, dtype=torch.float64)
        return centres[groups] + 0.02 * torch.randn(count * each, 40, generator=g, dtype=torch.float64), groups

    nets = [net(seed) for seed in range(4)]
    x, groups = around(24, 30, 0)
    new, _ = around(500, 1, 1)
    plan = ng.plan(nets, x[:2], "average")
    start = ng.apply(plan, nets)
    wanted = torch.stack([n(new) for n in nets]).mean(0)
    plain = ng.refit(start, plan, nets, [x], agree=False)
    grouped = ng.refit(start, plan, nets, [x], agree=False, groups=groups)
    error = [float((model(new) - wanted).detach().norm() / wanted.detach().norm()) for model in (plain, grouped)]
    assert error[1] < 0.9 * error[0]
