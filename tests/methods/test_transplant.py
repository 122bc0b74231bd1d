"""Transplanting: exact sizes, who gives how many neurons, duplicates, bad input."""

import copy

import pytest
import torch
from tests.attention import attention, sequences
from tests.fusion import planned
from tests.networks import MLP, build, example
from tests.planting import planted
from torch import Tensor, nn

import neurograft as ng
from neurograft.axes.maps import Pairs, PerUnit
from neurograft.errors import BadWeights, OptionError


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def mlps(count: int, *sizes: int, bias: bool = False) -> list[nn.Module]:
    """Networks with distinct seeds; neurons of distinct norms, so that no two scores are nearly equal."""
    members = []
    for m in range(count):
        torch.manual_seed(m)
        net = MLP(*sizes, bias=bias)
        for layer in net.layers:
            layer.weight.data *= torch.empty(layer.out_features, 1).uniform_(0.5, 2)
        members.append(net.eval())
    return members


def kept_by(plan: ng.FusionPlan, group: str) -> list[list[int]]:
    """Which of every member's units were kept."""
    found = []
    for m in plan.maps[group]:
        assert isinstance(m.merge, Pairs)
        found.append(m.merge.source.tolist())
    return found


X = torch.randn(3, 12, generator=torch.Generator().manual_seed(5))
FIRST, SECOND = "layers.0.weight:0", "layers.1.weight:0"


def explicit_choice(members: list[nn.Module], n: int) -> list[list[int]]:
    """The last hidden group by the words of the design: squared rows and columns, the head scaled by 1/k."""
    k = len(members)
    scores = []
    for net in members:
        *_, maker, reader = net.layers
        scores.append((maker.weight.square().sum(1) + (reader.weight / k).square().sum(0)) / 2)
    best = torch.cat(scores).topk(n).indices.sort().values.tolist()
    width = members[0].layers[-1].in_features
    return [[i - m * width for i in best if m * width <= i < (m + 1) * width] for m in range(k)]


@pytest.mark.parametrize("order", ["backward", "joint"])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_last_hidden_group_is_chosen_by_the_formula(k: int, order: str) -> None:
    members = mlps(k, 12, 16, 14, 10)
    plan = ng.plan(members, X, order=order)
    assert kept_by(plan, SECOND) == explicit_choice(members, 14)


def test_backward_scores_look_only_at_what_is_left() -> None:
    members = mlps(2, 12, 16, 14, 10)
    plan = ng.plan(members, X)
    later = kept_by(plan, SECOND)
    scores = [
        (net.layers[0].weight.square().sum(1) + net.layers[1].weight[later[m]].square().sum(0)) / 2
        for m, net in enumerate(members)
    ]
    best = torch.cat(scores).topk(16).indices.sort().values.tolist()
    assert kept_by(plan, FIRST) == [[i for i in best if i < 16], [i - 16 for i in best if i >= 16]]


@pytest.mark.parametrize("strategy", ["flat", "iterative", "hierarchical"])
@pytest.mark.parametrize("k", [2, 3, 5, 6, 7, 16])
def test_the_size_is_exact_for_every_number_of_members(k: int, strategy: str) -> None:
    members = mlps(k, 12, 16, 14, 10, bias=True)
    fused = planned(members, X, strategy=strategy)
    fused.load_state_dict(members[0].state_dict())
    torch.testing.assert_close(fused(X), members[0](X))


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("flat", [1 / 3] * 3),
        ("iterative", [1 / 4, 1 / 4, 1 / 2]),
        ("hierarchical", [1 / 3] * 3),
    ],
)
def test_default_weights_follow_the_strategy(strategy: str, expected: list[float]) -> None:
    plan = ng.plan(mlps(3, 12, 16, 14, 10), X, strategy=strategy)
    assert plan.weights == pytest.approx(expected)


def test_given_weights_are_carried_as_running_sums() -> None:
    members = mlps(3, 12, 16, 10)
    weights = [0.2, 0.3, 0.5]
    plan = ng.plan(members, X, weights=weights, strategy="iterative")

    # first 0 and 1 among themselves, the head scaled by 0.4 and 0.6; then what they kept with 2, scaled by the weights
    def scores(m: int, scale: float) -> Tensor:
        maker, reader = members[m].layers
        return (maker.weight.square().sum(1) + (scale * reader.weight).square().sum(0)) / 2

    pair = torch.cat([scores(0, 0.4), scores(1, 0.6)]).topk(16).indices.sort().values
    pool = torch.cat([torch.cat([scores(0, 0.2), scores(1, 0.3)])[pair], scores(2, 0.5)])
    origin = torch.cat([pair, torch.arange(32, 48)])[pool.topk(16).indices.sort().values].tolist()
    assert kept_by(plan, FIRST) == [[i % 16 for i in origin if i // 16 == m] for m in range(3)]
    assert plan.weights == pytest.approx(weights)


@pytest.mark.parametrize("network", ["mlp_bias", "vgg", "resnet", "attention"])
@pytest.mark.parametrize(("fraction", "member"), [(0, 0), (1, 1)])
def test_a_fraction_of_all_or_nothing_gives_the_member_back(network: str, fraction: float, member: int) -> None:
    members = [build(network, 0), build(network, 1)]
    fused = planned(members, example(network), fraction=fraction)
    for name, tensor in members[member].state_dict().items():
        assert torch.equal(fused.state_dict()[name], tensor), name


@pytest.mark.parametrize("fraction", [0, 0.25, 0.3, 0.5, 0.9, 1])
def test_a_fraction_takes_that_share_from_the_second_member(fraction: float) -> None:
    plan = ng.plan(mlps(2, 12, 16, 14, 10), X, fraction=fraction)
    for group, n in ((FIRST, 16), (SECOND, 14)):
        first, second = kept_by(plan, group)
        assert (len(first), len(second)) == (n - round(fraction * n), round(fraction * n))
    assert plan.weights == pytest.approx((1 - fraction, fraction))


def test_a_quota_says_how_many_neurons_every_member_gives() -> None:
    plan = ng.plan(mlps(3, 12, 16, 10), X, quota=[2, 1, 1])
    assert [len(units) for units in kept_by(plan, FIRST)] == [8, 4, 4]


def test_pruning_before_merging_takes_the_best_of_each() -> None:
    members = mlps(2, 12, 16, 10)
    found = kept_by(ng.plan(members, X, sequence="prune-merge"), FIRST)
    for net, units in zip(members, found, strict=True):
        scores = net.layers[0].weight.square().sum(1) + net.layers[1].weight.square().sum(0)
        assert units == scores.topk(8).indices.sort().values.tolist()


@pytest.mark.parametrize("ratio", [0, 0.25, 0.5, 0.75, 0.875, 0.9375, 0.95, 0.99])
@pytest.mark.parametrize("network", ["mlp_bias", "vgg_batch_norm", "resnet", "squeeze_excite", "depthwise", "unet"])
def test_any_share_of_the_combined_network_can_be_removed(network: str, ratio: float) -> None:
    members = [build(network, s) for s in range(4)]
    plan = ng.plan(members, example(network), ratio=ratio)
    fused = ng.apply(plan, members)
    for group, n in plan.sizes.items():
        total = 4 * plan.graphs[0][group].size
        assert n == max(1, total - round(ratio * total))
    for name, info in plan.graph.tensors.items():
        assert fused.state_dict()[name].shape == info.shape
    assert torch.isfinite(fused(example(network))).all()
    for module in fused.modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape


def test_removing_nothing_keeps_the_average_of_the_members() -> None:
    members = [m.double() for m in mlps(3, 12, 16, 14, 10, bias=True)]
    fused = planned(members, X.double(), ratio=0)
    torch.testing.assert_close(fused(X.double()), torch.stack([m(X.double()) for m in members]).mean(0))


@pytest.mark.parametrize("width", [1, 5, 16, 24, 40])
def test_members_of_different_widths_fuse_into_any_width(width: int) -> None:
    members = [*mlps(1, 12, 16, 14, 10), *mlps(1, 12, 24, 20, 10), *mlps(1, 12, 8, 6, 10)]
    fused = planned(members, X, width={"layers.0*": width})
    assert fused.layers[0].weight.shape == (width, 12)
    assert fused.layers[1].weight.shape == (14, width)
    assert fused(X).shape == (3, 10)


def test_different_widths_weigh_by_their_last_hidden_width() -> None:
    members = [*mlps(1, 12, 16, 14, 10), *mlps(1, 12, 24, 28, 10)]
    assert ng.plan(members, X).weights == pytest.approx((1 / 3, 2 / 3))


def test_equal_scores_go_to_the_earlier_member_and_neuron() -> None:
    net = MLP(12, 16, 10)
    for layer in net.layers:
        nn.init.constant_(layer.weight, 0.5)
    assert kept_by(ng.plan([net, copy.deepcopy(net)], X), FIRST) == [list(range(16)), []]


def test_units_dropped_on_a_lower_level_count_nothing_on_a_higher_one() -> None:
    # one group makes and reads the same layer here: its dropped units must vanish from both axes
    members = [build("twice", s) for s in range(3)]
    x = example("twice")
    plan = ng.plan(members, x, strategy="iterative")
    pair = planned(members[:2], x)
    stepwise = planned([pair, members[2]], x)
    for name, tensor in ng.apply(plan, members).state_dict().items():
        torch.testing.assert_close(tensor, stepwise.state_dict()[name])


@pytest.mark.parametrize(
    "network", ["mlp_bias", "mlp_batch_norm", "lenet_bias", "vgg_batch_norm", "resnet", "densenet"]
)
@pytest.mark.parametrize("order", ["backward", "joint"])
@pytest.mark.parametrize("permuted", [False, True])
def test_a_network_fused_with_its_own_copy_keeps_its_function(network: str, order: str, permuted: bool) -> None:
    net = build(network).double()
    x = example(network).double()
    other = scrambled(net, x) if permuted else copy.deepcopy(net)
    fused = planned([net, other], x, order=order, diversity=True)
    torch.testing.assert_close(fused(x), net(x), rtol=1e-10, atol=1e-10)
    plain = planned([net, other], x, order=order)
    assert (plain(x) - net(x)).abs().max() > 1e-3, "without diversity the function is lost, so the test shows something"


@pytest.mark.parametrize(
    "options",
    [
        {"fraction": 0.5},
        {"quota": [1, 3]},
        {"sequence": "prune-merge"},
        {"strategy": "iterative"},
        {"strategy": "hierarchical", "weights": [1, 2]},
        {"importance": "random", "balance": True},
    ],
)
def test_duplicates_are_passed_over_however_neurons_are_chosen(options: dict) -> None:
    net = build("resnet").double()
    x = example("resnet").double()
    fused = planned([net, scrambled(net, x)], x, diversity=True, **options)
    torch.testing.assert_close(fused(x), net(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("network", ["tied", "tied_without_norm", "attention", "mixer", "depthwise", "unet"])
@pytest.mark.parametrize("method", ["transplant", "zip"])
def test_so_does_any_other_architecture(network: str, method: str) -> None:
    net = build(network).double()
    x = example(network) if "tied" in network else example(network).double()
    batch = x if "tied" in network else torch.randn(64, *x.shape[1:], dtype=torch.float64)
    options = {"diversity": True} if method == "transplant" else {"calibration": [batch]}
    fused = planned([net, copy.deepcopy(net)], x, method, **options)
    torch.testing.assert_close(fused(x), net(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("network", ["grouped", "attention", "resnet_group_norm"])
def test_copies_whose_insides_are_permuted_too_are_found(network: str) -> None:
    """Channels inside heads and inside convolution groups: the plan reorders them, one order per member."""
    x = example(network).double()
    net = build(network).double()
    graph = ng.trace(net, x)
    assert any(group.inside for group in graph.free)
    members = [net, planted(net, graph, 0), planted(net, graph, 1)]
    fused = planned(members, x, graph=graph, diversity=True, weights=[1, 2, 3])
    torch.testing.assert_close(fused(x), net(x), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("network", ["grouped", "attention", "resnet_group_norm"])
def test_copies_with_an_order_of_its_own_in_every_unit_are_found(network: str) -> None:
    x = example(network).double()
    net = build(network).double()
    graph = ng.trace(net, x)
    members = [net, planted(net, graph, 0, apart=True), planted(net, graph, 1, apart=True)]
    fused = planned(members, x, graph=graph, diversity=True, weights=[1, 2, 3])
    torch.testing.assert_close(fused(x), net(x), rtol=1e-9, atol=1e-10)


def test_shares_of_what_lies_inside_units_are_those_of_the_units() -> None:
    """Three of the four heads come from member 0, so do three quarters of what lies inside."""
    x = sequences()
    members = [attention("torch", 4, seed) for seed in range(2)]
    plan = ng.plan(members, x, diversity=True, quota=[0.75, 0.25])
    heads, channels = "attention.in_proj_weight:0.1", "attention.in_proj_weight:0.2"
    assert isinstance(plan.maps[channels][1].merge, PerUnit)
    assert plan.shares[heads] == plan.shares[channels] == (0.75, 0.25)


class HeadNorm(nn.Module):
    """Attention whose queries pass one norm for the channels of all heads, which makes no head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.gain, self.project = nn.Linear(5, 36), nn.Parameter(torch.rand(4) + 0.5), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(2, 6, 3, 3, 4).permute(2, 0, 3, 1, 4)
        weights = ((q * self.gain) @ k.transpose(-1, -2) / 2).softmax(-1)
        return self.project((weights @ v).transpose(1, 2).reshape(2, 6, 12))


def test_what_the_insides_of_all_units_share_is_averaged_also_where_it_is_reordered() -> None:
    torch.manual_seed(0)
    net, x = HeadNorm().double(), torch.randn(2, 6, 5, dtype=torch.double)
    graph = ng.trace(net, x)
    assert graph.tensors["gain"].roles[0].keys() & {g.name for g in graph.free if g.inside}
    members = [net, planted(net, graph, 2)]
    plan = ng.plan(members, x, graph=graph, diversity=True, weights=[1, 3])
    assert plan.coefficients("gain") == (0.25, 0.75)
    torch.testing.assert_close(ng.apply(plan, members)(x), net(x), rtol=1e-9, atol=1e-10)


def test_other_members_keep_their_function_when_their_insides_are_reordered() -> None:
    members = [build("attention", seed).double() for seed in range(2)]
    x = example("attention").double()
    plain, diverse = (planned(members, x, diversity=flag) for flag in (False, True))
    torch.testing.assert_close(diverse(x), plain(x), rtol=1e-9, atol=1e-10)


def scrambled(net: nn.Module, x: Tensor, seed: int = 3) -> nn.Module:
    graph = ng.trace(net, x)
    generator = torch.Generator().manual_seed(seed)
    orders = {g.name: torch.randperm(g.size, generator=generator) for g in graph.outermost}
    return ng.permute(net, graph, orders)


def test_duplicates_within_one_member_are_passed_over_too() -> None:
    (net,) = (m.double() for m in mlps(1, 12, 16, 10, bias=True))
    with torch.no_grad():  # neuron 8+i is neuron i again, each read half
        net.layers[0].weight[8:] = net.layers[0].weight[:8]
        net.layers[0].bias[8:] = net.layers[0].bias[:8]
    small = ng.prune(net, X.double(), width=8, diversity=True)
    torch.testing.assert_close(small(X.double()), net(X.double()), rtol=1e-12, atol=1e-12)


def test_similar_members_need_a_tolerance() -> None:
    (net,) = (m.double() for m in mlps(1, 12, 16, 14, 10, bias=True))
    x = X.double()
    near = scrambled(net, x)
    generator = torch.Generator().manual_seed(0)
    for parameter in near.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += 0.01 * parameter.std() * noise
    found = planned([net, near], x, diversity=True, tolerance=0.1)
    lost = planned([net, near], x, diversity=True)
    scale = net(x).abs().max()
    assert (found(x) - net(x)).abs().max() < 0.03 * scale
    assert (lost(x) - net(x)).abs().max() > 0.1 * scale


def test_diversity_changes_nothing_for_members_without_duplicates() -> None:
    members = mlps(3, 12, 16, 14, 10, bias=True)
    plain, diverse = (planned(members, X, diversity=flag) for flag in (False, True))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, diverse.state_dict()[name])


def test_diversity_fills_up_with_duplicates_where_nothing_else_is_left() -> None:
    net = mlps(1, 12, 16, 10)[0].double()
    fused = planned([net, copy.deepcopy(net)], X.double(), width=20, diversity=True)
    assert fused.layers[0].out_features == 20
    torch.testing.assert_close(fused(X.double()), net(X.double()), rtol=1e-12, atol=1e-12)


def test_a_cut_member_is_reported() -> None:
    small, large = mlps(2, 12, 16, 14, 10)
    with torch.no_grad():  # the same functions, at scales that put the layers of different members first
        large.layers[0].weight *= 100
        large.layers[1].weight /= 100
    plan = ng.plan([small, large], X, order="joint")
    assert any("nearly cut" in note for note in plan.warnings)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ratio": 1.0}, OptionError, "ratio is the share of neurons removed"),
        ({"ratio": -0.1}, OptionError, "ratio is the share of neurons removed"),
        ({"ratio": 0.5, "width": 4}, OptionError, "give one of them"),
        ({"width": 0}, OptionError, "cannot have 0 neurons"),
        ({"width": 33}, OptionError, "cannot have 33 neurons: at least 1, at most 32"),
        ({"width": 4.0}, OptionError, "whole number of neurons, got 4.0"),
        ({"width": {"layer.0*": 4}}, OptionError, "width names no free group: 'layer.0\\*'"),
        ({"fraction": 1.1}, OptionError, "fraction is the second member's share"),
        ({"fraction": 0.5, "quota": [1, 1]}, OptionError, "fraction and quota both set"),
        ({"quota": [1, 1], "strategy": "iterative"}, OptionError, "quota chooses from each member alone"),
        ({"quota": [1, 1, 1]}, BadWeights, "quota has 3 entries for 2 members"),
        ({"quota": [1, 0], "width": 20}, OptionError, "takes 20 neurons of .* from member 0, which has 16"),
        ({"order": "backwards"}, OptionError, "did you mean 'backward'"),
        ({"strategy": "flatt"}, OptionError, "did you mean 'flat'"),
        ({"importance": "magnitud"}, OptionError, "did you mean 'magnitude'"),
        ({"normalize": "layers"}, OptionError, "did you mean 'layer'"),
        ({"sequence": "merge-tune-prune"}, OptionError, "sequence='merge-tune-prune' is not known"),
        ({"tolerance": 1.5, "diversity": True}, OptionError, "tolerance is a relative distance"),
        ({"balanced": True}, OptionError, "did you mean 'balance'"),
    ],
)
def test_bad_options_are_refused(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ng.plan(mlps(2, 12, 16, 16, 10), X, **options)


def test_a_fraction_is_for_two_members() -> None:
    with pytest.raises(OptionError, match="fraction is for two members, got 3"):
        ng.plan(mlps(3, 12, 16, 10), X, fraction=0.5)


def test_weights_that_overflow_are_refused() -> None:
    members = mlps(2, 12, 16, 10)
    members[1].layers[0].weight.data[3, 3] = float("nan")
    with pytest.raises(BadWeights, match="layers.0.weight of models\\[1\\] holds 1 NaN"):
        ng.plan(members, X)
