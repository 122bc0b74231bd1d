"""The gate is the posterior of a linear discriminant analysis, and an ensemble with it picks who knows a sample."""

import pytest
import torch
from torch import Tensor, nn

import neurograft as ng
from neurograft.errors import BadWeights, InputError, OptionError
from neurograft.member_statistics.gate import Gate, pooled_covariance
from neurograft.member_statistics.random_features import random_features
from neurograft.member_statistics.statistics import FeatureMoments


def test_shares_are_the_posterior_of_normal_distributions_with_one_covariance() -> None:
    torch.manual_seed(0)
    x = [torch.randn(400, 3) + shift for shift in (-1.0, 0.0, 2.0)]
    own = [ng.statistics(nn.Linear(3, 2), [part[:n]]) for part, n in zip(x, (400, 200, 300), strict=True)]
    samples = torch.tensor([400.0, 200.0, 300.0])
    within = pooled_covariance([s.features for s in own], samples)
    features = random_features([x[1]]).double()
    normal = [torch.distributions.MultivariateNormal(s.features.mean.double(), within) for s in own]
    wanted = torch.stack([n.log_prob(features) for n in normal]) + samples.double().log()[:, None]
    torch.testing.assert_close(Gate.of(own).weights([x[1]]), wanted.softmax(0), rtol=1e-4, atol=1e-6)


def test_the_pooled_covariance_of_many_samples_is_theirs_and_of_few_is_shrunk() -> None:
    torch.manual_seed(0)
    covariance = torch.diag(torch.tensor([4.0, 1.0, 0.25]))
    moments = [FeatureMoments(torch.zeros(3), covariance)] * 2
    many = pooled_covariance(moments, torch.tensor([1e6, 1e6]))
    torch.testing.assert_close(many, covariance.double(), rtol=1e-4, atol=1e-4)
    few = pooled_covariance(moments, torch.tensor([1.0, 1.0]))
    assert few.trace() == pytest.approx(5.25)
    assert few[2, 2] > 0.5
    noisy = pooled_covariance([FeatureMoments(torch.zeros(3), covariance, noise=1.0)] * 2, torch.tensor([1e6, 1e6]))
    assert noisy[2, 2] > 1


def clients() -> tuple[list[nn.Module], list[Tensor], list[ng.Statistics]]:
    """Two networks that each know the classes of one half of a plane, and are sure and wrong elsewhere."""
    torch.manual_seed(0)
    nets: list[nn.Module] = [nn.Linear(2, 4), nn.Linear(2, 4)]
    with torch.no_grad():
        for m, net in enumerate(nets):
            net.weight.zero_()
            net.bias.zero_()
            net.weight[2 * m, 1], net.weight[2 * m + 1, 1] = 4, -4
            net.bias[2 * m : 2 * m + 2] = 5
    x = [torch.randn(500, 2) * torch.tensor([0.5, 1.0]) + torch.tensor([3.0 * (2 * m - 1), 0.0]) for m in range(2)]
    return nets, x, [ng.statistics(net, [part]) for net, part in zip(nets, x, strict=True)]


def labels(x: Tensor) -> Tensor:
    return 2 * (x[:, 0] > 0) + (x[:, 1] < 0).long()


def test_a_gated_ensemble_is_right_where_the_mean_cannot_be() -> None:
    nets, x, own = clients()
    batches = [(part, labels(part)) for part in x]
    mean, gated = ng.Ensemble(nets), ng.Ensemble(nets, statistics=own)
    assert ng.evaluate(mean, batches).accuracy < 0.6
    assert ng.evaluate(gated, batches).accuracy > 0.99
    assert ng.evaluate(ng.Ensemble(nets, "probabilities", statistics=own), batches).accuracy > 0.99
    shares = gated.shares(x[0])
    assert shares.shape == (2, 500, 1)
    torch.testing.assert_close(shares.sum(0), torch.ones(500, 1, dtype=torch.float64))
    assert float(shares[0].mean()) > 0.99


def test_members_with_the_same_statistics_count_alike() -> None:
    nets, x, own = clients()
    torch.testing.assert_close(ng.Ensemble(nets, statistics=[own[0]] * 2)(x[0]), ng.Ensemble(nets)(x[0]))


def test_a_gated_ensemble_refuses_other_inputs() -> None:
    nets, _, own = clients()
    with pytest.raises(InputError, match="the statistics are of 2 real numbers"):
        ng.Ensemble(nets, statistics=own)(torch.zeros(1, 3))


def test_weights_are_scaled_and_count() -> None:
    nets, x, _ = clients()
    z = [net(x[0]) for net in nets]
    torch.testing.assert_close(ng.Ensemble(nets, weights=[3, 1])(x[0]), 0.75 * z[0] + 0.25 * z[1])


def test_weights_by_class_do_not_see_a_shift_of_all_logits() -> None:
    nets, x, _ = clients()
    by_class = [[1, 1, 0, 0], [0, 0, 1, 1]]
    before = ng.Ensemble(nets, weights=by_class)(x[0])
    own = [net(x[0]) for net in nets]
    own = [z - z.mean(1, keepdim=True) for z in own]
    torch.testing.assert_close(before, torch.cat([own[0][:, :2], own[1][:, 2:]], 1))
    with torch.no_grad():
        nets[0].bias.add_(7)
    torch.testing.assert_close(ng.Ensemble(nets, weights=by_class)(x[0]), before)


def test_energy_prefers_who_is_sure() -> None:
    sure, unsure = nn.Linear(1, 2), nn.Linear(1, 2)
    with torch.no_grad():
        for net, size in ((sure, 9.0), (unsure, 0.1)):
            net.weight.copy_(torch.tensor([[size], [-size]]))
            net.bias.zero_()
    shares = ng.Ensemble([sure, unsure], "energy").shares(torch.ones(3, 1))
    assert shares.shape == (2, 3, 1)
    assert bool((shares[0] > 0.9).all())


@pytest.mark.parametrize(
    "weights", [[1, 2, 3], [[1, 2], [0, 0], [1, 1]], [-1, 2], [[0, 1], [0, 1]], [float("nan"), 1], ["a", 1]]
)
def test_weights_that_make_no_sense_are_refused(weights: list[float]) -> None:
    with pytest.raises(BadWeights, match="weights"):
        ng.Ensemble([nn.Identity(), nn.Identity()], weights=weights)


def test_two_ways_to_weigh_are_one_too_many() -> None:
    nets, _, own = clients()
    with pytest.raises(OptionError, match="pass one of them"):
        ng.Ensemble(nets, weights=[1, 1], statistics=own)
    with pytest.raises(OptionError, match="vote='majority'"):
        ng.Ensemble(nets, "majority", statistics=own)
    with pytest.raises(InputError, match="do not fit weights"):
        ng.Ensemble(nets, weights=[[1] * 3] * 2)(torch.zeros(1, 2))
