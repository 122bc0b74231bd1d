"""Zipping: clusters against brute force, exactness for copies, partial zipping, bad input."""

import copy

import pytest
import torch
from tests.fusion import planned
from tests.networks import MLP, build, example
from torch import Tensor, nn

import neurograft as ng
from neurograft.errors import InputError, OptionError, PlanError
from neurograft.methods.zip import cluster_maps
from neurograft.selection.clustering import greedy_clusters


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def correlated(samples: int = 40, neurons: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    few = torch.randn(samples, 4, generator=generator, dtype=torch.float64)
    return few @ torch.randn(4, neurons, generator=generator, dtype=torch.float64).square()


def by_hand(activations: Tensor, count: int) -> list[set[int]]:
    """Every step compares all pairs of clusters anew."""
    clusters = [{i} for i in range(activations.shape[1])]
    while len(clusters) > count:
        sums = torch.stack([activations[:, sorted(c)].sum(1) for c in clusters])
        likeness = torch.corrcoef(sums).fill_diagonal_(-2)
        a, b = divmod(int(likeness.argmax()), len(clusters))
        clusters[a] |= clusters[b]
        del clusters[b]
    return clusters


@pytest.mark.parametrize("count", [1, 2, 4, 8, 9])
def test_clusters_are_those_found_by_comparing_every_pair_anew(count: int) -> None:
    found = greedy_clusters(correlated(), count)
    clusters = [set((found == c).nonzero().flatten().tolist()) for c in range(int(found.max()) + 1)]
    assert sorted(map(sorted, clusters)) == sorted(map(sorted, by_hand(correlated(), count)))


def test_neurons_that_never_move_join_their_like_only() -> None:
    x = correlated(neurons=3)
    still = torch.stack([torch.zeros(40), torch.full((40,), 2.0), torch.zeros(40)], 1).double()
    assert greedy_clusters(torch.cat([still, x], 1), 5).tolist() == [0, 1, 0, 2, 3, 4]


def test_still_neurons_that_joined_moving_ones_are_no_longer_still() -> None:
    moving = torch.randn(40, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.cat([torch.zeros(40, 1).double(), torch.ones(40, 1).double(), moving, -moving], 1)
    assert greedy_clusters(x, 3).tolist() in ([0, 0, 1, 2], [0, 1, 0, 2], [0, 1, 2, 0])
    assert len(set(greedy_clusters(x, 2).tolist())) == 2


def test_a_clustering_merges_to_means_over_all_members_together() -> None:
    maps = cluster_maps(torch.tensor([0, 1, 0, 1, 1]), (3, 2))
    merge = torch.cat([m.merge.dense() for m in maps], 1)
    torch.testing.assert_close(merge.sum(1), torch.ones(2, dtype=merge.dtype))
    assert torch.equal(torch.cat([m.unmerge.dense() for m in maps], 1), (merge > 0).float())


def permuted(net: nn.Module, x: Tensor) -> nn.Module:
    graph = ng.trace(net, x)
    generator = torch.Generator().manual_seed(3)
    return ng.permute(net, graph, {g.name: torch.randperm(g.size, generator=generator) for g in graph.outermost})


@pytest.mark.parametrize("network", ["mlp_bias", "mlp_batch_norm", "vgg_batch_norm", "resnet"])
@pytest.mark.parametrize("when", ["pre", "post"])
def test_zipping_a_network_with_its_permuted_copy_keeps_its_function(network: str, when: str) -> None:
    net = build(network).double()
    x = example(network).double()
    noise = torch.randn(64, *x.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fused = planned([net, permuted(net, x)], x, "zip", calibration=[noise], when=when)
    torch.testing.assert_close(fused(x), net(x), rtol=1e-9, atol=1e-9)


def mlps(*widths: int) -> list[nn.Module]:
    found = []
    for seed, width in enumerate(widths):
        torch.manual_seed(seed)
        found.append(MLP(12, width, 14, 10, bias=True).double().eval())
    return found


@pytest.mark.parametrize("samples", [40, 80])
@pytest.mark.parametrize("when", ["pre", "post"])
def test_what_is_zipped_is_what_is_alike_on_the_samples_where_it_is_looked_at(when: str, samples: int) -> None:
    members = mlps(16, 16)
    batches = list(torch.randn(2, 40, 12, generator=torch.Generator().manual_seed(7), dtype=torch.float64))
    plan = ng.plan(members, batches[0], "zip", calibration=batches, when=when, samples=samples)
    hidden = torch.cat([net.layers[0](torch.cat(batches)[:samples]) for net in members], 1)
    expected = by_hand(hidden.relu() if when == "post" else hidden, 16)
    read = torch.cat([own.unmerge.dense() for own in plan.maps["layers.0.weight:0"]], 1)
    assert sorted(row.nonzero().flatten().tolist() for row in read) == sorted(map(sorted, expected))


X = torch.randn(64, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_weights_are_the_means_of_the_clusters() -> None:
    members = mlps(6, 6)
    plan = ng.plan(members, X, "zip", calibration=[X])
    fused = ng.apply(plan, members)
    merge = [m.merge.dense().double() for m in plan.maps["layers.0.weight:0"]]
    expected = sum(a @ net.layers[0].weight for a, net in zip(merge, members, strict=True))
    torch.testing.assert_close(fused.layers[0].weight, expected)
    read = [m.unmerge.dense().double() for m in plan.maps["layers.1.weight:0"]]
    head = sum(0.5 * net.layers[2].weight @ b.T for b, net in zip(read, members, strict=True))
    torch.testing.assert_close(fused.layers[2].weight, head)


def test_members_of_different_widths_zip_into_any_width() -> None:
    members = mlps(16, 24, 8)
    fused = planned(members, X, "zip", calibration=[X], width={"layers.0*": 20})
    assert fused.layers[0].out_features == 20
    assert fused(X).shape == (64, 10)


def test_redundant_neurons_of_one_member_merge_within_it() -> None:
    first, second = mlps(16, 16)
    first.layers[0].weight[8:] = first.layers[0].weight[:8]
    first.layers[0].bias[8:] = first.layers[0].bias[:8]
    plan = ng.plan([first, second], X, "zip", calibration=[X], width={"layers.0*": 24})
    own = plan.maps["layers.0.weight:0"][0].unmerge
    assert own.target[:8].tolist() == own.target[8:].tolist()
    fused = planned([first, second], X, "zip", calibration=[X], width={"layers.0*": 24, "layers.1*": 28})
    torch.testing.assert_close(fused(X), (first(X) + second(X)) / 2)


def test_behind_the_stop_members_stay_side_by_side() -> None:
    members = mlps(16, 16)
    plan = ng.plan(members, X, "zip", calibration=[X], stop="layers.1*")
    assert plan.sizes == {"layers.0.weight:0": 16, "layers.1.weight:0": 28}
    fused = ng.apply(plan, members)
    hidden = fused.layers[0](X).relu()
    expected = torch.zeros(64, 10, dtype=torch.float64)
    for m, net in enumerate(members):
        own = plan.maps["layers.0.weight:0"][m].unmerge.dense().double()
        expected += net.layers[2](net.layers[1](hidden @ own).relu()) / 2
    torch.testing.assert_close(fused(X), expected)


def test_stopping_at_the_first_layer_gives_the_ensemble() -> None:
    members = mlps(16, 16, 16)
    fused = planned(members, X, "zip", calibration=[X], stop="layers.0*")
    torch.testing.assert_close(fused(X), sum(net(X) for net in members) / 3)


def test_partial_zipping_can_keep_every_members_head() -> None:
    members = mlps(16, 16)
    fused = planned(members, X, "zip", calibration=[X], stop="layers.0*", heads="keep")
    torch.testing.assert_close(fused(X), torch.cat([net(X) for net in members], 1))


def test_norms_over_neurons_cannot_hold_members_side_by_side() -> None:
    members = [build("mlp_layer_norm", seed) for seed in range(2)]
    x = example("mlp_layer_norm")
    with pytest.raises(PlanError, match="stay side by side, but native_layer_norm .* works over all its neurons"):
        ng.plan(members, x, "zip", calibration=[x], stop="layers.1*")
    plan = ng.plan(members, x, "zip", calibration=[x])
    assert any("native_layer_norm" in note for note in plan.warnings)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, OptionError, "zip needs calibration batches: pass calibration="),
        ({"calibration": []}, InputError, "hold no inputs"),
        ({"calibration": [X], "stop": "layer.1"}, OptionError, "stop names no free group: 'layer.1'"),
        ({"calibration": [X], "when": "after"}, OptionError, "when='after' is not known"),
        ({"calibration": [X], "samples": 0}, OptionError, "samples is a whole number of at least 1, got 0"),
        ({"calibration": [X], "width": 0}, OptionError, "cannot have 0 neurons"),
        ({"calibration": [X], "max_memory": 8191}, OptionError, "all members' 32 neurons of group layers.0.weight:0"),
    ],
)
def test_bad_options_are_refused(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ng.plan(mlps(16, 16), X, "zip", **options)


def test_members_are_left_as_they_are() -> None:
    members = [build("vgg_batch_norm", seed).train() for seed in range(2)]
    before = [copy.deepcopy(net.state_dict()) for net in members]
    x = example("vgg_batch_norm")
    ng.plan(members, x, "zip", calibration=[x])
    for net, state in zip(members, before, strict=True):
        assert net.training
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, state[name])
