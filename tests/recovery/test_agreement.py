"""Merged neurons are weighted by how far the members agree on them."""

import copy
import math

import pytest
import torch
from tests.fusion import refit_and_report
from tests.networks import MLP
from tests.recovery.test_refit import distance, fused, noise, output
from torch import Tensor, nn

import neurograft as ng
from neurograft.plans.check_members import members_for
from neurograft.recovery.agreement import agreement
from neurograft.recovery.samples import Samples

MEMORY = 1 << 24


def found_for(plan: ng.FusionPlan, members: list[nn.Module], x: Tensor, rows: int | None = None):
    return agreement(plan, members_for(plan, members), Samples((x[:rows],), (len(x[:rows]),)), memory=MEMORY)


def related(seed: int, share: float) -> MLP:
    """An MLP whose weights are partly those of seed 0."""
    nets = []
    for s in (0, seed):
        torch.manual_seed(s)
        nets.append(MLP(12, 16, 14, 10).double())
    with torch.no_grad():
        for own, first in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
            own.mul_(math.sqrt(1 - share**2)).add_(first, alpha=share)
    return nets[1]


def test_weights_are_the_variance_of_the_reference_that_a_member_explains() -> None:
    members = [related(0, 1.0), related(1, 0.8)]
    x = torch.randn(400, 12, dtype=torch.float64)
    plan = ng.plan(members, x[:2], "average", weights=[3, 1])
    found = found_for(plan, members, x)
    assert found is not None
    assert found.reference == 0
    first, second = (m.layers[0](x).detach() for m in members)
    r = torch.stack([torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(first.T, second.T, strict=True)])
    expected = 0.25 * r.clamp_min(0) ** 2
    expected = expected / (0.75 + expected)
    own, other = found.plan.maps["layers.0.weight:0"]
    torch.testing.assert_close(0.25 * other.merge.dense().double().diagonal(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(0.75 * own.merge.dense().double().diagonal(), 1 - expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(other.unmerge.dense(), torch.eye(16))


@pytest.mark.parametrize("method", ["average", "permutation", "optimal_transport"])
def test_members_that_are_one_network_keep_their_weights(method: str) -> None:
    net = related(0, 1.0)
    members = [net, copy.deepcopy(net)]
    x = torch.randn(100, 12, dtype=torch.float64)
    plan = ng.plan(members, x[:2], method, weights=[3, 1])
    found = found_for(plan, members, x)
    assert found is not None
    assert found.shares == pytest.approx((0.75, 0.25))
    torch.testing.assert_close(output(ng.apply(found.plan, members), x), output(net, x), rtol=1e-6, atol=1e-6)


def test_the_reference_is_the_member_nearest_to_the_mean_of_the_outputs() -> None:
    members = [related(1, 0.1), related(0, 1.0), related(2, 0.1)]
    x = torch.randn(200, 12, dtype=torch.float64)
    outputs = [output(m, x) for m in members]
    mean = sum(outputs) / 3
    nearest = min(range(3), key=lambda m: float((outputs[m] - mean).norm()))
    found = found_for(ng.plan(members, x[:2], "average"), members, x)
    assert found is not None
    assert found.reference == nearest
    assert found.shares[nearest] == max(found.shares)


def test_a_member_of_no_weight_does_not_count() -> None:
    members = [related(0, 1.0), related(1, 0.5)]
    x = torch.randn(100, 12, dtype=torch.float64)
    plan = ng.plan(members, x[:2], "average", weights=[0, 1])
    found = found_for(plan, members, x)
    assert found is not None
    assert (found.reference, found.shares) == (1, (0.0, 1.0))
    torch.testing.assert_close(output(ng.apply(found.plan, members), x), output(members[1], x), rtol=1e-6, atol=1e-6)


def test_where_nothing_is_merged_or_too_little_is_known_the_plan_stays() -> None:
    members = [related(0, 1.0), related(1, 0.5)]
    x = torch.randn(100, 12, dtype=torch.float64)
    assert found_for(ng.plan(members, x[:2], "transplant"), members, x) is None
    assert found_for(ng.plan(members, x[:2], "average"), members, x, rows=10) is None
    own = ng.plan(members, x[:2], "average", weights={"layers.0.*": [1, 3]})
    assert found_for(own, members, x) is None


def test_members_of_other_widths() -> None:
    members = [MLP(12, 16, 14, 10).double(), MLP(12, 24, 10, 10).double()]
    x = torch.randn(300, 12, dtype=torch.float64)
    plan = ng.plan(members, x[:2], "optimal_transport")
    better = ng.refit(ng.apply(plan, members), plan, members, [x])
    assert distance(better, members, x) < distance(ng.apply(plan, members), members, x)


@pytest.mark.parametrize("name", ["mlp_bias", "lenet", "vgg_batch_norm", "resnet"])
def test_refit_of_unrelated_members_comes_nearer_to_them_than_from_the_plain_mean(name: str) -> None:
    start, plan, members = fused(name, "average", count=3)
    samples, new = [noise(name, 300, 1)], noise(name, 100, 2)
    plain = ng.refit(start, plan, members, samples, agree=False)
    better, report = refit_and_report(start, plan, members, samples)
    assert distance(better, members, new) < distance(plain, members, new)
    assert "weighted by how far they agree with member" in report.notes[0]


def test_streams_are_weighted_alike_in_all_that_writes_into_them() -> None:
    _, plan, members = fused("resnet", "average")
    found = found_for(plan, members, noise("resnet", 40, 1))
    assert found is not None
    start = ng.apply(found.plan, members)
    factors = [m.merge.weight.double() for m in found.plan.maps["conv1.weight:0"]]
    assert all(bool((factor != 1).any()) for factor in factors)
    for name in ("conv1.weight", "blocks.0.conv2.weight"):
        tensors = [m.get_parameter(name).detach() for m in members]
        expected = sum(0.5 * f[:, None, None, None] * t for f, t in zip(factors, tensors, strict=True))
        torch.testing.assert_close(start.get_parameter(name).detach(), expected, rtol=1e-6, atol=1e-7)


def test_a_network_that_was_changed_is_refitted_from_as_it_is() -> None:
    start, plan, members = fused("mlp_bias", "average")
    changed = copy.deepcopy(start)
    with torch.no_grad():
        changed.layers[0].weight[0] += 1
    _, report = refit_and_report(changed, plan, members, [noise("mlp_bias", 100, 1)])
    assert report.notes == ()
    _, report = refit_and_report(start, plan, members, [noise("mlp_bias", 100, 1)], layers=["layers.1*"])
    assert report.notes == ()
