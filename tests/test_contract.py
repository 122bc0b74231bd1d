"""What every method promises for every small network, whatever it does inside."""

import copy
import io
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

import neurograft as ng
from neurograft.methods import METHODS
from tests.fusion import planned
from tests.networks import NETWORKS, build, example

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
    before = [fingerprint(net) for net in members]
    random_state = torch.get_rng_state()
    fused = ng.fuse(members, example(network), method, **options_of(method, network))

    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(same(old, fingerprint(net)) for old, net in zip(before, members, strict=True))
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
