"""The proof finds nothing wrong in right graphs and everything wrong in wrong ones."""

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy
import pytest
import torch
from torch import Tensor, nn

import neurograft as ng
from neurograft.errors import ProofFailed
from neurograft.tracing import rules
from neurograft.tracing.bench import failing_groups
from neurograft.tracing.graph import FixedReason, NeuronGraph, Role, slots_by_group
from neurograft.tracing.labelling import _FOUND
from neurograft.tracing.labels import Labels
from neurograft.tracing.tape import Op
from tests.networks import NETWORKS, build, example


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_network_is_proven_down_to_its_intermediate_tensors(name: str, dtype: torch.dtype) -> None:
    model, inputs = build(name).to(dtype), example(name)
    inputs = torch.utils._pytree.tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, inputs)
    graph = ng.trace(model, inputs)
    proof = ng.verify(model, graph, inputs, seed=5, deep=True)
    assert proof.passed, str(proof)
    assert proof.deep_at is None
    assert max(proof.error, proof.role_error) < (1e-5 if dtype == torch.float32 else 1e-12)
    assert proof.permuted == len(graph.free)
    other = torch.utils._pytree.tree_map(
        lambda x: x.flip(0) * 1.5 + 0.1 if x.is_floating_point() else (x + 1) % (int(x.max()) + 1), inputs
    )
    assert ng.verify(model, graph, other, seed=6).passed


def test_other_inputs_than_the_traced_ones_are_proven_too() -> None:
    model = build("resnet")
    graph = ng.trace(model, example("resnet"))
    assert ng.verify(model, graph, torch.randn(5, 3, 16, 12)).passed


@pytest.fixture
def broken_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule for `cumsum` that lets positions pass, as if their order had no meaning."""

    def wrong(labels: Labels, op: Op) -> object:
        return labels.of(op.args[0])

    monkeypatch.setitem(rules.RULES, "cumsum", wrong)  # type: ignore[arg-type]
    monkeypatch.setattr("neurograft.tracing.labelling._FOUND", {})
    _FOUND.clear()


class Cumulative(nn.Module):
    """Sums its hidden neurons in their order."""

    def __init__(self, forgiving: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)
        self.forgiving = forgiving

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).cumsum(-1)
        # the output forgives a wrong intermediate tensor that is multiplied by nothing
        return self.c(self.b(h * 0 if self.forgiving else h).relu())


@pytest.mark.usefixtures("broken_softmax")
def test_a_broken_rule_is_caught_and_the_group_is_fixed() -> None:
    with pytest.warns(UserWarning, match=r"these groups moved the outputs and are fixed now: a\.weight:0"):
        graph = ng.trace(Cumulative(), torch.randn(4, 3))
    assert graph["a.weight:0"].reason is FixedReason.PROOF
    assert not graph["b.weight:0"].fixed
    assert graph.proven.startswith("proven")


@pytest.mark.usefixtures("broken_softmax")
def test_a_broken_rule_raises_under_strict() -> None:
    with pytest.raises(ProofFailed, match=r"a\.weight:0 moved the outputs"):
        ng.trace(Cumulative(), torch.randn(4, 3), strict=True)


@pytest.mark.usefixtures("broken_softmax")
def test_the_deep_proof_finds_what_outputs_forgive() -> None:
    model, x = Cumulative(forgiving=True), torch.randn(4, 3)
    graph = ng.trace(model, x)
    proof = ng.verify(model, graph, x, deep=True)
    assert not proof.passed
    assert proof.error < 1e-6
    assert str(proof.deep_at).startswith("cumsum")


def swap_roles(graph: NeuronGraph, tensor: str, dim: int, role: Role) -> NeuronGraph:
    """The graph with one dim's roles replaced by a wrong one."""
    info = graph.tensors[tensor]
    roles = list(info.roles)
    roles[dim] = {group: frozenset({role}) for group in roles[dim]}
    tensors = {**graph.tensors, tensor: replace(info, roles=tuple(roles))}
    slots = slots_by_group(tensors)
    return replace(graph, tensors=tensors, groups=tuple(replace(g, slots=slots[g.name]) for g in graph))


@pytest.mark.parametrize(
    ("name", "tensor", "dim", "role", "group"),
    [
        ("mlp", "layers.1.weight", 1, "out", "layers.0.weight:0"),
        ("mlp_bias", "layers.0.bias", 0, "in", "layers.0.weight:0"),
        ("resnet", "blocks.0.conv2.weight", 0, "in", "conv1.weight:0"),
        ("vgg_batch_norm", "features.1.weight", 0, "in", "features.0.weight:0"),
        ("attention", "project.weight", 1, "elementwise", "qkv.weight:0.1"),
    ],
)
def test_a_swapped_role_is_caught(name: str, tensor: str, dim: int, role: Role, group: str) -> None:
    model, inputs = build(name), example(name)
    graph = swap_roles(ng.trace(model, inputs), tensor, dim, role)
    proof = ng.verify(model, graph, inputs)
    assert not proof.passed
    assert group in proof.wrong_roles


def test_reading_values_in_python_is_caught() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h) * (2.0 if h.tolist()[0][0] > h.tolist()[0][1] else 0.5)

    torch.manual_seed(3)
    model, x = Hidden(), torch.randn(4, 3)
    graph = ng.trace(model, x, verify=False)
    verdicts = [ng.verify(model, graph, x, seed=seed) for seed in range(4)]
    assert not all(verdict.passed for verdict in verdicts)
    assert {name for verdict in verdicts for name in verdict.guilty} == {"a.weight:0"}


def test_a_proof_leaves_the_network_alone() -> None:
    model = build("vgg_batch_norm").train()
    graph = ng.trace(model, example("vgg_batch_norm"))
    before = copy.deepcopy(model.state_dict())
    ng.verify(model, graph, example("vgg_batch_norm"), deep=True)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert model.training


def test_a_proof_reads_well() -> None:
    model = build("mlp")
    proof = ng.verify(model, ng.trace(model, example("mlp")), example("mlp"), deep=True)
    assert str(proof).startswith("proven: 2 groups permuted, outputs moved by")
    assert "every intermediate tensor" in str(proof)


class Counting(nn.Module):
    """Scales its outputs by how often it was called, which it keeps in itself or where nothing finds it."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)
        self.calls, self.hidden = 0, SimpleNamespace(calls=0) if hidden else None

    def forward(self, x: Tensor) -> Tensor:
        counter = self if self.hidden is None else self.hidden
        counter.calls += 1
        return self.b(self.a(x).relu()) * counter.calls


class Drawing(nn.Module):
    """Adds random numbers in eval mode too."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.a, self.b, self.draw = nn.Linear(3, 6), nn.Linear(6, 2), draw

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()) + self.draw()


def test_outputs_that_do_not_repeat_are_named_before_anything_is_moved() -> None:
    with pytest.warns(UserWarning, match="cannot be proven: the outputs do not repeat"):
        graph = ng.trace(Counting(hidden=True), torch.randn(4, 3))
    assert graph.proven.startswith("unproven (the outputs do not repeat")
    assert [group.name for group in graph.free] == ["a.weight:0"]
    with pytest.raises(ProofFailed, match="the outputs do not repeat"):
        ng.trace(Counting(hidden=True), torch.randn(4, 3), strict=True)


DRAWS: dict[str, Callable[[], float]] = {
    "torch": lambda: float(torch.rand(())),
    "numpy": lambda: float(numpy.random.rand()),  # noqa: NPY002 - networks draw from the global state
    "python": random.random,
}


@pytest.mark.parametrize("what", ["keeps", *DRAWS])
def test_outputs_that_change_from_call_to_call_are_named_and_proven_from_one_state(what: str) -> None:
    model = Counting(hidden=False) if what == "keeps" else Drawing(DRAWS[what])
    with pytest.warns(UserWarning, match="do not repeat from call to call"):
        graph = ng.trace(model, torch.randn(4, 3))
    assert graph.proven.startswith("proven")
    assert [group.name for group in graph.free] == ["a.weight:0"]
    assert getattr(model, "calls", 0) == 0


def test_a_change_that_no_group_makes_has_no_culprit() -> None:
    assert failing_groups([], lambda _: 1.0, 1e-4, {}) == []
