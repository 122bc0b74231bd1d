"""Sparse tensors, tensors made in inference mode, modules without shapes yet: they work, or are refused by name."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import neurograft as ng
from neurograft.errors import InputError, MembersDiffer
from neurograft.preserve_state import copy_of, same_entries
from tests.planting import planted

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")

Layout = Callable[[Tensor], Tensor]
LAYOUTS: dict[str, Layout] = {"coo": Tensor.to_sparse, "csr": Tensor.to_sparse_csr}


def edges(seed: int = 0) -> Tensor:
    return (torch.rand(7, 7, generator=torch.Generator().manual_seed(seed)) > 0.5).float()


class Graph(nn.Module):
    """A graph network whose edges are a sparse buffer."""

    def __init__(self, layout: str = "coo", persistent: bool = True, seed: int = 0) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("edges", LAYOUTS[layout](edges(seed)), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sparse.mm(self.edges, torch.sparse.mm(self.edges, self.a(x)).relu()))


class Given(nn.Module):
    """A graph network whose edges are given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.b(edges @ (edges @ self.a(x)).relu())


class Words(nn.Module):
    """Counts of words, few of them not zero, times a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.b = nn.Parameter(torch.randn(30, 6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sparse.mm(x, self.words).relu())


def words(layout: str) -> Tensor:
    return LAYOUTS[layout]((torch.rand(40, 30, generator=torch.Generator().manual_seed(1)) > 0.8).float())


def nodes() -> Tensor:
    return torch.randn(7, 4, generator=torch.Generator().manual_seed(1))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def quietly(run: Callable[..., Any], *args: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run(*args, **options)


def called(model: nn.Module, inputs: Any) -> Tensor:
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


CASES: dict[str, Callable[[str], tuple[nn.Module, Any]]] = {
    "buffer": lambda layout: (Graph(layout), nodes()),
    "buffer_that_is_not_saved": lambda layout: (Graph(layout, persistent=False), nodes()),
    "given_edges": lambda layout: (Given(), (nodes(), LAYOUTS[layout](edges()))),
    "given_features": lambda layout: (Words(), words(layout)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_networks_with_sparse_tensors_fuse(case: str, layout: str) -> None:
    torch.manual_seed(0)
    model, inputs = CASES[case](layout)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        graph = ng.trace(model, inputs)
    assert [group.size for group in graph.free] == [6]
    assert ng.verify(model, graph, inputs, deep=True).passed
    other = planted(model, graph, 1)
    fused = quietly(ng.fuse, [model, other], inputs, method="permutation")
    assert torch.allclose(called(fused, inputs), called(model, inputs), atol=1e-5)
    wide = ng.combine([model, other], inputs)
    assert torch.allclose(called(wide, inputs), called(model, inputs), atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sparse_edges_stay_and_must_be_the_same(layout: str) -> None:
    torch.manual_seed(0)
    models = [Graph(layout), Graph(layout)]
    fused = quietly(ng.fuse, models, nodes())
    assert same_entries(fused.edges, models[0].edges)
    assert fused.edges is not models[0].edges
    with pytest.raises(MembersDiffer, match=r"sparse buffer edges of models\[1\] is not that of models\[0\]"):
        ng.fuse([models[0], Graph(layout, seed=3)], nodes())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("recover", ["refit", "repair"])
def test_sparse_calibration(layout: str, recover: str) -> None:
    torch.manual_seed(0)
    models, data = [Words(), Words()], [(words(layout), torch.randint(0, 3, (40,)))]
    fused = quietly(ng.fuse, models, words(layout), calibration=data, recover=recover)
    assert called(fused, words(layout)).isfinite().all()
    assert ng.evaluate(fused, data).samples == 40
    tuned = ng.finetune(fused, data, epochs=1, progress=False)
    assert not torch.equal(tuned.words, fused.words)
    for importance in ("taylor", "activation"):
        quietly(ng.fuse, models, words(layout), calibration=data, importance=importance)


def test_nan_among_sparse_entries_is_found() -> None:
    x = words("coo").coalesce()
    x.values()[0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        ng.evaluate(Words(), [(x, torch.zeros(40).long())])


def test_a_sparse_parameter_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 6))
    model[0].weight = nn.Parameter(model[0].weight.detach().to_sparse())
    with pytest.raises(InputError, match=r"0\.weight of model is a parameter of layout torch\.sparse_coo.*to_dense"):
        ng.trace(model, torch.randn(2, 4))
    with pytest.raises(InputError, match=r"0\.weight of models\[0\] is a parameter of layout"):
        ng.fuse([model, model], torch.randn(2, 4))


@pytest.mark.parametrize("make", [lambda: nn.LazyLinear(6), lambda: nn.LazyBatchNorm1d()])
def test_lazy_modules_are_refused_by_name(make: Callable[[], nn.Module]) -> None:
    models = [nn.Sequential(nn.Flatten(), make()) for _ in range(2)]
    x = torch.randn(3, 4)
    calls: list[Callable[[], object]] = [
        lambda: ng.trace(models[0], x),
        lambda: ng.fuse(models, x),
        lambda: ng.combine(models, x),
        lambda: ng.prune(models[0], x, ratio=0.5),
        lambda: ng.evaluate(models[0], [(x, torch.zeros(3).long())]),
        lambda: ng.finetune(models[0], [(x, torch.zeros(3).long())]),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"1\.weight of .* has no shape yet: its module is lazy.*call the network"):
            call()


def test_lazy_modules_that_have_run_are_like_any_other() -> None:
    models = [nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 3)) for _ in range(2)]
    x = torch.randn(3, 4)
    for model in models:
        model(x)
    assert quietly(ng.fuse, models, x)(x).shape == (3, 3)


@pytest.mark.parametrize("what", ["data", "networks", "everything"])
def test_inference_mode(what: str) -> None:
    torch.manual_seed(0)
    with torch.inference_mode(what in ("data", "everything")):
        x, labels = torch.randn(32, 4), torch.randint(0, 3, (32,))
    with torch.inference_mode(what in ("networks", "everything")):
        models = [mlp(), mlp()]
    before = [{name: x.clone() for name, x in model.state_dict().items()} for model in models]
    with torch.inference_mode(what == "everything"):
        for options in ({"recover": "refit"}, {"recover": "repair"}, {"importance": "taylor"}, {"method": "zip"}):
            fused = quietly(ng.fuse, models, x, calibration=[(x, labels)], **options)
        assert ng.evaluate(fused, [(x, labels)]).samples == 32
        assert ng.evaluate(models[0], [(x, labels)]).samples == 32
        ng.combine(models, x)
        assert len(ng.barrier(*models, [(x, labels)]).before.loss) > 2
        for start in (fused, models[0]):
            tuned = ng.finetune(start, [(x, labels)], epochs=1, progress=False)
            assert not torch.equal(tuned[0].weight, start[0].weight)
        taught = ng.distill(fused, models, [x], epochs=1, progress=False)
        assert not torch.equal(taught[0].weight, fused[0].weight)
    for model, kept in zip(models, before, strict=True):
        assert all(torch.equal(x, kept[name]) for name, x in model.state_dict().items())


def test_training_where_gradients_are_off() -> None:
    torch.manual_seed(0)
    model, data = mlp(), [(torch.randn(8, 4), torch.randint(0, 3, (8,)))]
    with torch.no_grad():
        tuned = ng.finetune(model, data, epochs=1, progress=False)
        assert not torch.is_grad_enabled()
    assert not torch.equal(tuned[0].weight, model[0].weight)


def test_a_copy_has_its_own_sparse_buffers() -> None:
    for layout in LAYOUTS:
        model = Graph(layout)
        other = copy_of(model)
        assert same_entries(other.edges, model.edges)
        other.edges.values().mul_(2)
        assert not same_entries(other.edges, model.edges)
        assert torch.equal(model.edges.to_dense(), edges())
