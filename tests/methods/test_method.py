"""Methods are objects: options are checked when they are made, and what they need is read from their attributes."""

import copy
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from tests.networks import MLP, build, example
from torch import nn

import neurograft as ng
from neurograft.axes.maps import NeuronMap
from neurograft.errors import MembersDiffer, OptionError
from neurograft.members.members import Members
from neurograft.methods import METHODS, method_of
from neurograft.methods.method import Method
from neurograft.plans.plan import Filling

X = torch.randn(40, 12)


def mlps(*widths: int) -> list[nn.Module]:
    return [MLP(12, width, 8, bias=True) for width in widths]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("average", {"exclude": ("layers.0.*",)}),
        ("permutation", {"restarts": 2, "sweeps": 5}),
        ("optimal_transport", {"solver": "sinkhorn", "reg": 0.1}),
        ("transplant", {"balance": True, "order": "joint"}),
        ("zip", {"ratio": 0.5}),
    ],
)
def test_a_name_with_options_is_shorthand_for_the_object(method: str, options: dict[str, object]) -> None:
    models = mlps(16, 16)
    chosen = METHODS[method](**options)
    plans = [
        ng.plan(models, X[:1], method, calibration=[X], seed=3, **options),
        ng.plan(models, X[:1], chosen, calibration=[X], seed=3),
    ]
    fused = [ng.apply(plan, models).state_dict() for plan in plans]
    torch.testing.assert_close(*fused, rtol=0, atol=0)
    for plan in plans:
        assert (plan.method, plan.options) == (method, options)


def test_an_object_takes_only_options_that_there_are() -> None:
    with pytest.raises(OptionError, match="method 'transplant' has no option 'ordre'; did you mean 'order'"):
        ng.Transplant(ordre="joint")  # type: ignore[call-arg]
    with pytest.raises(OptionError, match="order='jiont' is not known; did you mean 'joint'"):
        ng.Transplant(order="jiont")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="balance is True or False, got 1"):
        ng.Transplant(balance=1)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="reg is a share of the mean cost above 0, got -1"):
        ng.OptimalTransport(reg=-1)
    with pytest.raises(OptionError, match="samples is a whole number of at least 1, got 0"):
        ng.Zip(samples=0)
    with pytest.raises(OptionError, match=r"exclude is a pattern or a list of patterns, got \[3\]"):
        ng.Average(exclude=[3])  # type: ignore[list-item]
    with pytest.raises(OptionError, match="balance: options of a method object are given to Transplant"):
        ng.plan(mlps(16, 16), X[:1], ng.Transplant(), balance=True)


def test_methods_are_values() -> None:
    method = ng.Transplant(balance=True)
    assert method == ng.Transplant(balance=True) != ng.Transplant()
    for other in (copy.deepcopy(method), pickle.loads(pickle.dumps(method)), replace(method)):
        assert other == method
    with pytest.raises(FrozenInstanceError):
        method.balance = False  # type: ignore[misc]
    assert str(replace(method, order="joint")) == "transplant(balance=True, order='joint')"
    assert str(ng.Permutation()) == "permutation"


OBJECTS = [
    *(kind() for kind in METHODS.values()),
    ng.Permutation(metric="activations"),
    ng.OptimalTransport(metric="activations"),
    *(ng.Transplant(importance=kind) for kind in ("activation", "variance", "taylor", "l1", "random")),
]


@pytest.mark.parametrize("method", OBJECTS, ids=str)
def test_needs_data_is_true(method: Method) -> None:
    models = mlps(16, 16)
    if method.needs_data:
        with pytest.raises(OptionError, match="needs calibration batches: pass calibration="):
            ng.plan(models, X[:1], method)
    else:
        assert ng.plan(models, X[:1], method).method == method.name


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_equal_widths_and_moves_are_true(method: type[Method]) -> None:
    models = mlps(16, 20)
    if method.equal_widths:
        with pytest.raises(MembersDiffer, match=rf"16 / 20 neurons .*; {method.name} needs equal widths, .* do not"):
            ng.plan(models, X[:1], method(), calibration=[X])
    else:
        assert ng.plan(models, X[:1], method(), calibration=[X]).maps
    assert bool(ng.plan(mlps(16, 16), X[:1], method(), calibration=[X]).maps) == method.moves


class Reversed(Method):
    """Every member but the first back to front."""

    name = "reversed"

    def fill(self, members: Members, _generator: torch.Generator) -> Filling:
        maps = {}
        for group in members.graph.outermost:
            places = torch.arange(group.size)
            maps[group.name] = tuple(
                NeuronMap.permutation(places if m == 0 else places.flip(0)) for m in range(len(members))
            )
        return Filling(maps=maps, weights=members.weights_or())


def test_a_method_of_ones_own_needs_one_class_and_may_have_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    net = build("mlp")
    graph = ng.trace(net, example("mlp"))
    turned = ng.permute(net, graph, {g.name: torch.arange(g.size).flip(0) for g in graph.outermost})
    fused = ng.apply(ng.plan([net, turned], example("mlp"), Reversed()), [net, turned])
    torch.testing.assert_close(fused.state_dict(), net.state_dict())
    monkeypatch.setitem(METHODS, "reversed", Reversed)
    assert isinstance(method_of("reversed", {}), Reversed)
    with pytest.raises(OptionError, match="method 'reversed' has no option 'order'; it has none"):
        ng.plan([net, turned], example("mlp"), "reversed", order="joint")
