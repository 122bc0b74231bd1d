"""What every method promises for every small network, whatever it does inside."""

import copy
import io
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

import neurograft as ng
from neurograft.errors import NeurograftError
from neurograft.methods import METHODS
from tests.fusion import planned
from tests.networks import NETWORKS, build, example
from tests.staying import FUNCTIONS, everything_stays  # noqa: F401 - the fixture

pytestmark = pytest.mark.usefixtures("everything_stays")

FIXED = {"unused": ("spare", "idle.*")}
PAIRS = [(method, network) for network in NETWORKS for method in METHODS]


@cache
def graph_of(network: str) -> ng.NeuronGraph:
    return ng.trace(build(network), example(network), fixed=())


def options_of(method: str, network: str, dtype: torch.dtype | None = None) -> dict[str, Any]:
    options: dict[str, Any] = {"fixed": FIXED.get(network, ()), "graph": graph_of(network)}
    if method == "zip":
        options["calibration"] = [converted(many(network), dtype)]
    return options


def many(network: str, count: int = 64) -> Any:
    """A batch like the example inputs, large enough that no two neurons respond alike by chance."""
    generator = torch.Generator().manual_seed(11)

    def enlarged(x: Tensor) -> Tensor:
        shape = (count, *x.shape[1:])
        if x.is_floating_point():
            return torch.randn(shape, generator=generator)
        return torch.randint(11, shape, generator=generator)

    return pytree.tree_map_only(Tensor, enlarged, example(network))


def converted(inputs: Any, dtype: torch.dtype | None) -> Any:
    return pytree.tree_map_only(Tensor, lambda x: x.to(dtype) if dtype and x.is_floating_point() else x, inputs)


def answer(net: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        outputs = net.eval()(**inputs) if isinstance(inputs, dict) else net.eval()(inputs)
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def fingerprint(net: nn.Module) -> list[Any]:
    """Everything a caller could notice: names, bytes, dtypes, modes, gradients, flags."""
    tensors = [
        (name, t.dtype, t.device, t.requires_grad, t.grad is None, t.detach().clone())
        for name, t in (*net.named_parameters(), *net.named_buffers())
    ]
    return [*tensors, [(name, module.training) for name, module in net.named_modules()]]


def same(one: list[Any], other: list[Any]) -> bool:
    flat = [pytree.tree_leaves(found) for found in (one, other)]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(*flat, strict=True))


def members_of(network: str, count: int = 2) -> list[nn.Module]:
    """Member 0 in training mode, with one submodule in eval mode and one frozen parameter."""
    members = [build(network, seed) for seed in range(count)]
    members[0].train()
    next(members[0].children()).eval()
    next(members[0].parameters()).requires_grad_(False)
    return members


@pytest.mark.parametrize(("method", "network"), PAIRS)
def test_a_fused_network_looks_like_member_0_and_no_member_changes(method: str, network: str) -> None:
    members = members_of(network)
    fused = ng.fuse(members, example(network), method, **options_of(method, network))

    assert type(fused) is type(members[0])
    looks = [
        [(n, t.shape, t.dtype, t.device, t.requires_grad) for n, t in (*net.named_parameters(), *net.named_buffers())]
        for net in (fused, members[0])
    ]
    assert looks[0] == looks[1]
    assert fingerprint(fused)[-1] == fingerprint(members[0])[-1]
    assert str(fused) == str(members[0])
    held = {t.data_ptr() for net in members for t in (*net.parameters(), *net.buffers()) if t.numel()}
    assert not held & {t.data_ptr() for t in (*fused.parameters(), *fused.buffers()) if t.numel()}
    assert all(bool(y.isfinite().all()) for y in answer(fused, example(network)))

    again = ng.fuse(members, example(network), method, **options_of(method, network))
    assert same(fingerprint(fused.train()), fingerprint(again.train()))
    for one, other in zip(answer(fused, example(network)), answer(reloaded(fused), example(network)), strict=True):
        assert torch.equal(one, other)
    fused.load_state_dict(members[1].state_dict())
    for one, other in zip(answer(fused, example(network)), answer(members[1], example(network)), strict=True):
        torch.testing.assert_close(one, other)


def reloaded(net: nn.Module) -> nn.Module:
    if any(parametrize.is_parametrized(module) for module in net.modules()):  # torch pickles no such module
        other = copy.deepcopy(net)
        other.load_state_dict(net.state_dict())
        return other
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def permuted(net: nn.Module, network: str, seed: int = 3) -> nn.Module:
    graph = graph_of(network)
    generator = torch.Generator().manual_seed(seed)
    return ng.permute(net, graph, {g.name: torch.randperm(g.size, generator=generator) for g in graph.outermost})


@pytest.mark.parametrize("network", NETWORKS)
def test_permutation_finds_a_planted_permutation(network: str) -> None:
    net = build(network).double()
    x = converted(example(network), torch.float64)
    fused = planned([net, permuted(net, network)], x, "permutation", **options_of("permutation", network))
    for one, other in zip(answer(fused, x), answer(net, x), strict=True):
        torch.testing.assert_close(one, other)


UNIQUE = [pair for pair in PAIRS if pair[0] in ("transplant", "optimal_transport", "zip") and pair != ("zip", "mixer")]
"""Averaging depends on the neurons' order, coordinate descent (permutation) may end in another local optimum, and the
token mixer's neurons answer once per channel, in the order of the member's channels."""


@pytest.mark.parametrize(("method", "network"), UNIQUE)
def test_the_order_of_a_members_neurons_does_not_matter(method: str, network: str) -> None:
    first, second = (build(network, seed).double() for seed in range(2))
    x = converted(example(network), torch.float64)
    shuffled = permuted(second, network)
    for one, other in zip(answer(second, x), answer(shuffled, x), strict=True):
        torch.testing.assert_close(one, other)
    options = options_of(method, network, torch.float64)
    left, right = (planned([first, other], x, method, **options) for other in (second, shuffled))
    for one, other in zip(answer(left, x), answer(right, x), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", ["mlp_bias", "vgg_batch_norm", "tied"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_is_kept(method: str, network: str, dtype: torch.dtype) -> None:
    members = [build(network, seed).to(dtype) for seed in range(2)]
    x = converted(example(network), dtype)
    fused = planned(members, x, method, **options_of(method, network, dtype))
    for name, tensor in members[0].state_dict().items():
        assert fused.state_dict()[name].dtype == tensor.dtype
    exact = [copy.deepcopy(net).double() for net in members]
    if method == "average":
        expected = planned(exact, converted(x, torch.float64), method, **options_of(method, network, torch.float64))
        for name, tensor in expected.state_dict().items():
            found = fused.state_dict()[name]
            assert torch.equal(found, tensor.to(found.dtype)), "computed in float32 or better, rounded once"


def five(method: str, members: list[nn.Module]) -> list[Tensor]:
    network, more = "vgg_batch_norm", {"diversity": True} if method == "transplant" else {}
    fused = planned(members, example(network), method, **options_of(method, network), **more)
    return answer(fused, example(network))


@pytest.mark.parametrize("method", METHODS)
def test_every_one_of_five_members_counts(method: str) -> None:
    members = [build("vgg_batch_norm", seed) for seed in range(6)]
    (fused,) = five(method, members[:5])
    for m in range(5):
        (other,) = five(method, [*members[:m], *members[m + 1 :]])
        assert float((other - fused).abs().max() / fused.abs().max()) > 1e-2, m


@pytest.mark.parametrize("method", METHODS)
def test_five_copies_of_a_network_are_that_network(method: str) -> None:
    net = build("vgg_batch_norm")
    members = [net, *(net if method == "average" else permuted(net, "vgg_batch_norm", seed) for seed in range(4))]
    torch.testing.assert_close(five(method, members), answer(net, example("vgg_batch_norm")), rtol=1e-4, atol=1e-5)


class Breaking(nn.Module):
    """Fails at its nth call, after it has written to all that it has; 0 never fails."""

    def __init__(self, fails_at: int = 0) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.register_buffer("scale", torch.ones(()))
        self.calls, self.kept, self.failing = [0], [], SimpleNamespace(calls=0, fails_at=fails_at)

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        self.scale = 0.9 * self.scale + 0.1 * x.abs().mean()
        self.kept.append(self.a(x))
        self.failing.calls += 1
        if self.failing.calls == self.failing.fails_at:
            self.a.weight.data.zero_()
            raise RuntimeError("broken")
        return self.b(self.norm(self.kept[-1]).relu())


class Setting:
    """What public calls take, with one thing wrong in it."""

    def __init__(self, wrong: str) -> None:
        self.make = lambda: Breaking(int(wrong[-1]) if wrong.startswith("call") else 0)
        self.nets = [self.make() for _ in range(2)]
        self.x, labels = torch.randn(5, 7 if wrong == "inputs" else 4), torch.randint(0, 3, (40,))
        self.data: list[Any] = [] if wrong == "empty" else [(torch.randn(40, 4), labels)]
        if wrong in ("nan", "shape"):
            self.data.append((torch.full((40, 4), torch.nan) if wrong == "nan" else torch.randn(40, 7), labels))
        if wrong == "weights":
            self.nets[1].b.weight.data[0, 0] = torch.inf
        self.options: dict[str, Any] = {"nonsense": 1} if wrong == "option" else {}
        whole = [Breaking() for _ in range(2)]
        self.plan = ng.plan(whole, torch.randn(5, 4), "average")
        self.fused = ng.apply(self.plan, whole)


WRONG = ("nothing", "call 1", "call 2", "call 5", "nan", "shape", "empty", "weights", "inputs", "option")
ALWAYS = {"apply": ("option",), "permute": ("option",)}  # they run no network
TRAINING: dict[str, Any] = {"epochs": 1, "progress": False, "lr": 1e-4}
PUBLIC: dict[str, Callable[[Setting], object]] = {
    "advise": lambda s: ng.advise(s.nets, s.data, s.data, epochs=1, **s.options),
    "apply": lambda s: ng.apply(s.plan, s.nets, **s.options),
    "barrier": lambda s: ng.barrier(*s.nets, s.data, s.x, points=2, **s.options),
    "combine": lambda s: ng.combine(s.nets, s.x, **s.options),
    "compare": lambda s: ng.compare(s.nets, s.x, base=s.nets[0], align="permutation", **s.options),
    "distill": lambda s: ng.distill(s.fused, s.nets, s.data, **TRAINING, **s.options),
    "evaluate": lambda s: ng.evaluate(s.nets[0], s.data, **s.options),
    "finetune": lambda s: ng.finetune(s.nets[0], s.data, **TRAINING, **s.options),
    "fuse": lambda s: ng.fuse(s.nets, s.x, calibration=s.data, **s.options),
    "fuse_in_sequence": lambda s: ng.fuse_in_sequence(s.nets, s.x, ["prune", "merge"], **s.options),
    "permute": lambda s: ng.permute(s.nets[0], s.plan.graph, {"a.weight:0": torch.arange(6).flip(0)}, **s.options),
    "plan": lambda s: ng.plan(s.nets, s.x, "zip", calibration=s.data, **s.options),
    "prune": lambda s: ng.prune(s.nets[0], s.x, calibration=s.data, importance="taylor", **s.options),
    "reestimate_batch_norm": lambda s: ng.reestimate_batch_norm(s.nets[0], s.data, **s.options),
    "refit": lambda s: ng.refit(s.fused, s.plan, s.nets, s.data, **s.options),
    "repair": lambda s: ng.repair(s.fused, s.plan, s.nets, s.data, **s.options),
    "statistics": lambda s: ng.statistics(s.nets[0], s.data, **s.options),
    "trace": lambda s: ng.trace(s.nets[0], s.x, **s.options),
    "train": lambda s: ng.train(s.make, s.data, **TRAINING, **s.options),
    "verify": lambda s: ng.verify(s.nets[0], s.plan.graph, s.x, **s.options),
    "Fusion": lambda s: ng.Fusion.of(ng.Members(s.nets, s.x), "average").refit(s.data).repair(s.data, **s.options),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("call", PUBLIC)
def test_every_public_call_leaves_networks_alone_whatever_goes_wrong(call: str, wrong: str) -> None:
    setting, failed = Setting(wrong), ""
    try:
        PUBLIC[call](setting)
    except (NeurograftError, TypeError) as error:
        failed = repr(error)
    except RuntimeError as error:
        failed = str(error)
        assert failed == "broken"
    assert not failed if wrong == "nothing" else failed or wrong not in ALWAYS.get(call, ("option", "call 1"))


def test_every_public_call_is_among_them() -> None:
    assert set(FUNCTIONS) | {"Fusion"} == set(PUBLIC) | {"merge", "merge_adapters"}  # which read files only
