"""What is written is what runs: networks whose copies compute with other tensors are refused by name."""

import copy
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import neurograft as ng
from neurograft.errors import InputError, NeurograftError, PlanError, TraceError
from tests.staying import everything_stays  # noqa: F401 - the fixture

pytestmark = [
    pytest.mark.usefixtures("everything_stays"),
    pytest.mark.filterwarnings("ignore:.*(quantiz|Quantiz|jit|TorchScript)"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:this is member"),
]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


class Holding(nn.Module):
    """A network with another one inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x).relu())


def x() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(3))


def quantised(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)


def in_a_closure(model: nn.Module) -> nn.Module:
    before = model.forward
    model.forward = lambda y: before(y)  # type: ignore[method-assign]
    return model


def in_a_partial(model: nn.Module) -> nn.Module:
    before = model.forward

    def scaled(scale: float, y: Tensor) -> Tensor:
        return scale * before(y)

    model.forward = partial(scaled, 2.0)  # type: ignore[method-assign]
    return model


def inside_in_a_closure(model: nn.Module) -> nn.Module:
    in_a_closure(model[0])  # type: ignore[index]
    return model


def hooked(model: nn.Module) -> nn.Module:
    model[2].register_forward_hook(lambda module, given, out: out + model[2].bias)  # type: ignore[index]
    return model


NOT_COPIED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "scripted": (lambda: torch.jit.script(mlp()), "is scripted or traced by torch.jit"),
    "traced": (lambda: torch.jit.trace(mlp(), x()), "is scripted or traced by torch.jit"),
    "inside_scripted": (lambda: Holding(torch.jit.script(mlp())), "^inner is scripted or traced"),
    "quantised": (lambda: quantised(mlp()), r"^0\._packed_params holds its weights packed"),
    "inside_quantised": (lambda: Holding(quantised(mlp())), r"^inner\.0\._packed_params holds its weights packed"),
    "closure": (lambda: in_a_closure(mlp()), "^forward of Sequential is a function that holds a part of the network"),
    "partial": (lambda: in_a_partial(mlp()), "^forward of Sequential is a function"),
    "inside_closure": (lambda: inside_in_a_closure(mlp()), r"^0\.forward of Sequential is a function"),
    "hook": (lambda: hooked(mlp()), r"^2\._forward_hooks of Sequential is a function"),
}
CALLS: dict[str, Callable[[list[nn.Module]], object]] = {
    "plan": lambda nets: ng.plan(nets, x()),
    "fuse": lambda nets: ng.fuse(nets, x(), "average"),
    "combine": lambda nets: ng.combine(nets, x()),
    "prune": lambda nets: ng.prune(nets[0], x()),
    "members": lambda nets: ng.Members(nets, x()),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", NOT_COPIED)
def test_networks_whose_copies_run_the_network_itself_are_refused(kind: str, call: str) -> None:
    make, message = NOT_COPIED[kind]
    with pytest.raises((PlanError, InputError), match=message):
        CALLS[call]([make(), make()])


@pytest.mark.parametrize("kind", ["closure", "partial", "inside_closure", "hook", "quantised"])
def test_they_are_refused_where_a_plan_or_a_fused_network_meets_them(kind: str) -> None:
    whole, data = [mlp(), mlp()], [(x(), torch.zeros(5).long())]
    plan = ng.plan(whole, x(), "average")
    make, _ = NOT_COPIED[kind]
    bad, calls = make(), list[Callable[[], object]]()
    if type(bad) is type(whole[0]):
        calls += [
            lambda: ng.apply(plan, [bad, whole[1]]),
            lambda: ng.apply(plan, [whole[0], bad]),
            lambda: ng.refit(bad, plan, whole, data),
            lambda: ng.repair(bad, plan, whole, data),
        ]
    if kind != "quantised":
        calls += [
            lambda: ng.reestimate_batch_norm(bad, data),
            lambda: ng.finetune(bad, data, epochs=1, progress=False),
            lambda: ng.permute(bad, plan.graph, {}),
            lambda: ng.trace(bad, x()),
        ]
    for call in calls:
        with pytest.raises(NeurograftError):
            call()


class Hidden:
    """An object that Python does not copy: it gives itself."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __deepcopy__(self, memo: Any) -> "Hidden":
        return self


class Elsewhere(nn.Module):
    """Runs a layer that an object holds which is not copied."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.hidden = Hidden(self.a)

    def forward(self, y: Tensor) -> Tensor:
        return self.b(self.hidden.layer(y).relu())


class Remembering(nn.Module):
    """Keeps the product of two weights from its first call in eval mode on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.product = nn.Linear(4, 6), nn.Linear(6, 3), None

    def forward(self, y: Tensor) -> Tensor:
        if self.product is None:
            self.product = self.b.weight @ self.a.weight
        return y @ self.product.t()


class Cached(nn.Module):
    """Keeps its first weight transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.b, self.kept = nn.Parameter(torch.randn(6, 4)), nn.Linear(6, 3), None

    def forward(self, y: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.weight.detach().t().contiguous()
        return self.b((y @ self.kept).relu())


class Listed(nn.Module):
    """Keeps its layers where no module finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.b = [nn.Linear(4, 6)], nn.Linear(6, 3)

    def forward(self, y: Tensor) -> Tensor:
        return self.b(self.layers[0](y).relu())


def test_a_copy_that_reads_the_network_it_was_made_from_is_found_when_it_runs() -> None:
    nets = [Elsewhere(), Elsewhere()]
    with pytest.raises(TraceError, match=r"a copy of Elsewhere computes with a\.weight and 1 more tensor of the"):
        ng.fuse(nets, x(), "average")
    graph = ng.trace(nets[0], x(), verify=False)
    for call in (ng.fuse, ng.prune):
        with pytest.raises(TraceError, match="of the network it was copied from"):
            call(nets if call is ng.fuse else nets[0], x(), graph=graph)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Remembering, "computes with none of the 4 tensors that it holds"),
        (Cached, "Cached computes with kept, which was made before, and not with weight"),
    ],
)
def test_results_of_before_are_found(make: Callable[[], nn.Module], message: str) -> None:
    nets = [make(), make()]
    if make is Cached:
        fused = ng.fuse(nets, x(), "average")  # nothing is kept yet, and nothing is kept by this
        expected = (nets[0].weight + nets[1].weight) / 2
        torch.testing.assert_close(fused.weight, expected)
        assert fused.kept is None
    for net in nets:
        net(x())
    with pytest.raises(TraceError, match=message):
        ng.fuse(nets, x(), "average")


def test_layers_in_a_list_are_named() -> None:
    with pytest.warns(UserWarning, match=r"computes with 2 parameters that no module registers \(of shape \(6, 4\)"):
        ng.trace(Listed(), x())


class Own(nn.Module):
    """Copies itself by its own rule."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, y: Tensor) -> Tensor:
        return self.b(self.a(y).relu())

    def __deepcopy__(self, memo: Any) -> "Own":
        made = Own()
        made.load_state_dict(self.state_dict())
        return made


def test_a_class_that_copies_itself_holds_what_was_written() -> None:
    nets = [Own(), Own()]
    fused = ng.fuse(nets, x(), "average")
    torch.testing.assert_close(fused.a.weight, (nets[0].a.weight + nets[1].a.weight) / 2)
    torch.testing.assert_close(ng.combine(nets, x())(x()), ng.Ensemble(nets)(x()))


def scaled(module: nn.Module, y: Tensor) -> Tensor:
    return 2 * type(module).forward(module, y)


@pytest.mark.parametrize("wrap", [lambda m: MethodType(scaled, m), lambda m: partial(scaled, m)])
def test_functions_that_python_copies_are_welcome(wrap: Callable[[nn.Module], Any]) -> None:
    nets = [mlp(), mlp()]
    for net in nets:
        net.forward = wrap(net)  # type: ignore[method-assign]
    fused, plain = ng.fuse(nets, x(), "average"), copy.deepcopy(nets[0])
    plain.load_state_dict({name: (a + nets[1].state_dict()[name]) / 2 for name, a in nets[0].state_dict().items()})
    torch.testing.assert_close(fused(x()), plain(x()))
    assert not torch.allclose(fused(x()), nets[0](x()))


def test_scripted_networks_can_be_measured() -> None:
    net = mlp()
    data = [(x(), torch.zeros(5).long())]
    assert ng.evaluate(torch.jit.script(net), data).loss == pytest.approx(ng.evaluate(net, data).loss)


@pytest.mark.parametrize("how", ["l1", "random", "structured", "twice"])
def test_pruned_weights_are_refused_until_their_masks_are_taken_off(how: str) -> None:
    nets = [mlp(), mlp()]
    for net in nets:
        if how in ("l1", "twice"):
            prune.l1_unstructured(net[0], "weight", amount=0.5)
        if how in ("random", "twice"):
            prune.random_unstructured(net[0], "weight", amount=0.3)
        if how == "structured":
            prune.ln_structured(net[0], "weight", amount=0.3, n=2, dim=0)
    with pytest.raises(PlanError, match=r"0\.weight is computed by a hook of torch\.nn\.utils\.prune.*prune\.remove"):
        ng.fuse(nets, x(), "average")
    acting = [net[0].weight.detach().clone() for net in nets]
    for net in nets:
        prune.remove(net[0], "weight")
    torch.testing.assert_close(ng.fuse(nets, x(), "average")[0].weight, (acting[0] + acting[1]) / 2)


def by_hand(module: nn.Module, _: Any) -> None:
    module.weight = module.weight_g[:, None] * nn.functional.normalize(module.weight_v, dim=1)


def equalised(module: nn.Module, _: Any) -> None:
    module.weight = module.weight_orig / 2


def test_weights_that_a_hook_computes_of_several_parts_are_refused() -> None:
    nets = [mlp(), mlp()]
    for net in nets:
        weight = net[0]._parameters.pop("weight")
        net[0].weight_g = nn.Parameter(weight.detach().norm(dim=1))
        net[0].weight_v = nn.Parameter(weight.detach().clone())
        net[0].register_forward_pre_hook(by_hand)
        net(x())
    with pytest.raises(PlanError, match=r"0\.weight is computed by a hook \(by_hand\) of 0\.weight_g and 0\.weight_v"):
        ng.fuse(nets, x(), "average")


def test_weights_that_a_hook_computes_of_one_part_are_fused() -> None:
    nets = [mlp(), mlp()]
    for net in nets:
        net[0].weight_orig = net[0]._parameters.pop("weight")
        net[0].register_forward_pre_hook(equalised)
        net(x())
    fused = ng.fuse(nets, x(), "average")
    torch.testing.assert_close(fused[0].weight_orig, (nets[0][0].weight_orig + nets[1][0].weight_orig) / 2)
    fused(x())
    torch.testing.assert_close(fused[0].weight, fused[0].weight_orig / 2)
