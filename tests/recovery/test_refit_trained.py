"""Refitting networks that were really trained: few images do no harm, and training can go on afterwards."""

import math

import pytest
import torch
from torch import nn

import neurograft as ng
from neurograft_experiments.data import Images, load_images
from neurograft_experiments.networks import digits_convnet, digits_mlp

MAKERS = {"mlp": digits_mlp, "convnet": digits_convnet}
LR = {"mlp": 0.05, "convnet": 0.1}
METHODS = ("average", "permutation", "optimal_transport", "transplant", "zip")


def noise(accuracy, samples):
    """Two standard errors of the difference of two accuracies, each on `samples` images."""
    return 2 * math.sqrt(2 * accuracy * (1 - accuracy) / samples)


@pytest.fixture(scope="module")
def images() -> Images:
    return load_images("digits")


@pytest.fixture(scope="module")
def trained(images: Images):
    """Members by network and seed, trained once."""
    kept: dict[tuple[str, int], nn.Module] = {}

    def member(name: str, seed: int) -> nn.Module:
        if (name, seed) not in kept:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                net = MAKERS[name]()
            batches = images.train.batches(32, shuffle=True)
            kept[name, seed] = ng.finetune(net, batches, epochs=8, lr=LR[name], seed=seed, progress=False).eval()
        return kept[name, seed]

    return member


def fused(members: list[nn.Module], method: str, images: Images) -> tuple[ng.FusionPlan, nn.Module]:
    calibration = [images.train.images[:50]]
    plan = ng.plan(members, images.train.images[:2], method, calibration=calibration)
    return plan, ng.apply(plan, members)


SEEDS = [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [50, 400])
def test_refitting_never_makes_a_fused_network_worse(name: str, seed: int, count: int, images: Images, trained) -> None:
    members = [trained(name, 10 * seed + m) for m in range(2)]
    test = images.test.batches()
    for method in METHODS:
        plan, start = fused(members, method, images)
        order = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(seed))
        better = ng.refit(start, plan, members, [images.train.images[order[:count]]])
        before, after = ng.evaluate(start, test).accuracy, ng.evaluate(better, test).accuracy
        assert after > before - noise(before, len(images.test)), method


@pytest.mark.parametrize("count", [50, 400])
@pytest.mark.parametrize("method", METHODS)
def test_refitting_gains_on_images_it_has_not_seen(method: str, count: int, images: Images, trained) -> None:
    """Two convolutional networks of 84 and 90 %: fused at once they are right on 19 to 51 % of the test images."""
    members = [trained("convnet", m) for m in range(2)]
    plan, start = fused(members, method, images)
    better = ng.refit(start, plan, members, [images.train.images[:count]])
    before, after = (ng.evaluate(net, images.test.batches()).accuracy for net in (start, better))
    worst = min(ng.evaluate(net, images.test.batches()).accuracy for net in members)
    assert after > before + 2 * noise(before, len(images.test))
    assert after > worst - 0.1


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("count", [50, 400])
@pytest.mark.parametrize("method", ["transplant", "permutation"])
def test_a_refitted_network_trains_on_at_the_members_step_size(
    name: str, count: int, method: str, images: Images, trained
) -> None:
    members = [trained(name, m) for m in range(2)]
    plan, start = fused(members, method, images)
    refitted = ng.refit(start, plan, members, [images.train.images[:count]])
    losses: list[float] = []
    tuned = ng.finetune(
        refitted,
        images.train.batches(32, shuffle=True),
        epochs=6,
        lr=LR[name],
        validation=images.validation.batches(),  # one epoch more or less at these learning rates is worth some points
        progress=False,
        on_epoch=lambda epoch: losses.append(epoch.train_loss),
    )
    assert all(math.isfinite(loss) for loss in losses[1:])
    assert max(losses[1:]) < math.log(10)  # never worse than guessing
    member = max(ng.evaluate(m, images.test.batches()).accuracy for m in members)
    assert ng.evaluate(tuned, images.test.batches()).accuracy > member - noise(member, len(images.test))


@pytest.mark.parametrize("name", MAKERS)
def test_a_refitted_networks_weights_are_hardly_larger_than_the_members(name: str, images: Images, trained) -> None:
    members = [trained(name, m) for m in range(2)]
    plan, start = fused(members, "transplant", images)
    for count in (20, 50, 400):
        refitted = ng.refit(start, plan, members, [images.train.images[:count]])
        for tensor, weight in refitted.named_parameters():
            largest = max(float(net.get_parameter(tensor).detach().norm()) for net in (*members, start))
            if weight.dim() > 1:
                assert float(weight.detach().norm()) <= 2.0001 * largest, (tensor, count)
