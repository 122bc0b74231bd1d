"""Statistics instead of data, from `fuse` to refit's targets."""

import pytest
import torch
from tests.fusion import refit_and_report
from torch import Tensor, nn

import neurograft as ng
from neurograft.errors import InputError, MembersDiffer, OptionError
from neurograft.fusing import Fusion


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).double()


def samples(seed: int, n: int = 300) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator, dtype=torch.float64) + 2.0 * seed


NETS = [network(0), network(1)]
OWN = [ng.statistics(net, [samples(m)]) for m, net in enumerate(NETS)]


def test_fuse_needs_no_data_where_members_brought_statistics() -> None:
    fusion = Fusion.of(ng.Members(NETS, samples(0, 2)), statistics=OWN, recover="auto")
    assert [report.recovery for report in fusion.recoveries] == ["refit"]
    assert fusion.recoveries[0].samples == 1000
    assert any("solved on cross-entropy" in note for note in fusion.recoveries[0].notes)
    alone = ng.fuse(NETS, samples(0, 2), statistics=OWN)
    wanted = fusion.model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in alone.state_dict().items())


def test_drawn_inputs_serve_methods_that_look_at_activations() -> None:
    plan = ng.plan(NETS, samples(0, 2), ng.Permutation(metric="activations"), statistics=OWN)
    assert plan.maps
    assert ng.fuse(NETS, samples(0, 2), "zip", statistics=OWN)(samples(0, 2)).shape == (2, 3)


def test_noise_stands_for_data() -> None:
    fused = ng.fuse(NETS, samples(0, 2), calibration="noise")
    assert fused(samples(0, 2)).shape == (2, 3)
    with pytest.raises(InputError, match='or "noise"'):
        ng.fuse(NETS, samples(0, 2), calibration="nois")  # type: ignore[arg-type]


def test_statistics_of_other_members_are_refused() -> None:
    with pytest.raises(MembersDiffer, match="1 statistics for 2 members"):
        ng.fuse(NETS, samples(0, 2), statistics=OWN[:1])


def test_outputs_are_solved_towards_the_target_sample_by_sample() -> None:
    """One linear layer refitted without a ridge is the least-squares fit of what the ensemble returns."""
    torch.manual_seed(0)
    nets = [nn.Linear(4, 3).double() for _ in range(2)]
    x = torch.cat([samples(0), samples(1)])
    plan = ng.plan(nets, x[:2], "average")
    target = ng.Ensemble(nets, statistics=OWN)
    wanted = target(x).detach()
    refitted, _ = refit_and_report(ng.apply(plan, nets), plan, nets, [x[:100], x[100:]], ridge=0.0, target=target)
    columns = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    best = columns @ torch.linalg.lstsq(columns, wanted).solution
    torch.testing.assert_close(refitted(x).detach(), best)
    assert (best - wanted).norm() < 0.9 * (target.members[0](x).detach() - wanted).norm()


def test_weights_by_class_are_targets_too() -> None:
    nets = [nn.Linear(4, 3).double() for _ in range(2)]
    x = samples(0)
    plan = ng.plan(nets, x[:2], "average")
    target = ng.Ensemble(nets, weights=[[3, 1, 0], [1, 1, 1]])
    refitted, _ = refit_and_report(ng.apply(plan, nets), plan, nets, [x], ridge=0.0, target=target)
    torch.testing.assert_close(refitted(x), target(x))


def test_the_held_out_samples_judge_by_the_target() -> None:
    x = torch.cat([samples(0), samples(1)])[torch.randperm(600)]
    plan = ng.plan(NETS, x[:2])
    fused, target = ng.apply(plan, NETS), ng.Ensemble(NETS, statistics=OWN)
    _, report = refit_and_report(fused, plan, NETS, [x], target=target)
    judges = x[torch.arange(600) % 6 == 5]
    wanted = target(judges).detach()
    assert report.before == pytest.approx(float((fused(judges) - wanted).detach().norm() / wanted.norm()))


def test_a_target_of_something_else_is_refused() -> None:
    plan = ng.plan(NETS, samples(0, 2))
    fused = ng.apply(plan, NETS)
    for target in (NETS[0], ng.Ensemble(NETS[:1]), ng.Ensemble(NETS, "majority")):
        with pytest.raises(OptionError, match="an Ensemble of the 2 members"):
            ng.refit(fused, plan, NETS, [samples(0)], target=target)  # type: ignore[arg-type]


def test_a_gated_ensemble_is_a_teacher() -> None:
    pytest.importorskip("accelerate")
    x = torch.cat([samples(0), samples(1)])
    teacher = ng.Ensemble(NETS, statistics=OWN)
    taught = ng.distill(network(5), teacher, list(torch.split(x[torch.randperm(600)], 20)), epochs=20, lr=0.05)
    agree = (taught(x).argmax(1) == teacher(x).argmax(1)).double().mean()
    assert agree > 0.8
