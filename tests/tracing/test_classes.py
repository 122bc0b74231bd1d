"""The class of every group: proposed by rules, proven with random elements, and no wider than it is."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import neurograft as ng
from neurograft.axes.symmetry import Symmetry
from neurograft.tracing.bench import Bench, largest_change
from neurograft.tracing.canonical import canonical
from neurograft.tracing.class_proof import disturbed
from neurograft.tracing.parts import Absorb, Centre
from tests.attention import attention, sequences
from tests.networks import MLP, VGG, ResNet

WIDER = {
    Symmetry.PERMUTATION: (Symmetry.SIGNED, Symmetry.SCALED, Symmetry.FIXING_ONE),
    Symmetry.SIGNED: (Symmetry.ORTHOGONAL,),
    Symmetry.SCALED: (Symmetry.LINEAR,),
    Symmetry.FIXING_ONE: (Symmetry.ORTHOGONAL,),
    Symmetry.ORTHOGONAL: (Symmetry.LINEAR,),
    Symmetry.LINEAR: (),
}


class Stream(nn.Module):
    """A residual stream: two blocks that read it through a norm, and a head behind another."""

    def __init__(self, norm: Callable[[int], nn.Module], inner: Callable[[Tensor], Tensor] = F.gelu):
        super().__init__()
        self.stem, self.norm, self.last = nn.Linear(5, 8), norm(8), norm(8)
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(self.inner(self.up(self.norm(x))))
        return self.head(self.last(x))


class WrittenRMSNorm(nn.Module):
    """RMSNorm as Hugging Face writes it, with a weight of `offset` + w as in Gemma."""

    def __init__(self, width: int, offset: float = 0.0):
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.rand(width) + 1 - offset), offset

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x * (self.offset + self.weight) if self.offset else x * self.weight


class PostNorm(Stream):
    """The stream is the norm's output, which is added to as it is."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        return self.head(self.last(x + self.down(self.inner(self.up(x)))))


class LayerScaled(Stream):
    """The branch has a scale of its own in front of the addition, as in CaiT."""

    def __init__(self, norm: Callable[[int], nn.Module]):
        super().__init__(norm)
        self.scale = nn.Parameter(torch.full((8,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.scale * self.down(self.inner(self.up(self.norm(x))))
        return self.head(self.last(x))


def noisy(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network in float64 with noise on every parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.double().eval()


def kind_of(net: nn.Module, x: Tensor, tensor: str, dim: int = 0) -> tuple[str, str]:
    """The class of the first group along a dimension, and what limits it."""
    graph = ng.trace(net, x)
    group = graph[next(iter(graph.tensors[tensor].roles[dim]))]
    return group.symmetry.value, group.limit


X = torch.randn(6, 5, dtype=torch.double, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (F.gelu, "permutation"),
        (F.silu, "permutation"),
        (F.relu, "scaled"),
        (F.leaky_relu, "scaled"),
        (torch.tanh, "signed"),
        (torch.sin, "signed"),
        (torch.erf, "signed"),
        (lambda x: x * 3, "linear"),
        (lambda x: x + 1, "orthogonal fixing 1"),
        (lambda x: x - x.mean(-1, keepdim=True), "orthogonal fixing 1"),
        (lambda x: F.layer_norm(x, (12,)), "orthogonal fixing 1"),
        (lambda x: F.rms_norm(x, (12,)), "orthogonal"),
        (lambda x: F.normalize(x, dim=-1), "orthogonal"),
        (lambda x: x.softmax(-1), "permutation"),
        (lambda x: x.relu().tanh(), "permutation"),
        (lambda x: F.rms_norm(x, (12,)).tanh(), "signed"),
        (lambda x: x * x.sigmoid(), "permutation"),
        (lambda x: F.dropout(x, 0.5, training=False), "linear"),
    ],
)
def test_class_by_what_the_units_pass(function: Callable[[Tensor], Tensor], kind: str) -> None:
    net = noisy(nn.Sequential(nn.Linear(5, 12), Apply(function), nn.Linear(12, 3)))
    assert kind_of(net, X, "0.weight")[0] == kind


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("net", "kind"),
    [
        (Stream(nn.LayerNorm), "orthogonal fixing 1"),
        (Stream(nn.RMSNorm), "orthogonal"),
        (Stream(WrittenRMSNorm), "orthogonal"),
        (Stream(lambda n: WrittenRMSNorm(n, 1.0)), "orthogonal"),
        (LayerScaled(nn.LayerNorm), "orthogonal fixing 1"),
        (LayerScaled(nn.RMSNorm), "orthogonal"),
        (PostNorm(nn.LayerNorm), "permutation"),
    ],
)
def test_class_of_a_residual_stream(net: nn.Module, kind: str) -> None:
    assert kind_of(noisy(net), X, "stem.weight")[0] == kind


def test_what_limits_a_class_is_named() -> None:
    net = noisy(Stream(nn.LayerNorm))
    assert kind_of(net, X, "stem.weight")[1] == "native_layer_norm at norm"
    assert kind_of(net, X, "up.weight")[1] == "gelu at the network itself"
    limit = kind_of(noisy(PostNorm(nn.LayerNorm)), X, "stem.weight")[1]
    assert limit == "add at the network itself sees the scale norm.weight"
    assert "free, permutation (gelu at the" in " ".join(str(ng.trace(net, X)).split())


def test_a_tied_head_behind_a_scale_leaves_permutations() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.up = nn.Embedding(7, 8), nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.norm(self.embed(x)), self.embed.weight)

    kind, limit = kind_of(noisy(Tied()), torch.arange(6)[None], "embed.weight", 1)
    assert kind == "permutation"
    assert "reads behind the scale norm.weight and makes the same units" in limit


@pytest.mark.parametrize("form", ["written", "grouped_query"])
def test_classes_inside_heads(form: str) -> None:
    graph = ng.trace(attention(form, 2).double(), sequences().double())
    inside = [group for group in graph.free if group.inside is not None and group.size == 3]
    assert [group.symmetry for group in inside] == [Symmetry.LINEAR] * 2
    heads = [group for group in graph.free if group.name in {g.inside for g in inside}]
    assert [group.symmetry for group in heads] == [Symmetry.PERMUTATION]


def test_queries_keys_and_values_of_one_stacked_weight_share_their_rotation() -> None:
    graph = ng.trace(attention("torch", 2).double(), sequences().double())
    (inside,) = (group for group in graph.free if group.inside is not None)
    assert inside.symmetry is Symmetry.ORTHOGONAL
    assert inside.limit == "no two sides of it can be distinguished"


EXACT = {
    "mlp": (lambda: MLP(5, 8, 6, 3, bias=True), X),
    "tanh": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)), X),
    "vgg": (lambda: VGG(bias=True), IMAGES),
    "batch norm": (lambda: VGG(norm=True), IMAGES),
    "resnet": (ResNet, IMAGES),
    "layer norm": (lambda: Stream(nn.LayerNorm), X),
    "rms norm": (lambda: Stream(nn.RMSNorm), X),
    "gemma": (lambda: Stream(lambda n: WrittenRMSNorm(n, 1.0)), X),
    "layer scale": (lambda: LayerScaled(nn.LayerNorm), X),
    "linear": (lambda: nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3)), X),
    "attention": (lambda: attention("written", 2), sequences().double()),
    "torch attention": (lambda: attention("torch", 2), sequences().double()),
    "grouped queries": (lambda: attention("grouped_query", 2), sequences().double()),
}


@pytest.mark.parametrize("name", EXACT)
def test_random_elements_and_the_canonical_form_keep_the_function(name: str) -> None:
    make, x = EXACT[name]
    net = noisy(make())
    graph = ng.trace(net, x)
    bench = Bench(net, [x], graph.outputs, 0)
    base = bench.run({})
    moved = [group.name for group in graph.free if group.symmetry is not Symmetry.PERMUTATION]
    assert moved
    for seed in range(3):
        assert largest_change(base, bench.run(disturbed(bench.original, graph, moved, seed))) < 1e-10
    assert largest_change(base, bench.run(canonical(bench.original, graph, graph.steps))) < 1e-12


@pytest.mark.parametrize("name", EXACT)
def test_the_next_wider_class_moves_the_outputs(name: str) -> None:
    make, x = EXACT[name]
    net = noisy(make())
    graph = ng.trace(net, x)
    bench = Bench(net, [x], graph.outputs, 0)
    base = bench.run({})
    holding = {group.inside for group in graph.free}  # turning all inside a head is within the classes inside it
    for group in graph.free:
        if group.name in holding:
            continue
        for wider in WIDER[group.symmetry]:
            if wider is Symmetry.FIXING_ONE and group.size < 3:
                continue  # of two units these are permutations
            moved = disturbed(bench.original, graph, [group.name], 0, {group.name: wider})
            assert largest_change(base, bench.run(moved)) > 1e-6, (group.name, wider)


def test_a_class_that_is_too_wide_is_found_by_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    from neurograft.tracing import classes

    monkeypatch.setitem(classes.ENTRYWISE, "tanh", Symmetry.SCALED)
    net = noisy(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)))
    kind, limit = kind_of(net, X, "0.weight")
    assert kind == "permutation"
    assert limit.startswith("proof: a scaled map moved the outputs by")


def test_balanced_units_have_one_scale_on_both_sides() -> None:
    net = noisy(MLP(5, 8, 6, 3))
    graph = ng.trace(net, X)
    made = canonical(dict(net.named_parameters()), graph, graph.steps)
    for i in range(2):
        rows, columns = made[f"layers.{i}.weight"].norm(dim=1), made[f"layers.{i + 1}.weight"].norm(dim=0)
        torch.testing.assert_close(rows, columns, rtol=1e-10, atol=0)


def test_heads_are_balanced_by_matrices() -> None:
    net = attention("written", 2).double()
    graph = ng.trace(net, sequences().double())
    made = canonical(dict(net.named_parameters()), graph, graph.steps)
    v = torch.cat([made["v.weight"], made["v.bias"][:, None]], 1).unflatten(0, (2, 3))
    o = made["project.weight"].T.unflatten(0, (2, 3))
    torch.testing.assert_close(v @ v.mT, o @ o.mT, rtol=1e-8, atol=1e-10)


def test_classes_are_proposed_on_the_meta_device_and_unproven() -> None:
    with torch.device("meta"):
        net, x = Stream(nn.LayerNorm), torch.empty(6, 5)
    graph = ng.trace(net, x)
    assert graph["stem.weight:0"].symmetry is Symmetry.FIXING_ONE
    assert graph.proven.startswith("unproven")


def test_asked_groups_have_no_class_and_no_steps() -> None:
    graph = ng.trace(noisy(Stream(nn.LayerNorm)), X).fixing("stem.weight")
    assert graph["stem.weight:0"].symmetry is Symmetry.PERMUTATION
    assert all(step.group != "stem.weight:0" for step in graph.steps)


def test_means_that_every_norm_takes_out_are_taken_out_of_what_is_written() -> None:
    net = noisy(Stream(nn.LayerNorm))
    graph = ng.trace(net, X)
    made = canonical(dict(net.named_parameters()), graph, graph.steps)
    for name in ("stem.weight", "stem.bias", "down.weight", "down.bias"):
        assert float(made[name].sum(0).abs().max()) < 1e-12, name


def test_the_mean_of_a_stream_that_is_read_without_a_norm_counts() -> None:
    class Bare(Stream):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + self.down(self.inner(self.up(self.norm(x)))))

    graph = ng.trace(noisy(Bare(nn.LayerNorm)), X)
    assert graph["stem.weight:0"].symmetry is Symmetry.FIXING_ONE
    assert not [step for step in graph.steps if isinstance(step, Centre)]


def test_the_bias_of_values_goes_into_that_of_the_output_and_that_of_keys_is_dropped() -> None:
    net = attention("written", 2).double()
    graph = ng.trace(net, sequences().double())
    made = canonical(dict(net.named_parameters()), graph, graph.steps)
    assert not bool(made["k.bias"].any())
    assert not bool(made["v.bias"].any())
    assert bool(made["q.bias"].any())
    given = dict(net.named_parameters())
    values = given["v.bias"] + given["v.weight"] @ given["norm.bias"]  # the norm's shift was folded into it
    moved = given["project.bias"] + given["project.weight"] @ values
    torch.testing.assert_close(made["project.bias"], moved.detach())


def test_a_bias_of_keys_that_counts_is_kept() -> None:
    class Sigmoid(nn.Module):  # scores that compete with nothing
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.head = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.q(x) @ self.k(x).transpose(-1, -2)).sigmoid() @ x)

    graph = ng.trace(noisy(Sigmoid()), sequences().double())
    assert graph["q.weight:0"].symmetry is Symmetry.LINEAR
    assert not [step for step in graph.steps if isinstance(step, Absorb)]
