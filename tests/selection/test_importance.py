"""Importances against their definitions, fairness between members, bad calibration."""

import copy

import pytest
import torch
from tests.networks import MLP, build, example
from torch import Tensor, nn
from torch.nn import functional as F

import neurograft as ng
from neurograft.axes.maps import Pairs
from neurograft.errors import InputError, OptionError, PlanError
from neurograft.members.members import Members
from neurograft.members.states import state_of
from neurograft.selection.importance import Magnitude, power_sums
from neurograft.selection.scoring import scorers

GROUP = "layers.0.weight:0"
X = torch.randn(64, 12, generator=torch.Generator().manual_seed(4))
LABELS = torch.randint(10, (64,), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("shape", [(7,), (5, 7), (4, 5, 3), (4, 5, 3, 2)])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("some", [False, True])
def test_sums_of_powers_are_sums_of_powers(shape: tuple[int, ...], power: int, some: bool) -> None:
    tensor = torch.randn(*shape, dtype=torch.float64)
    for dim in range(len(shape)):
        chosen = [torch.arange(n)[::2] if some and d != dim else None for d, n in enumerate(shape)]
        kept = tensor.abs() ** power
        for d, positions in enumerate(chosen):
            if positions is not None:
                kept = kept.index_select(d, positions)
        others = [d for d in range(len(shape)) if d != dim]
        expected = kept.sum(others) if others else kept
        torch.testing.assert_close(power_sums(tensor, dim, chosen, power), expected)


def mlps(count: int, **options: bool) -> list[nn.Module]:
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        found.append(MLP(12, 16, 10, bias=True).eval())
    return found


def scores(kind: str, net: nn.Module, calibration: list | None = None, scale: float = 1.0) -> Tensor:
    graph = ng.trace(net, X[:2])
    members = Members.single(net, X[:2], graph=graph, calibration=calibration)
    parts = scorers(kind, members, frozenset({GROUP}), torch.Generator())(0, scale).contributions(GROUP, {})
    return torch.stack(parts).sum(0) / len(parts)


def test_magnitude_and_l1_add_rows_and_columns() -> None:
    (net,) = mlps(1)
    maker, reader = net.layers[0].weight.detach(), net.layers[1].weight.detach()
    expected = (maker.square().sum(1) + (0.25 * reader).square().sum(0)) / 2
    torch.testing.assert_close(scores("magnitude", net, scale=0.25), expected)
    expected = (maker.abs().sum(1) + (0.25 * reader).abs().sum(0)) / 2
    torch.testing.assert_close(scores("l1", net, scale=0.25), expected)


def test_biases_do_not_count() -> None:
    (net,) = mlps(1)
    before = scores("magnitude", net)
    net.layers[0].bias.data.fill_(100)
    assert torch.equal(scores("magnitude", net), before)


def test_activation_is_the_mean_answer_times_the_norm_of_its_readers() -> None:
    (net,) = mlps(1)
    answers = net.layers[0](X).relu().detach()
    expected = answers.abs().mean(0) * net.layers[1].weight.detach().norm(dim=0)
    torch.testing.assert_close(scores("activation", net, [X]), expected)


def test_variance_is_the_variance_of_what_readers_get() -> None:
    (net,) = mlps(1)
    answers = net.layers[0](X).relu().detach()
    expected = answers.var(0, correction=0) * net.layers[1].weight.detach().square().sum(0)
    torch.testing.assert_close(scores("variance", net, [X]), expected)


def test_a_neuron_that_always_answers_the_same_has_no_variance() -> None:
    (net,) = mlps(1)
    with torch.no_grad():
        net.layers[0].weight[3] = 0
        net.layers[0].bias[3] = 50
    assert scores("variance", net, [X])[3] == 0
    assert scores("activation", net, [X])[3] == scores("activation", net, [X]).max()


def test_taylor_is_the_slope_of_the_loss_along_a_gate_on_the_neuron() -> None:
    (net,) = mlps(1)
    expected = torch.zeros(16)
    for part in (slice(0, 32), slice(32, 64)):
        gate = torch.ones(16, requires_grad=True)
        outputs = net.layers[1](net.layers[0](X[part]).relu() * gate)
        (slope,) = torch.autograd.grad(F.cross_entropy(outputs, LABELS[part]), gate)
        expected += slope.abs() / 2
    batches = [(X[:32], LABELS[:32]), (X[32:], LABELS[32:])]
    torch.testing.assert_close(scores("taylor", net, batches), expected, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in net.parameters())


def test_random_scores_follow_the_seed() -> None:
    members = mlps(2)
    kept = [kept_units(members, importance="random", seed=seed) for seed in (0, 0, 1)]
    assert kept[0] == kept[1]
    assert kept[0] != kept[2]


def kept_units(members: list[nn.Module], x: Tensor = X, **options: object) -> dict[str, list[list[int]]]:
    plan = ng.plan(members, x[:2], **options)
    found = {}
    for group, maps in plan.maps.items():
        assert all(isinstance(m.merge, Pairs) for m in maps)
        found[group] = [m.merge.source.tolist() for m in maps]
    return found


def rescaled(net: nn.Module, x: Tensor, factor: float) -> nn.Module:
    """The same function: what makes a group is scaled up, its readers down (ReLU between)."""
    graph = ng.trace(net, x)
    other = copy.deepcopy(net)
    tensors = other.state_dict()
    for i, group in enumerate(graph.outermost):
        c = factor if i % 2 == 0 else 1 / factor
        last_norms = {s.tensor for s in group.slots if graph.tensors[s.tensor].kind in ("scale", "shift")}
        for slot in group.slots:
            kind = graph.tensors[slot.tensor].kind
            if slot.role == "in":
                tensors[slot.tensor] /= c
            elif kind in ("scale", "shift") or (not last_norms and kind in ("weight", "bias")):
                tensors[slot.tensor] *= c
    torch.testing.assert_close(other(x), net(x), rtol=1e-4, atol=1e-5)
    return other


@pytest.mark.parametrize("network", ["mlp_bias", "vgg", "vgg_batch_norm", "lenet_bias"])
@pytest.mark.parametrize("order", ["backward", "joint"])
def test_balance_ignores_rescalings_that_keep_the_function(network: str, order: str) -> None:
    x = example(network)
    first, second = build(network, 0), build(network, 1)
    other = rescaled(second, x, 30.0)
    balanced = {"order": order, "balance": True}
    assert kept_units([first, second], x, **balanced) == kept_units([first, other], x, **balanced)
    assert kept_units([first, second], x, order=order) != kept_units([first, other], x, order=order)


@pytest.mark.parametrize(("importance", "balance"), [("activation", True), ("variance", True), ("taylor", False)])
def test_measured_importances_ignore_such_rescalings_too(importance: str, balance: bool) -> None:
    x = example("mlp_bias")
    first, second = build("mlp_bias", 0), build("mlp_bias", 1)
    other = rescaled(second, x, 30.0)
    options = {"importance": importance, "calibration": [(X, LABELS)], "balance": balance}
    assert kept_units([first, second], x, **options) == kept_units([first, other], x, **options)


@pytest.mark.parametrize("fair", [{"normalize": "layer"}, {"normalize": "member"}, {"balance": True}])
def test_a_member_gains_nothing_by_being_larger_everywhere(fair: dict) -> None:
    first, second = build("mlp_bias", 0), build("mlp_bias", 1)
    larger = copy.deepcopy(second)
    for parameter in larger.parameters():
        parameter.data *= 10
    assert kept_units([first, second], **fair) == kept_units([first, larger], **fair)
    assert kept_units([first, larger])[GROUP] == [[], list(range(16))], "raw magnitudes go to the larger member"


def test_normalizing_by_layer_evens_out_shares_that_normalizing_by_member_leaves() -> None:
    first, second = build("mlp_bias", 0), build("mlp_bias", 1)
    for layer, factor in zip(second.layers, (10.0, 0.1, 0.1), strict=True):
        layer.weight.data *= factor
    shares = {how: ng.plan([first, second], X[:2], normalize=how).shares for how in ("layer", "member")}
    for group in (GROUP, "layers.1.weight:0"):
        assert abs(shares["layer"][group][0] - 0.5) < 0.2
    assert shares["member"]["layers.1.weight:0"][0] > 0.9


@pytest.mark.parametrize("kind", ["activation", "variance", "taylor"])
def test_importances_that_look_at_data_ask_for_it(kind: str) -> None:
    with pytest.raises(OptionError, match=rf"transplant\(importance='{kind}'\) needs calibration batches"):
        ng.plan(mlps(2), X, importance=kind)


@pytest.mark.parametrize(
    ("kind", "batches", "error", "message"),
    [
        ("activation", [], InputError, "hold no inputs"),
        ("taylor", [], InputError, "calibration is empty: importance='taylor' needs"),
        ("taylor", [X], InputError, "needs labels, but calibration batch 0 has none"),
        ("taylor", [(X, X)], InputError, "batch 0 has no class numbers as labels"),
        ("variance", [X * float("nan")], PlanError, "importance of 16 of 16 neurons .* is NaN"),
    ],
)
def test_bad_calibration_is_refused(kind: str, batches: list, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ng.plan(mlps(2), X, importance=kind, calibration=batches)


def test_a_generator_of_batches_is_refused() -> None:
    with pytest.raises(InputError, match="one-shot"):
        ng.plan(mlps(2), X, importance="activation", calibration=(x for x in [X]))


def test_equal_importances_keep_the_first_neurons() -> None:
    net = MLP(12, 16, 10)
    for layer in net.layers:
        nn.init.ones_(layer.weight)
    assert kept_units([net, copy.deepcopy(net)], balance=True)[GROUP] == [list(range(16)), []]


def test_dead_members_do_not_make_balance_fail() -> None:
    net = MLP(12, 16, 10)
    dead = copy.deepcopy(net)
    for layer in dead.layers:
        nn.init.zeros_(layer.weight)
    assert kept_units([dead, net], balance=True)[GROUP] == [[], list(range(16))]


def test_measuring_leaves_the_members_as_they_are() -> None:
    members = [build("vgg_batch_norm", seed).train() for seed in range(2)]
    before = [copy.deepcopy(net.state_dict()) for net in members]
    x = example("vgg_batch_norm")
    random_state = torch.get_rng_state()
    for kind in ("activation", "variance", "taylor", "random"):
        ng.plan(members, x, importance=kind, calibration=[(x, torch.tensor([1, 2]))])
    assert torch.equal(torch.get_rng_state(), random_state)
    for net, state in zip(members, before, strict=True):
        assert net.training
        assert all(p.grad is None for p in net.parameters())
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, state[name])


def test_alive_units_alone_count() -> None:
    net = MLP(12, 16, 14, 10)
    graph = ng.trace(net, X[:2])
    magnitude = Magnitude(state_of(net), graph, frozenset(g.name for g in graph.outermost))
    alive = {"layers.1.weight:0": torch.tensor([0, 5, 7])}
    made, read = magnitude.contributions(GROUP, alive)
    torch.testing.assert_close(made, net.layers[0].weight.detach().square().sum(1))
    torch.testing.assert_close(read, net.layers[1].weight.detach()[[0, 5, 7]].square().sum(0))
