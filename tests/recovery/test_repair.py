"""REPAIR: every neuron gets the planned mean and standard deviation, by weights, biases and BatchNorms alone."""

import copy
from collections.abc import Callable

import pytest
import torch
from tests.fusion import repair_and_report
from tests.networks import MLP, build
from tests.recovery.test_refit import fused, noise, output
from torch import Tensor, nn
from torch.nn import functional as F

import neurograft as ng
from neurograft.errors import InputError, PlanError


def outputs_of(net: nn.Module, layer: Callable[[nn.Module], nn.Module], x: Tensor) -> Tensor:
    """What a layer makes, channels first and everything else flattened."""
    seen: list[Tensor] = []
    handle = layer(net).register_forward_hook(lambda _, __, y: seen.append(y.detach()))
    output(net, x)
    handle.remove()
    return seen[0].transpose(0, 1).flatten(1)


LAYERS = {
    "mlp_bias": [lambda m: m.layers[0], lambda m: m.layers[1]],
    "lenet_bias": [lambda m: m.c1, lambda m: m.c2, lambda m: m.f1],
    "autoencoder": [lambda m: m.down1, lambda m: m.down2, lambda m: m.up1],
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("memory", [None, 1000])
def test_neurons_have_the_planned_mean_and_deviation(name: str, memory: int | None) -> None:
    start, plan, members = fused(name, "average")
    samples = [noise(name, 30, 1), noise(name, 20, 2)]
    better = ng.repair(start, plan, members, samples, max_memory=memory)
    x = torch.cat(samples)
    for layer in LAYERS[name]:
        wanted = [outputs_of(m, layer, x) for m in members]
        found = outputs_of(better, layer, x)
        torch.testing.assert_close(found.mean(1), sum(z.mean(1) for z in wanted) / 2)
        planned = sum(z.std(1, unbiased=False) for z in wanted) / 2
        torch.testing.assert_close(found.std(1, unbiased=False), planned)


def test_a_batch_norm_normalises_as_the_members_do_on_the_same_samples() -> None:
    start, plan, members = fused("resnet", "average")
    x = noise("resnet", 30, 1)
    better = ng.repair(start, plan, members, [x])
    for before, norm in (
        (lambda m: m.conv1, lambda m: m.norm1),
        (lambda m: m.blocks[2].conv2, lambda m: m.blocks[2].norm2),
    ):
        read = [outputs_of(m, before, x) for m in members]
        mean, deviation = (sum(s) / 2 for s in zip(*((z.mean(1), z.std(1, unbiased=False)) for z in read), strict=True))
        held = [(norm(m).running_mean, (norm(m).running_var + norm(m).eps).sqrt()) for m in members]
        centre, spread = (sum(s) / 2 for s in zip(*held, strict=True))
        own = outputs_of(better, before, x)
        found = (own - norm(better).running_mean[:, None]) / (norm(better).running_var + norm(better).eps).sqrt()[
            :, None
        ]
        torch.testing.assert_close(found.mean(1), (mean - centre) / spread)
        torch.testing.assert_close(found.std(1, unbiased=False), deviation / spread)


class Functional(nn.Module):
    """Two BatchNorms whose statistics are buffers of one module."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(5, 2)
        for name, channels in (("1", 6), ("2", 5)):
            self.register_buffer(f"mean{name}", torch.rand(channels))
            self.register_buffer(f"spread{name}", torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(self.c1(x), self.mean1, self.spread1).relu()
        x = F.batch_norm(self.c2(x), self.mean2, self.spread2).relu()
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("recover", [ng.repair, ng.refit])
def test_batch_norms_of_one_module_are_told_apart(recover: Callable[..., nn.Module]) -> None:
    # members that are one network stay it, on samples whose statistics are others than the running ones
    net = Functional().double().eval()
    members, x = [net, copy.deepcopy(net)], torch.randn(40, 3, 8, 8, dtype=torch.float64)
    plan = ng.plan(members, x[:2], "average")
    better = recover(ng.apply(plan, members), plan, members, [x])
    torch.testing.assert_close(better(x), net(x))


def test_a_layer_that_not_only_its_batch_norm_reads_is_repaired_itself() -> None:
    # the stem of a densely connected network is read by a BatchNorm and by concatenations
    start, plan, members = fused("densenet", "average")
    x = noise("densenet", 30, 1)
    better = ng.repair(start, plan, members, [x])
    planned = sum(outputs_of(m, lambda m: m.stem, x).std(1, unbiased=False) for m in members) / 2
    torch.testing.assert_close(outputs_of(better, lambda m: m.stem, x).std(1, unbiased=False), planned)


def test_transplanted_neurons_have_their_owners_statistics() -> None:
    start, plan, members = fused("mlp_bias")
    x = noise("mlp_bias", 50, 1)
    better = ng.repair(start, plan, members, [x])
    wanted = torch.zeros(14, dtype=torch.float64)
    for member, own in zip(members, plan.maps["layers.1.weight:0"], strict=True):
        wanted += own.merge.dense().double() @ outputs_of(member, lambda m: m.layers[1], x).std(1, unbiased=False)
    found = outputs_of(better, lambda m: m.layers[1], x).std(1, unbiased=False)
    torch.testing.assert_close(found, wanted)


def test_without_a_bias_the_scale_alone_is_repaired_and_the_report_says_so() -> None:
    start, plan, members = fused("mlp", "average")
    x = noise("mlp", 50, 1)
    better, report = repair_and_report(start, plan, members, [x])
    wanted = sum(outputs_of(m, lambda m: m.layers[1], x).std(1, unbiased=False) for m in members) / 2
    torch.testing.assert_close(outputs_of(better, lambda m: m.layers[1], x).std(1, unbiased=False), wanted)
    assert report.notes == ("2 layers have no bias and got the scale only",)
    assert torch.equal(better.layers[2].weight, start.layers[2].weight)


@pytest.mark.parametrize("name", ["mlp_bias", "vgg_batch_norm", "resnet", "attention"])
def test_members_that_are_one_network_stay_it(name: str) -> None:
    net = build(name).double()
    members = [net, copy.deepcopy(net)]
    x = noise(name, 20, 1)
    plan = ng.plan(members, x[:2], "average")
    better = ng.repair(ng.apply(plan, members), plan, members, [x])
    torch.testing.assert_close(output(better, x), output(net, x), rtol=1e-8, atol=1e-8)


def test_weights_in_front_of_a_batch_norm_stay() -> None:
    start, plan, members = fused("vgg_batch_norm", "average")
    better = ng.repair(start, plan, members, [noise("vgg_batch_norm", 20, 1)])
    changed = {n for n, value in better.state_dict().items() if not torch.equal(value, start.state_dict()[n])}
    assert changed
    assert all(name.endswith(("running_mean", "running_var")) for name in changed)


@pytest.mark.parametrize("method", ["average", "permutation", "optimal_transport"])
@pytest.mark.parametrize("name", ["mlp_batch_norm", "vgg_batch_norm", "resnet", "conv1d", "conv3d"])
def test_without_data_members_that_are_one_network_stay_it(name: str, method: str) -> None:
    net = build(name).double()
    members = [net, copy.deepcopy(net)]
    x = noise(name, 5, 1)
    plan = ng.plan(members, x[:2], method)
    better = ng.repair(ng.apply(plan, members), plan, members)
    torch.testing.assert_close(output(better, x), output(net, x), rtol=1e-6, atol=1e-6)


def test_without_data_the_variance_follows_the_weights() -> None:
    members = [nn.Sequential(nn.Linear(50, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2)).double() for _ in "ab"]
    for member in members:
        member[1].running_var.copy_(member[0].weight.detach().square().sum(1))  # inputs are white
    x = torch.randn(20_000, 50, dtype=torch.float64)
    plan = ng.plan([m.eval() for m in members], x[:2], "average")
    start = ng.apply(plan, members)
    better = ng.repair(start, plan, members)
    actual = better[0](x).detach().var(0)
    torch.testing.assert_close(better[1].running_var, actual, rtol=0.05, atol=0.0)
    assert not torch.allclose(start[1].running_var, actual, rtol=0.3)


class Branches(nn.Module):
    """Two layers with a BatchNorm each, added up; `layers_first` is another order of the same sums."""

    def __init__(self, layers_first: bool) -> None:
        super().__init__()
        self.layers_first = layers_first
        self.c1, self.c2 = nn.Linear(50, 4, bias=False), nn.Linear(50, 4, bias=False)
        self.n1, self.n2 = nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.layers_first:
            a, b = self.c1(x), self.c2(x)
            return self.head((self.n1(a) + self.n2(b)).relu())
        return self.head((self.n1(self.c1(x)) + self.n2(self.c2(x))).relu())


@pytest.mark.parametrize("layers_first", [False, True])
def test_without_data_a_batch_norm_follows_the_layer_that_it_reads(layers_first: bool) -> None:
    members = [Branches(layers_first).double().eval() for _ in "ab"]
    with torch.no_grad():
        for member in members:
            member.c2.weight.mul_(5)
            for layer, norm in ((member.c1, member.n1), (member.c2, member.n2)):
                norm.running_var.copy_(layer.weight.square().sum(1))  # inputs are white
    x = torch.randn(20_000, 50, dtype=torch.float64)
    plan = ng.plan(members, x[:2], "average")
    better = ng.repair(ng.apply(plan, members), plan, members)
    for layer, norm in ((better.c1, better.n1), (better.c2, better.n2)):
        torch.testing.assert_close(norm.running_var, layer(x).detach().var(0), rtol=0.05, atol=0.0)


def test_without_data_a_batch_norm_behind_a_sum_keeps_its_statistics() -> None:
    # what it reads is no layer's output, and no layer's weights tell its variance
    class Sum(Branches):
        def forward(self, x: Tensor) -> Tensor:
            a = self.c1(x)
            return self.head(self.n1(a.relu() + self.c2(x)))

    members = [Sum(layers_first=True).double().eval() for _ in "ab"]
    plan = ng.plan(members, torch.randn(2, 50, dtype=torch.float64), "average", fixed=["n2.*"])
    start = ng.apply(plan, members)
    better = ng.repair(start, plan, members)
    torch.testing.assert_close(better.n1.running_var, start.n1.running_var, rtol=0, atol=0)


def test_without_data_and_batch_norm_nothing_changes() -> None:
    start, plan, members = fused("mlp")
    better, report = repair_and_report(start, plan, members)
    assert all(torch.equal(a, b) for a, b in zip(better.parameters(), start.parameters(), strict=True))
    assert "nothing was changed" in report.notes[0]


def test_nothing_of_the_callers_changes() -> None:
    start, plan, members = fused("resnet")
    start.train()
    networks = [start, *members]
    before = [copy.deepcopy(net.state_dict()) for net in networks]
    for batches in (None, [noise("resnet", 12, 1)]):
        better = ng.repair(start, plan, members, batches)
        assert all(m.training for m in better.modules())
    for net, kept in zip(networks, before, strict=True):
        assert all(torch.equal(kept[name], value) for name, value in net.state_dict().items())


def test_bad_input_is_refused() -> None:
    start, plan, members = fused("mlp")
    with pytest.raises(InputError, match=r"batches\[0\].*cannot take"):
        ng.repair(start, plan, members, [torch.randn(3, 11).double()])
    with pytest.raises(PlanError, match="made for 2 members, got 3"):
        ng.repair(start, plan, [*members, MLP(12, 16, 14, 10)], [noise("mlp", 3, 1)])
