"""Refitting in closed form: identities, every kind of layer, what must not change, and what is refused."""

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.fusion import refit_and_report
from tests.networks import MLP, NETWORKS, build, example
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import neurograft as ng
from neurograft.errors import InputError, MembersDiffer, OptionError, PlanError
from neurograft.inputs import call, first_tensor

METHODS = ("average", "permutation", "optimal_transport", "transplant")
FIXED = {"unused": ["idle.*", "spare"]}


def noise(name: str, count: int, seed: int, dtype: torch.dtype = torch.float64) -> Any:
    generator = torch.Generator().manual_seed(seed)

    def like(x: Tensor) -> Tensor:
        if x.is_floating_point():
            return torch.randn(count, *x.shape[1:], generator=generator).to(dtype)
        return torch.randint(0, 11, (count, *x.shape[1:]), generator=generator)

    return pytree.tree_map(like, example(name))


def fused(name: str, method: str = "transplant", count: int = 2) -> tuple[nn.Module, ng.FusionPlan, list[nn.Module]]:
    members = [build(name, seed).double() for seed in range(count)]
    plan = ng.plan(members, noise(name, 2, 0), method, fixed=FIXED.get(name, ()))
    return ng.apply(plan, members), plan, members


def output(model: nn.Module, inputs: Any) -> Tensor:
    return first_tensor(call(model, inputs)).detach()


def distance(model: nn.Module, members: list[nn.Module], inputs: Any) -> float:
    wanted = sum(output(m, inputs) for m in members) / len(members)
    return float((output(model, inputs) - wanted).norm() / (wanted - wanted.mean(0)).norm())


def linear(*sizes: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes))).double()


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_network_is_refitted_exactly_to_the_ensemble(method: str) -> None:
    members = [linear(6, 9, 8, 3) for _ in range(2)]
    x = torch.randn(200, 6, dtype=torch.float64)
    plan = ng.plan(members, x[:2], method)
    better = ng.refit(ng.apply(plan, members), plan, members, [x[:120], x[120:]], ridge=1e-12)
    new = torch.randn(50, 6, dtype=torch.float64)
    torch.testing.assert_close(better(new), (members[0](new) + members[1](new)) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["mlp_bias", "vgg_batch_norm", "resnet", "conv1d", "attention", "autoencoder", "mixer"]
)
@pytest.mark.parametrize("method", ["average", "permutation"])
def test_members_that_are_one_network_stay_it(name: str, method: str) -> None:
    net = build(name).double()
    members = [net, copy.deepcopy(net)]
    plan = ng.plan(members, noise(name, 2, 0), method)
    better = ng.refit(ng.apply(plan, members), plan, members, [noise(name, 20, 1), noise(name, 13, 2)])
    new = noise(name, 9, 3)
    torch.testing.assert_close(output(better, new), output(net, new), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_comes_closer_to_the_members_on_the_samples(name: str) -> None:
    start, plan, members = fused(name)
    samples = [noise(name, 40, seed) for seed in range(1, 6)]
    better, report = refit_and_report(start, plan, members, samples)
    for layer in report.layers:
        assert layer.note or layer.after <= layer.before
    if name != "tied_without_norm":  # its head is its embedding, and the layer before it alone cannot make up for that
        assert distance(better, members, samples[0]) < distance(start, members, samples[0])


@pytest.mark.parametrize("name", ["mlp_bias", "lenet", "resnet", "densenet", "grouped", "unet", "attention", "mixer"])
@pytest.mark.parametrize("method", ["average", "transplant"])
def test_one_pass_and_many_passes_give_the_same(name: str, method: str) -> None:
    start, plan, members = fused(name, method)
    samples = [noise(name, 20, seed) for seed in (1, 2, 3)]
    once, first = refit_and_report(start, plan, members, samples, ridge=0.01)
    often, second = refit_and_report(start, plan, members, samples, ridge=0.01, max_memory=1000)
    assert first.passes < second.passes
    new = noise(name, 9, 7)
    torch.testing.assert_close(output(once, new), output(often, new), rtol=1e-6, atol=1e-6)
    assert float((output(once, new) - output(start, new)).norm() / output(start, new).norm()) > 1e-3


def test_a_single_layer_is_the_ridge_solution() -> None:
    members = [linear(5, 3) for _ in range(2)]
    x = torch.randn(30, 5, dtype=torch.float64)
    plan = ng.plan(members, x[:2], "average", weights=[3, 1])
    start = ng.apply(plan, members)
    start[0].weight.data += 1
    better = ng.refit(start, plan, members, [x], ridge=0.2)
    wide = torch.cat([x, torch.ones(30, 1, dtype=torch.float64)], 1)
    wanted = (0.75 * members[0](x) + 0.25 * members[1](x)).detach()
    before = torch.cat([start[0].weight.T, start[0].bias[None]]).detach()
    gram = wide.T @ wide
    penalty = 0.2 * gram.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    expected = torch.linalg.solve(gram + penalty, wide.T @ wanted + penalty @ before)
    torch.testing.assert_close(torch.cat([better[0].weight.T, better[0].bias[None]]).detach(), expected)


def test_a_transplanted_layer_is_brought_to_its_owners_pre_activations() -> None:
    start, plan, members = fused("mlp")
    x = noise("mlp", 300, 1)
    better = ng.refit(start, plan, members, [x], ridge=0.0)
    maps = plan.maps["layers.1.weight:0"]
    hidden = [m.layers[1](m.layers[0](x).relu()).detach() for m in members]
    wanted = sum(h @ own.merge.dense().double().T for h, own in zip(hidden, maps, strict=True))
    read = better.layers[0](x).relu().detach()
    expected = torch.linalg.lstsq(read, wanted).solution.T
    torch.testing.assert_close(better.layers[1].weight.detach(), expected, rtol=1e-6, atol=1e-6)


class Stream(nn.Module):
    """A residual stream that a linear branch writes into."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.branch, self.head = (
            nn.Linear(4, 6),
            nn.Linear(6, 8),
            nn.Linear(8, 6),
            nn.Linear(6, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.branch(self.inner(x).relu()))


def test_a_branch_is_brought_to_what_is_missing_in_the_stream() -> None:
    members = [Stream().double() for _ in range(2)]
    x = torch.randn(100, 4, dtype=torch.float64)
    plan = ng.plan(members, x[:2], "average")
    start = ng.apply(plan, members)
    start.stem.bias.data += 0.5
    better = ng.refit(start, plan, members, [x], ridge=0.0, layers=["branch.*"])
    stream = sum((m.stem(x) + m.branch(m.inner(m.stem(x)).relu())).detach() for m in members) / 2
    read = torch.cat([start.inner(start.stem(x)).relu(), torch.ones(100, 1, dtype=torch.float64)], 1).detach()
    missing = stream - start.stem(x).detach()
    expected = read @ torch.linalg.pinv(read) @ missing
    torch.testing.assert_close(better.branch(read[:, :-1]).detach(), expected)
    assert torch.equal(better.inner.weight, start.inner.weight)


def test_streams_keep_errors_from_adding_up() -> None:
    start, plan, members = fused("resnet", "average")
    samples = [noise("resnet", 60, 1)]
    _, report = refit_and_report(start, plan, members, samples)
    towards = {layer.tensor: layer.target for layer in report.layers}
    assert towards["blocks.0.conv2.weight"] == "stream"
    assert towards["blocks.2.conv2.weight"] == "stream"
    assert towards["blocks.2.shortcut.0.weight"] == "layer"
    assert towards["blocks.0.conv1.weight"] == "layer"


class Cubic(nn.Module):
    """An activation function that adds an activation to a function of itself, as GPT-2's GELU does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(torch.tanh(x + 0.04 * x.pow(3)))


def test_an_activation_function_is_no_stream() -> None:
    members = [Cubic().double() for _ in range(2)]
    x = torch.randn(100, 4, dtype=torch.float64)
    plan = ng.plan(members, x[:2], "average")
    _, report = refit_and_report(ng.apply(plan, members), plan, members, [x])
    assert [layer.target for layer in report.layers] == ["layer", "layer"]


def test_norms_in_a_corrected_stream_hold_what_they_read() -> None:
    start, plan, members = fused("resnet")
    x = noise("resnet", 60, 1)
    better = ng.refit(start, plan, members, [x], ridge=0.01)
    read: list[Tensor] = []
    better.blocks[0].norm2.register_forward_pre_hook(lambda _, args: read.append(args[0].detach()))
    better(x)
    rows = read[0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(better.blocks[0].norm2.running_mean, rows.mean(1))
    torch.testing.assert_close(better.blocks[0].norm2.running_var, rows.var(1))


def test_nothing_of_the_callers_changes() -> None:
    start, plan, members = fused("resnet")
    start.train()
    start.blocks[0].eval()
    networks = [start, *members]
    before = [copy.deepcopy(net.state_dict()) for net in networks]
    modes = [[m.training for m in net.modules()] for net in networks]
    state = torch.get_rng_state()
    better = ng.refit(start, plan, members, [noise("resnet", 12, 1)])
    assert torch.equal(torch.get_rng_state(), state)
    assert [[m.training for m in net.modules()] for net in networks] == modes
    assert [m.training for m in better.modules()] == modes[0]
    for net, kept in zip(networks, before, strict=True):
        assert all(torch.equal(kept[name], value) for name, value in net.state_dict().items())
    assert {n: p.shape for n, p in better.state_dict().items()} == {n: p.shape for n, p in start.state_dict().items()}
    assert all(p.requires_grad for p in better.parameters())
    assert better is not start


def test_the_same_seed_gives_the_same_network() -> None:
    start, plan, members = fused("lenet")
    samples = [noise("lenet", 30, 1)]
    first, second = (ng.refit(start, plan, members, samples, positions=3, seed=5) for _ in range(2))
    other = ng.refit(start, plan, members, samples, positions=3, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_patterns_choose_layers() -> None:
    start, plan, members = fused("mlp_bias")
    samples = [noise("mlp_bias", 60, 1)]
    better = ng.refit(start, plan, members, samples, layers=["layers.1*", "layers.2*"], exclude=["layers.2.weight"])
    changed = {n for n, p in better.named_parameters() if not torch.equal(p, start.get_parameter(n))}
    assert changed == {"layers.1.weight", "layers.1.bias"}


def test_tied_and_repeated_weights_are_left_out_with_a_word() -> None:
    notes = {}
    for name in ("tied", "twice"):
        start, plan, members = fused(name)
        _, report = refit_and_report(start, plan, members, [noise(name, 20, 1)])
        notes |= {layer.tensor: layer.note for layer in report.layers if layer.note}
    assert notes == {"embed.weight": "tied to an embedding", "again.weight": "used 2 times in one run"}


def test_weights_that_no_product_reads_are_left_out_with_a_word() -> None:
    start, plan, members = fused("weight_norm")
    _, report = refit_and_report(start, plan, members, [noise("weight_norm", 20, 1)])
    notes = {layer.tensor: layer.note for layer in report.layers}
    assert notes["first.parametrizations.weight.original1"] == "no plain product reads it"
    assert notes["head.weight"] == ""


def test_a_layer_with_too_many_inputs_is_left_out_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurograft.recovery.refit.LEAST", 50_000)
    start, plan, members = fused("mlp")
    better, report = refit_and_report(start, plan, members, [noise("mlp", 20, 1)], max_memory=50_000)
    assert [bool(layer.note) for layer in report.layers] == [False, True, False]
    assert "raise max_memory" in report.layers[1].note
    assert torch.equal(better.layers[1].weight, start.layers[1].weight)


def test_weights_do_not_grow_without_bound() -> None:
    start, plan, members = fused("mlp")
    _, report = refit_and_report(start, plan, members, [noise("mlp", 14, 1)])
    largest = max(float(m.get_parameter(layer.tensor).detach().norm()) for layer in report.layers for m in members)
    for layer in report.layers:
        planned = float(start.get_parameter(layer.tensor).detach().norm())
        assert layer.norm * planned <= 2.0001 * max(planned, largest)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_handful_of_samples_is_enough_not_to_fail(count: int) -> None:
    start, plan, members = fused("vgg_batch_norm")
    better = ng.refit(start, plan, members, [noise("vgg_batch_norm", count, 1)])
    assert bool(torch.isfinite(output(better, noise("vgg_batch_norm", 5, 2))).all())


def test_dead_neurons_are_fine() -> None:
    members = [MLP(12, 16, 14, 10).double() for _ in range(2)]
    for member in members:
        member.layers[0].weight.data[:6] = 0
    x = torch.randn(50, 12, dtype=torch.float64)
    plan = ng.plan(members, x[:2], "average")
    start = ng.apply(plan, members)
    better = ng.refit(start, plan, members, [x])
    assert all(bool(torch.isfinite(p).all()) for p in better.parameters())
    assert distance(better, members, x) < distance(start, members, x)


def test_members_of_other_widths() -> None:
    members = [MLP(12, 16, 14, 10).double(), MLP(12, 24, 10, 10).double()]
    x = torch.randn(300, 12, dtype=torch.float64)
    plan = ng.plan(members, x[:2], "transplant")
    start = ng.apply(plan, members)
    assert distance(ng.refit(start, plan, members, [x]), members, x) < distance(start, members, x)


def test_half_precision_comes_back_in_half_precision() -> None:
    members = [build("mlp_bias", seed).bfloat16() for seed in range(2)]
    x = noise("mlp_bias", 200, 1, torch.bfloat16)
    plan = ng.plan(members, x[:2])
    start = ng.apply(plan, members)
    better = ng.refit(start, plan, members, [x])
    assert {p.dtype for p in better.parameters()} == {torch.bfloat16}
    assert distance(better, members, x) < distance(start, members, x)


def test_the_report_prints_as_a_table() -> None:
    start, plan, members = fused("mlp")
    _, report = refit_and_report(start, plan, members, [noise("mlp", 60, 1)])
    assert report.samples == 60
    assert report.recovery == "refit"
    assert "layers.1.weight" in str(report)
    assert report.layers[0].ridge == math.inf


BAD_BATCHES = {
    "empty": ([], "are empty"),
    "one_shot": (iter([torch.randn(4, 12)]), "one-shot"),
    "a_tensor": (torch.randn(4, 12), "re-iterable"),
    "shape": ([torch.randn(4, 12).double(), torch.randn(4, 11).double()], r"batches\[\d\].*cannot take"),
    "labels": ([torch.zeros(4, dtype=torch.long)], r"batches\[0\].*cannot take"),
    "nan": ([torch.full((4, 12), torch.nan).double()], r"batches\[0\] holds NaN"),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_bad_batches_are_refused(name: str) -> None:
    start, plan, members = fused("mlp")
    batches, message = BAD_BATCHES[name]
    before = copy.deepcopy(start.state_dict())
    with pytest.raises(InputError, match=message):
        ng.refit(start, plan, members, batches)
    assert all(torch.equal(before[n], value) for n, value in start.state_dict().items())


def test_nan_activations_name_the_layer() -> None:
    start, plan, members = fused("mlp")
    members[1].layers[1].weight.data[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"member 1.*layers\.1\.weight gives NaN"):
        ng.refit(start, plan, members, [noise("mlp", 5, 1)])


def test_a_plan_of_others_is_refused() -> None:
    start, plan, members = fused("mlp")
    x = [noise("mlp", 5, 1)]
    with pytest.raises(PlanError, match="made for 2 members, got 3"):
        ng.refit(start, plan, [*members, members[0]], x)
    others = [MLP(12, 20, 14, 10).double() for _ in range(2)]
    with pytest.raises(MembersDiffer, match=r"layers\.0\.weight has shape \(20, 12\)"):
        ng.refit(start, plan, others, x)
    with pytest.raises(MembersDiffer, match="of fused has shape"):
        ng.refit(others[0], plan, members, x)
    with pytest.raises(PlanError, match="fused is a Sequential"):
        ng.refit(linear(12, 10), plan, members, x)


BAD_OPTIONS = {
    "ridge": ({"ridge": -1.0}, "ridge is -1.0"),
    "positions": ({"positions": 0}, "positions is 0"),
    "max_memory": ({"max_memory": 0}, "max_memory is 0"),
    "layers": ({"layers": ["nothing"]}, "no parameter is called 'nothing'"),
    "exclude": ({"exclude": "nothing"}, "no parameter is called 'nothing'"),
    "no patterns": ({"exclude": 3}, "exclude is a pattern or a list of patterns, got 3"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_are_refused(name: str) -> None:
    start, plan, members = fused("mlp")
    options, message = BAD_OPTIONS[name]
    with pytest.raises(OptionError, match=message):
        ng.refit(start, plan, members, [noise("mlp", 5, 1)], **options)
