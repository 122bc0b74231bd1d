import importlib
from dataclasses import replace
from itertools import pairwise, permutations, product
from typing import Any

import pytest
import torch
from tests.attention import FORMS, attention, sequences
from tests.fusion import planned
from tests.networks import MLP, NETWORKS, build, example
from tests.planting import largest_change, planted
from torch import nn
from torch.utils import _pytree as pytree

import neurograft as ng
from neurograft.alignment.matching import order_of
from neurograft.alignment.weight_similarity import Network, WeightSimilarity, aligned
from neurograft.errors import InputError, MembersDiffer, OptionError
from neurograft.inputs import call
from neurograft.members.states import state_of

permutation_module = importlib.import_module("neurograft.methods.permutation")  # its name leads to the function
X = torch.randn(6, 12, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def mlp(*sizes: int, seed: int = 0, bias: bool = True) -> MLP:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MLP(*sizes, bias=bias).double()


def agreement(one: nn.Module, other: nn.Module) -> float:
    """Σ over tensors of <one, other>."""
    left, right = state_of(one), state_of(other)
    return sum(float((left[name] * right[name]).sum()) for name in left)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in ("weight_norm", "unused")])
def test_a_planted_permutation_is_undone(name: str) -> None:
    model, inputs = build(name), example(name)
    graph = ng.trace(model, inputs, verify=False)
    fused = planned([model, planted(model, graph, 1)], inputs, method="permutation", graph=graph, restarts=1)
    assert largest_change(fused, model) < 1e-6


@pytest.mark.parametrize("name", ["mlp", "vgg", "resnet"])
def test_thirty_of_thirty_planted_permutations_are_found_with_one_start(name: str) -> None:
    inputs = example(name)
    for seed in range(30):
        model = build(name, seed)
        graph = ng.trace(model, inputs, verify=False)
        plan = ng.plan([model, planted(model, graph, seed)], inputs, method="permutation", graph=graph, restarts=1)
        assert largest_change(ng.apply(plan, [model, planted(model, graph, seed)]), model) < 1e-6, seed


def test_a_tiny_gpt2_is_aligned_back() -> None:
    """Heads as units, the channels within them, the residual stream, the tied embedding."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=23,
        bos_token_id=0,
        eos_token_id=0,
        n_positions=16,
        n_embd=24,
        n_layer=2,
        n_head=4,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    inputs = {"input_ids": torch.randint(23, (2, 9)), "use_cache": False}
    graph = ng.trace(model, inputs, verify=False)
    sizes = sorted(group.size for group in graph.outermost)
    assert sizes == [4, 4, 24, 96, 96]  # heads, stream, hidden
    for method in ("permutation", "optimal_transport"):
        for seed in range(3):
            fused = planned([model, planted(model, graph, seed)], inputs, method=method, graph=graph)
            assert largest_change(fused, model) < 1e-5
            assert fused.lm_head.weight is fused.transformer.wte.weight


def test_many_planted_members_meet_in_the_references_basis() -> None:
    model, x = build("resnet"), example("resnet")
    graph = ng.trace(model, x, verify=False)
    members = [planted(model, graph, seed) for seed in range(5)]
    fused = planned(members, x, method="permutation", graph=graph, reference=2, restarts=1)
    assert largest_change(fused, members[2]) < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_the_objective_against_brute_force(seed: int) -> None:
    """Two groups of four neurons: all 576 alignments are tried."""
    members = [mlp(12, 4, 4, 3, seed=2 * seed + i, bias=False) for i in range(2)]
    plan = ng.plan(members, X, method="permutation", restarts=60)
    a, b = ([layer.weight.detach() for layer in net.layers] for net in members)
    best = max(
        float((a[0] * b[0][p]).sum() + (a[1] * b[1][q][:, p]).sum() + (a[2] * b[2][:, q]).sum())
        for p, q in product(map(list, permutations(range(4))), repeat=2)
    )
    assert plan.details["objective"][1][-1] == pytest.approx(best)


def test_the_objective_only_rises_and_is_what_the_report_says() -> None:
    members = [build("resnet", s).double() for s in range(2)]
    x = example("resnet").double()
    plan = ng.plan(members, x, method="permutation")
    objective = plan.details["objective"][1]
    assert len(objective) > 1
    assert all(later > earlier for earlier, later in pairwise(objective))
    networks = [Network(state_of(m), plan.graphs[0]) for m in members]
    maps = {name: found[1] for name, found in plan.maps.items()}
    assert WeightSimilarity(*networks).objective(maps) == pytest.approx(objective[-1])
    weights = [n for n, info in plan.graphs[0].tensors.items() if info.kind not in ("mean", "variance", "statistic")]
    written = sum(float((networks[0].state[n] * aligned(networks[1], n, maps)[0]).sum()) for n in weights)
    fixed = [n for n in weights if not any(r for roles in plan.graphs[0].tensors[n].roles for r in roles if r in maps)]
    outside = sum(float((networks[0].state[n] * networks[1].state[n]).sum()) for n in fixed)
    assert written - outside == pytest.approx(objective[-1])


def best_objective(seed: int, **options: int) -> float:
    members = [mlp(12, 9, 8, 4, seed=2 * seed + m) for m in range(2)]
    return ng.plan(members, X, method="permutation", **options).details["objective"][1][-1]


def test_more_restarts_are_never_worse_and_find_better_optima() -> None:
    few, many = ([best_objective(seed, restarts=r) for seed in range(4)] for r in (1, 16))
    assert all(later >= earlier for earlier, later in zip(few, many, strict=True))
    assert any(later > earlier * 1.01 for earlier, later in zip(few, many, strict=True))


def test_more_sweeps_are_never_worse_and_find_better_optima() -> None:
    once, often = ([best_objective(seed, restarts=1, sweeps=n) for seed in range(4)] for n in (1, 100))
    assert all(later >= earlier for earlier, later in zip(once, often, strict=True))
    assert any(later > earlier * 1.01 for earlier, later in zip(once, often, strict=True))


@pytest.mark.parametrize(
    ("width", "metric", "starts"), [(9, "weights", 10), (513, "weights", 3), (9, "activations", 3)]
)
def test_narrow_networks_get_more_starts(width: int, metric: str, starts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [mlp(12, width, 4, seed=s) for s in range(2)]
    given = []
    descent = permutation_module._Descent

    def noting(graph: ng.NeuronGraph, sweeps: int, restarts: int, generator: torch.Generator) -> object:
        given.append(restarts)
        return descent(graph, sweeps, 1, generator)

    monkeypatch.setattr(permutation_module, "_Descent", noting)
    ng.plan(members, X, method="permutation", metric=metric, calibration=[X])
    assert given == [starts]


def test_it_agrees_better_than_the_members_as_they_are() -> None:
    members = [mlp(12, 20, 20, 4, seed=s) for s in range(2)]
    objective = ng.plan(members, X, method="permutation").details["objective"][1]
    assert objective[-1] > max(agreement(*members), objective[0])


def test_a_layer_read_and_made_by_one_weight_never_gets_worse() -> None:
    """The products of a square weight's group depend on the group's own map; a step must still not lose."""
    for seed in range(5):
        members = [build("twice", seed), build("twice", seed + 10)]
        plan = ng.plan(members, example("twice"), method="permutation", restarts=4)
        objective = plan.details["objective"][1]
        assert all(later > earlier for earlier, later in pairwise(objective))


def test_members_of_one_permutation_class_and_strangers_do_not_depend_on_order() -> None:
    """Three clearly separated optima: every order of the members gives the same function."""
    base, x = build("vgg"), example("vgg")
    graph = ng.trace(base, x, verify=False)
    members = []
    for seed in range(4):
        near = planted(base, graph, seed)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            for parameter in near.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        members.append(near)
    outputs = [
        planned([members[i] for i in order], x, method="permutation", graph=graph)(x)
        for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0])
    ]
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=1e-4, atol=1e-5)


def test_synchronising_raises_the_agreement_with_the_others() -> None:
    members = [mlp(12, 16, 14, 4, seed=s) for s in range(5)]
    plan = ng.plan(members, X, method="permutation")
    rounds = plan.details["agreement"]
    assert len(rounds) > 1
    assert rounds[-1] >= rounds[0]
    reference = plan.details["reference"]
    for maps in plan.maps.values():
        assert order_of(maps[reference]).tolist() == list(range(maps[reference].fused))


def test_inner_channels_get_an_order_in_every_head() -> None:
    model, x = build("attention"), example("attention")
    graph = ng.trace(model, x, verify=False)
    inner = [group for group in graph.free if group.inside is not None]
    assert [group.size for group in inner] == [4]
    orders = torch.tensor([[2, 0, 3, 1], [0, 1, 2, 3], [3, 2, 1, 0]])
    moved = ng.permute(model, graph, {inner[0].name: orders})
    plan = ng.plan([model, moved], x, method="permutation", graph=graph)
    assert order_of(plan.maps[inner[0].name][1]).tolist() == orders.argsort(1).tolist()


@pytest.mark.parametrize("metric", ["weights", "activations"])
@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("form", FORMS)
def test_thirty_of_thirty_networks_with_an_order_of_its_own_in_every_head(form: str, heads: int, metric: str) -> None:
    x = sequences()
    options = {} if metric == "weights" else {"metric": metric, "calibration": [torch.randn(64, *x.shape[1:])]}
    for seed in range(30):
        net = attention(form, heads, seed)
        graph = ng.trace(net, x, verify=False)
        members = [net, planted(net, graph, seed, apart=True)]
        fused = planned(members, x, "permutation", graph=graph, restarts=1, **options)
        assert largest_change(fused, net) < 1e-6, seed
        torch.testing.assert_close(fused(x), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_one_order_for_all_heads_does_not_undo_them(form: str) -> None:
    """Which is why every head has its own."""
    net, x = attention(form, 4), sequences()
    graph = ng.trace(net, x)
    shared = replace(graph, groups=tuple(replace(group, per_unit=False) for group in graph))
    members = [net, planted(net, graph, 1, apart=True)]
    assert largest_change(planned(members, x, "permutation", graph=shared), net) > 0.1


def test_three_members_meet_in_one_basis_inside_heads_too() -> None:
    net, x = attention("grouped_query", 4), sequences()
    graph = ng.trace(net, x)
    members = [planted(net, graph, seed, apart=True) for seed in range(3)]
    fused = planned(members, x, "permutation", graph=graph, reference=1, restarts=1)
    assert largest_change(fused, members[1]) < 1e-6


def test_strangers_agree_better_with_an_order_of_its_own_in_every_head() -> None:
    x = sequences()
    members = [attention("written", 4, seed) for seed in range(2)]
    graph = ng.trace(members[0], x)
    shared = replace(graph, groups=tuple(replace(group, per_unit=False) for group in graph))
    apart, alike = (
        ng.plan(members, x, "permutation", graph=g, reference=0).details["objective"][1] for g in (graph, shared)
    )
    assert all(later > earlier for earlier, later in pairwise(apart))
    assert apart[-1] > alike[-1]


@pytest.mark.parametrize("name", ["mlp_bias", "vgg_batch_norm", "resnet", "densenet"])
def test_activations_find_a_planted_permutation(name: str) -> None:
    model = build(name)
    x = torch.randn(32, *example(name).shape[1:])
    graph = ng.trace(model, x, verify=False)
    members = [model, planted(model, graph, 1), planted(model, graph, 2)]
    plan = ng.plan(members, x, method="permutation", graph=graph, metric="activations", calibration=[x])
    assert largest_change(ng.apply(plan, members), members[plan.details["reference"]]) < 1e-6


def noise_like(inputs: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return pytree.tree_map_only(
        torch.Tensor, lambda x: torch.randn(8, *x.shape[1:], generator=generator).double(), inputs
    )


@pytest.mark.parametrize("method", ["permutation", "optimal_transport"])
@pytest.mark.parametrize("name", ["lenet_bias", "mlp_batch_norm", "two_inputs"])
def test_neurons_that_calibration_cannot_tell_apart_are_told_apart_by_their_weights(name: str, method: str) -> None:
    """Behind a ReLU some neurons are silent on few samples, or answer the same one; on other inputs they differ."""
    few, other = (noise_like(example(name), seed) for seed in (1, 2))
    graph = ng.trace(build(name).double(), few, verify=False)
    for seed in range(5):
        model = build(name, seed).double()
        members = [model, planted(model, graph, seed)]
        fused = planned(members, few, method, graph=graph, metric="activations", when="post", calibration=[few])
        torch.testing.assert_close(call(fused, other), call(model, other), rtol=1e-10, atol=1e-12)


def test_dead_neurons_are_found_in_their_places() -> None:
    model = mlp(12, 16, 14, 4)
    with torch.no_grad():
        model.layers[0].bias[:5] = -100
        model.layers[1].bias[3:] = -100
    graph = ng.trace(model, X)
    fused = planned([model, planted(model, graph, 1)], X, "permutation", graph=graph, metric="activations", when="post",
                    calibration=[X])  # fmt: skip
    torch.testing.assert_close(fused(100 * X), model(100 * X), rtol=1e-12, atol=1e-12)
    assert largest_change(fused, model) < 1e-12


def test_activations_are_matched_by_their_correlation() -> None:
    """Scaling a ReLU neuron up and its reader down changes weights, not which neurons go together."""
    model = mlp(12, 8, 4)
    graph = ng.trace(model, X)
    other = planted(model, graph, 3)
    with torch.no_grad():
        for parameter in (other.layers[0].weight, other.layers[0].bias):
            parameter.mul_(torch.logspace(-2, 2, 8).double().reshape(-1, *[1] * (parameter.dim() - 1)))
    x = torch.randn(64, 12).double()
    plans = [
        ng.plan(m, x, method="permutation", graph=graph, metric="activations", calibration=[x])
        for m in ([model, planted(model, graph, 3)], [model, other])
    ]
    orders = [order_of(plan.maps["layers.0.weight:0"][1]).tolist() for plan in plans]
    assert orders[0] == orders[1]


def test_a_permuted_member_changes_nothing() -> None:
    members = [build("resnet", s).double() for s in range(2)]
    x = example("resnet").double()
    graph = ng.trace(members[0], x)
    one = planned(members, x, method="permutation", graph=graph, restarts=1)
    other = planned([members[0], planted(members[1], graph, 5)], x, method="permutation", graph=graph, restarts=1)
    torch.testing.assert_close(one(x), other(x))


def test_the_plan_is_exact_bytes_for_a_seed_and_touches_nothing() -> None:
    members = [build("resnet", s) for s in range(3)]
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in members]
    x, state = example("resnet"), torch.get_rng_state()
    one, other = (planned(members, x, method="permutation", seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for member, kept in zip(members, before, strict=True):
        assert all(torch.equal(v, kept[k]) for k, v in member.state_dict().items())
    assert largest_change(one, other) == 0


def test_different_widths_are_refused() -> None:
    with pytest.raises(
        MembersDiffer, match=r"group layers.0.weight:0 has 8 / 9 neurons in the members; permutation needs"
    ):
        ng.plan([mlp(12, 8, 4), mlp(12, 9, 4)], X, method="permutation")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "weight"}, "metric='weight' is not known; did you mean 'weights'"),
        ({"when": "mid"}, "when='mid' is not known"),
        ({"sweeps": 0}, "sweeps is a whole number of at least 1, got 0"),
        ({"restarts": -1}, "restarts is a whole number of at least 1, got -1"),
        ({"reference": -1}, "reference=-1 is no member; there are 2, counted from 0"),
        ({"metric": "activations"}, "needs calibration batches"),
        ({"width": 3}, "has no option 'width'"),
        ({"max_memory": 100}, "8 x 8 neurons of group layers.0.weight:0 takes about"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ng.plan([mlp(12, 8, 4, seed=s) for s in range(2)], X, method="permutation", **options)


def test_empty_calibration_is_refused() -> None:
    members = [mlp(12, 8, 4, seed=s) for s in range(2)]
    with pytest.raises(InputError, match="calibration batches hold no inputs"):
        ng.plan(members, X, method="permutation", metric="activations", calibration=[])
