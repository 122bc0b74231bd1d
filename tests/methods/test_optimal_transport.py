import pytest
import torch
from tests.attention import FORMS, attention, sequences
from tests.fusion import planned
from tests.networks import MLP, NETWORKS, build, example
from tests.planting import largest_change, planted, split
from torch import Tensor, nn

import neurograft as ng
from neurograft.axes.maps import NeuronMap, Pairs
from neurograft.errors import InputError, MembersDiffer, OptionError, PlanError
from neurograft.members.members import Members
from neurograft.tracing.graph import NeuronGraph

X = torch.randn(6, 12, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def mlp(*sizes: int, seed: int = 0, bias: bool = True) -> MLP:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MLP(*sizes, bias=bias).double()


def dense(maps: tuple[NeuronMap, ...], m: int) -> tuple[Tensor, Tensor]:
    """A and Bᵀ of member m."""
    return tuple(x.dense() if isinstance(x, Pairs) else x for x in (maps[m].merge, maps[m].unmerge))


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().abs().max() / other.detach().abs().max())


@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in ("weight_norm", "unused")])
def test_a_planted_permutation_is_undone(name: str) -> None:
    model, inputs = build(name), example(name)
    graph = ng.trace(model, inputs, verify=False)
    fused = planned([model, planted(model, graph, 1)], inputs, method="optimal_transport", graph=graph)
    assert largest_change(fused, model) < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_orders_of_their_own_in_every_head_are_undone(form: str) -> None:
    net, x = attention(form, 4), sequences()
    graph = ng.trace(net, x)
    members = [net, planted(net, graph, 1, apart=True)]
    assert largest_change(planned(members, x, "optimal_transport", graph=graph), net) < 1e-6


def test_the_cost_is_the_published_one() -> None:
    """Euclidean distances of incoming weights, inputs aligned: written down once more, by hand, for two layers."""
    from scipy.optimize import linear_sum_assignment

    one, two = mlp(12, 9, 7, 4, seed=0, bias=False), mlp(12, 9, 7, 4, seed=1, bias=False)
    plan = ng.plan([one, two], X, method="optimal_transport")
    a, b = ([layer.weight.detach() for layer in net.layers] for net in (one, two))
    _, first = linear_sum_assignment(torch.cdist(a[0], b[0]).numpy())
    _, second = linear_sum_assignment(torch.cdist(a[1], b[1][:, torch.from_numpy(first)]).numpy())
    for group, order in (("layers.0.weight:0", first), ("layers.1.weight:0", second)):
        merge = plan.maps[group][1].merge
        assert isinstance(merge, Pairs)
        assert merge.source.tolist() == order.tolist()
        assert plan.maps[group][0].merge.source.tolist() == list(range(len(order)))
    expected = (a[2] + b[2][:, torch.from_numpy(second)]) / 2
    torch.testing.assert_close(ng.apply(plan, [one, two]).layers[2].weight.detach(), expected)


@pytest.mark.parametrize("options", [{}, {"marginals": "importance"}, {"solver": "sinkhorn", "reg": 1e-3}])
@pytest.mark.parametrize("wide_first", [False, True])
def test_a_duplicate_of_another_width_keeps_the_function(options: dict[str, object], wide_first: bool) -> None:
    net = mlp(12, 8, 6, 4)
    wide = split(net, [[2] * 8, [3] * 6])
    torch.testing.assert_close(wide(X), net(X))
    members = [wide, net] if wide_first else [net, wide]
    plan = ng.plan(members, X, method="optimal_transport", **options)
    fused = ng.apply(plan, members)
    assert plan.sizes == {g: members[0].layers[i].out_features for i, g in enumerate(plan.sizes)}
    assert difference(fused(X), net(X)) < 1e-6


def test_importance_marginals_are_exact_for_uneven_duplicates_too() -> None:
    net = mlp(12, 8, 6, 4)
    wide = split(net, [[1, 2, 3, 1, 1, 1, 4, 1], [2] * 6])
    for members in ([net, wide], [wide, net]):
        fused = planned(members, X, method="optimal_transport", marginals="importance")
        assert difference(fused(X), net(X)) < 1e-6


@pytest.mark.parametrize(("wide_first", "factor"), [(False, 0.25), (True, 4.0)])
def test_the_published_scaling_changes_the_signal_between_widths(wide_first: bool, factor: float) -> None:
    net = mlp(12, 8, 6, 4, bias=False)
    wide = split(net, [[2] * 8, [2] * 6])
    members = [wide, net] if wide_first else [net, wide]
    weights = (0.0, 1.0)  # only the member that is transported
    plan = ng.plan(members, X, method="optimal_transport", published=True, weights=weights)
    torch.testing.assert_close(ng.apply(plan, members)(X), factor * net(X))
    ours = ng.plan(members, X, method="optimal_transport", weights=weights)
    torch.testing.assert_close(ng.apply(ours, members)(X), net(X))


def test_published_and_ours_are_one_for_equal_widths() -> None:
    members = [mlp(12, 8, 6, 4, seed=s) for s in range(2)]
    for options in ({}, {"solver": "sinkhorn"}):
        ours, theirs = (planned(members, X, method="optimal_transport", published=p, **options) for p in (False, True))
        assert largest_change(ours, theirs) < 1e-12


@pytest.mark.parametrize("options", [{}, {"solver": "sinkhorn"}, {"marginals": "importance"}])
def test_rows_of_both_matrices_sum_to_one(options: dict[str, object]) -> None:
    members = [mlp(12, 8, 6, 4, seed=0), mlp(12, 11, 9, 4, seed=1), mlp(12, 5, 6, 4, seed=2)]
    plan = ng.plan(members, X, method="optimal_transport", **options)
    for maps in plan.maps.values():
        for m in range(3):
            merge, unmerge = dense(maps, m)
            torch.testing.assert_close(merge.double().sum(1), torch.ones(len(merge)).double(), rtol=0, atol=1e-6)
            columns = unmerge.double().sum(0)
            torch.testing.assert_close(columns, torch.ones(len(columns)).double(), rtol=0, atol=1e-6)


def test_a_rectangular_plan_is_that_of_pot() -> None:
    ot = pytest.importorskip("ot")
    one, two = mlp(12, 8, 4, seed=0, bias=False), mlp(12, 5, 4, seed=1, bias=False)
    plan = ng.plan([one, two], X, method="optimal_transport")
    cost = torch.cdist(two.layers[0].weight.detach(), one.layers[0].weight.detach())
    solved = torch.from_numpy(
        ot.emd(torch.full((5,), 0.2).double().numpy(), torch.full((8,), 0.125).double().numpy(), cost.numpy())
    )
    merge, unmerge = dense(plan.maps["layers.0.weight:0"], 1)
    torch.testing.assert_close(merge, 8 * solved.T)
    torch.testing.assert_close(unmerge, 5 * solved.T)


@pytest.mark.parametrize("width", [3, 8, 12])
def test_a_network_keeps_its_function_at_multiples_of_its_width(width: int) -> None:
    net = mlp(12, 4, 4, 4)
    graph = ng.trace(net, X)
    members = [net, planted(net, graph, 1), planted(net, graph, 2)]
    fused = planned(members, X, method="optimal_transport", width=width)
    assert [layer.out_features for layer in fused.layers] == [width, width, 4]
    if width % 4 == 0:
        assert difference(fused(X), net(X)) < 1e-6


def test_width_by_pattern_and_by_reference() -> None:
    members = [mlp(12, 8, 6, 4, seed=0), mlp(12, 5, 7, 4, seed=1)]
    first, second = "layers.0.weight:0", "layers.1.weight:0"
    assert ng.plan(members, X, method="optimal_transport").sizes == {first: 8, second: 6}
    assert ng.plan(members, X, method="optimal_transport", reference=1).sizes == {first: 5, second: 7}
    asked = ng.plan(members, X, method="optimal_transport", width={"layers.0.*": 10})
    assert asked.sizes == {first: 10, second: 6}


def test_a_pruned_network_is_fused_with_its_dense_original() -> None:
    """Data-free compression: the fused network has the pruned one's widths and is nearer to the original's answers."""
    torch.manual_seed(0)
    dense_net = mlp(12, 40, 4)
    x = torch.randn(500, 12, dtype=torch.double)
    graph = ng.trace(dense_net, X)
    kept = torch.arange(40)[:20]
    pruned = mlp(12, 20, 4)
    with torch.no_grad():
        for new, old in zip(pruned.layers, dense_net.layers, strict=True):
            rows = kept if new is pruned.layers[0] else slice(None)
            columns = slice(None) if new is pruned.layers[0] else kept
            new.weight.copy_(old.weight[rows][:, columns])
            new.bias.copy_(old.bias[rows])
    assert graph["layers.0.weight:0"].size == 40
    fused = planned([pruned, dense_net], X, method="optimal_transport")
    assert fused.layers[0].out_features == 20
    assert (fused(x) - dense_net(x)).square().mean() < (pruned(x) - dense_net(x)).square().mean()


def test_the_order_of_the_members_does_not_matter() -> None:
    members = [mlp(12, 8, 6, 4, seed=s) for s in range(4)]
    weights = [1, 2, 3, 4]
    for options in ({}, {"barycenter": True}):
        one = planned(members, X, method="optimal_transport", weights=weights, **options)
        order = [2, 0, 3, 1]
        other = planned(
            [members[i] for i in order], X, method="optimal_transport", weights=[weights[i] for i in order], **options
        )
        torch.testing.assert_close(one(X), other(X))


def test_two_members_in_either_order_give_one_function() -> None:
    members = [mlp(12, 8, 6, 4, seed=s) for s in range(2)]
    one, other = (planned(m, X, method="optimal_transport") for m in (members, members[::-1]))
    torch.testing.assert_close(one(X), other(X))


def test_a_permuted_member_changes_nothing() -> None:
    members = [build("resnet", s).double() for s in range(3)]
    x = example("resnet").double()
    graph = ng.trace(members[0], x)
    one = planned(members, x, method="optimal_transport", graph=graph)
    moved = [members[0], planted(members[1], graph, 5), members[2]]
    other = planned(moved, x, method="optimal_transport", graph=graph)
    torch.testing.assert_close(one(x), other(x))


def test_a_barycenter_stops_and_is_no_further_from_its_members() -> None:
    members = [mlp(12, 30, 4, seed=s) for s in range(5)]
    star = ng.plan(members, X, method="optimal_transport", reference=0)
    centre = ng.plan(members, X, method="optimal_transport", reference=0, barycenter=True)
    assert centre.details["rounds"] > 1

    def spread(plan: ng.FusionPlan) -> float:
        fused = ng.apply(plan, members)
        rows = torch.cat([fused.layers[0].weight, fused.layers[0].bias[:, None]], 1).detach()
        total = 0.0
        for m, member in enumerate(members):
            own = torch.cat([member.layers[0].weight, member.layers[0].bias[:, None]], 1).detach()
            total += float((own[plan.maps["layers.0.weight:0"][m].merge.source] - rows).square().sum())
        return total

    assert spread(centre) < spread(star)


def total_cost(seed: int, **options: object) -> float:
    """What the neurons of two small ResNets cost together, every order of the groups compared on all producers."""
    members, x = [build("resnet", 2 * seed + m) for m in range(2)], example("resnet")
    plan = ng.plan(members, x, method="optimal_transport", sweeps=3, **options)
    return sum(sum(costs) for costs in plan.details["cost"].values())


def test_restarts_never_cost_more_and_find_cheaper_matches() -> None:
    few, many = ([total_cost(seed, restarts=r) for seed in range(4)] for r in (2, 8))
    assert all(later <= earlier + 1e-9 for earlier, later in zip(few, many, strict=True))
    assert any(later < earlier - 0.05 for earlier, later in zip(few, many, strict=True))


class LateWriter(nn.Module):
    """A residual stream whose first writer makes all neurons alike, so that only the branch tells them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Linear(12, 6), nn.Linear(6, 9)
        self.branch, self.head = nn.Linear(9, 6), nn.Linear(6, 3)
        with torch.no_grad():
            self.stem.weight.copy_(self.stem.weight[:1].expand(6, -1))
            for bias in (self.stem.bias, self.branch.bias):
                bias.fill_(0.1)
            self.inner.bias.copy_(torch.linspace(-3, 3, 9))  # neurons that are told apart without their inputs

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.branch(self.inner(x).relu()))


def test_a_second_sweep_counts_the_producers_that_were_not_aligned_in_the_first() -> None:
    net = LateWriter().double()
    graph = ng.trace(net, X)
    orders = {"stem.weight:0": torch.tensor([3, 0, 5, 1, 2, 4]), "inner.weight:0": torch.randperm(9)}
    members = [net, ng.permute(net, graph, orders)]
    once, twice = (planned(members, X, method="optimal_transport", graph=graph, sweeps=n) for n in (1, 2))
    assert difference(once(X), net(X)) > 0.05
    assert difference(twice(X), net(X)) < 1e-6


@pytest.mark.parametrize("when", ["pre", "post"])
@pytest.mark.parametrize("distance", ["euclidean", "squared", "cosine"])
def test_activations_find_a_planted_permutation(when: str, distance: str) -> None:
    model = build("vgg_batch_norm")
    batches = [torch.randn(8, 3, 8, 8) for _ in range(3)]
    graph = ng.trace(model, batches[0], verify=False)
    fused = planned(
        [model, planted(model, graph, 1)],
        batches[0],
        method="optimal_transport",
        graph=graph,
        metric="activations",
        when=when,
        distance=distance,
        calibration=[(x, torch.zeros(8)) for x in batches],
    )
    assert largest_change(fused, model) < 1e-6


def test_activations_of_members_of_different_widths() -> None:
    net = mlp(12, 8, 6, 4)
    wide = split(net, [[2] * 8, [2] * 6])
    for members in ([net, wide], [wide, net]):
        fused = planned(
            members, X, method="optimal_transport", metric="activations", calibration=[torch.randn(64, 12).double()]
        )
        assert difference(fused(X), net(X)) < 1e-6


def group_with(bilinear: tuple[str, ...] = (), reduced_by: tuple[str, ...] = ()) -> tuple[Members, MLP]:
    from dataclasses import replace

    nets = [mlp(12, 8, 4, seed=s) for s in range(2)]
    graph = ng.trace(nets[0], X)
    groups = tuple(g if g.fixed else replace(g, bilinear=bilinear, reduced_by=reduced_by) for g in graph.groups)
    graph = replace(graph, groups=groups)
    return Members.traced(nets, [graph, graph]), nets[0]


@pytest.mark.parametrize("marks", [{"bilinear": ("bmm in attention",)}, {"reduced_by": ("native_layer_norm in norm",)}])
def test_soft_plans_become_permutations_where_an_op_allows_nothing_else(marks: dict[str, tuple[str, ...]]) -> None:
    members, _ = group_with(**marks)
    filling = ng.OptimalTransport(solver="sinkhorn").fill(members, torch.Generator())
    assert isinstance(filling.maps["layers.0.weight:0"][1].merge, Pairs)
    assert "allows permutations only" in filling.warnings[0]
    assert not ng.OptimalTransport().fill(members, torch.Generator()).warnings


def test_another_width_of_a_contracted_group_is_refused() -> None:
    members, _ = group_with(bilinear=("bmm in attention",))
    with pytest.raises(PlanError, match="bmm in attention contracts it, which allows permutations only"):
        ng.OptimalTransport(width=6).fill(members, torch.Generator())
    members, _ = group_with(reduced_by=("native_layer_norm in norm",))
    assert (
        "changes from 8 to 6 neurons under native_layer_norm"
        in ng.OptimalTransport(width=6).fill(members, torch.Generator()).warnings[0]
    )


def test_layer_norm_networks_of_different_widths() -> None:
    torch.manual_seed(0)
    narrow, wide = MLP(12, 6, 4, norm=nn.LayerNorm).double(), MLP(12, 12, 4, norm=nn.LayerNorm).double()
    with torch.no_grad():
        wide.layers[0].weight.copy_(narrow.layers[0].weight.repeat_interleave(2, 0))
        wide.layers[1].weight.copy_(narrow.layers[1].weight.repeat_interleave(2, 1) / 2)
    torch.testing.assert_close(wide(X), narrow(X))
    plan = ng.plan([narrow, wide], X, method="optimal_transport")
    assert "reduces over them" in plan.warnings[0]
    torch.testing.assert_close(ng.apply(plan, [narrow, wide])(X), narrow(X))


def test_a_tied_tensor_cannot_be_read_by_another_matrix_than_it_is_made_by() -> None:
    members = [build("tied_without_norm", s) for s in range(2)]
    x = example("tied_without_norm")
    soft = ng.plan(members, x, method="optimal_transport", solver="sinkhorn")
    assert any("made and read by one tensor, embed.weight" in warning for warning in soft.warnings)
    assert not ng.plan(members, x, method="optimal_transport").warnings


def fuse_two(**options: object) -> object:
    return ng.plan([mlp(12, 8, 4, seed=s) for s in range(2)], X, method="optimal_transport", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "activation"}, "metric='activation' is not known; did you mean 'activations'"),
        ({"distance": "l2"}, "distance='l2' is not known"),
        ({"marginals": "norm"}, "marginals='norm' is not known"),
        ({"solver": "emd"}, "solver='emd' is not known"),
        ({"when": "after"}, "when='after' is not known"),
        ({"reg": 0.0}, "reg is a share of the mean cost above 0, got 0.0"),
        ({"reg": float("nan")}, "reg is a share"),
        ({"sweeps": 0}, "sweeps is a whole number of at least 1, got 0"),
        ({"restarts": 1.5}, "restarts is a whole number"),
        ({"samples": True}, "samples is a whole number"),
        ({"width": 0}, "cannot have 0 neurons"),
        ({"width": 17}, "cannot have 17 neurons: at least 1, at most 16"),
        ({"width": {"nowhere": 3}}, "width names no free group: 'nowhere'"),
        ({"reference": 2}, "reference=2 is no member; there are 2, counted from 0"),
        ({"metric": "activations"}, "needs calibration batches"),
        ({"max_memory": 100}, "8 x 8 neurons of group layers.0.weight:0 takes about"),
        ({"regg": 1}, "has no option 'regg'; did you mean 'reg'"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        fuse_two(**options)


def test_empty_calibration_is_refused() -> None:
    with pytest.raises(InputError, match="calibration batches hold no inputs"):
        fuse_two(metric="activations", calibration=[])
    with pytest.raises(InputError, match="MLP cannot take calibration batch 0"):
        fuse_two(metric="activations", calibration=[torch.randn(3, 5).double()])


def test_marginals_with_zeros_are_refused() -> None:
    nets = [mlp(12, 8, 4, seed=s) for s in range(2)]
    with torch.no_grad():
        nets[1].layers[0].weight[3] = 0
        nets[1].layers[0].bias[3] = 0
    with pytest.raises(PlanError, match=r"neurons \[3\] of group layers.0.weight:0 \(1 of 8 in the member\)"):
        ng.plan(nets, X, method="optimal_transport", marginals="importance")


def test_importances_that_are_all_equal_are_uniform() -> None:
    nets = [mlp(12, 8, 4, seed=s, bias=False) for s in range(2)]
    with torch.no_grad():
        for net in nets:
            net.layers[0].weight.copy_(nn.functional.normalize(net.layers[0].weight, dim=1))
            net.layers[1].weight.copy_(nn.functional.normalize(net.layers[1].weight, dim=0))
    one, other = (planned(nets, X, method="optimal_transport", marginals=m) for m in ("uniform", "importance"))
    assert largest_change(one, other) < 1e-6


def test_widths_of_fixed_axes_must_agree() -> None:
    with pytest.raises(MembersDiffer, match="along an axis that must not change"):
        ng.plan([mlp(12, 8, 4), mlp(12, 8, 5)], X, method="optimal_transport")


def test_nothing_of_the_callers_changes_and_a_seed_gives_the_same_plan() -> None:
    members = [build("resnet", s) for s in range(3)]
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in members]
    x = example("resnet")
    state = torch.get_rng_state()
    options = {"metric": "activations", "calibration": [x], "restarts": 2, "sweeps": 2}
    one, other = (planned(members, x, method="optimal_transport", seed=3, **options) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for member, kept in zip(members, before, strict=True):
        assert all(torch.equal(v, kept[k]) for k, v in member.state_dict().items())
    assert largest_change(one, other) == 0


def test_a_graph_without_free_groups_is_averaged() -> None:
    net = nn.Linear(12, 3).double()
    graph: NeuronGraph = ng.trace(net, X)
    assert not graph.free
    plan = ng.plan([net, nn.Linear(12, 3).double()], X, method="optimal_transport")
    assert plan.maps == {}
