"""Wherever patterns are taken, a string is one pattern."""

import warnings
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import neurograft as ng
from neurograft.errors import OptionError, PlanError, Unreached
from neurograft.training.sequences import fuse_in_sequence
from tests.networks import MLP

Patterns = str | Sequence[str]
X = torch.randn(16, 12, generator=torch.Generator().manual_seed(1))


def mlps() -> list[nn.Module]:
    torch.manual_seed(0)
    return [MLP(12, 16, 14, 10, bias=True) for _ in range(2)]


def tensors(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


def groups(graph: ng.NeuronGraph) -> list[bool]:
    return [group.fixed for group in graph]


def fused(**options: Patterns) -> list[Tensor]:
    return tensors(ng.fuse(mlps(), X, **options))


def refitted(**options: Patterns) -> list[Tensor]:
    members = mlps()
    plan = ng.plan(members, X)
    return tensors(ng.refit(ng.apply(plan, members), plan, members, [X], ridge=1e-3, **options))


# call, what it is called with, and that the option does something
CALLS: dict[str, tuple[Callable[..., list[object]], str]] = {
    "trace": (lambda **o: groups(ng.trace(mlps()[0], X, **o)), "fixed"),
    "fixing": (lambda fixed: groups(ng.trace(mlps()[0], X).fixing(fixed)), "fixed"),
    "plan": (lambda **o: groups(ng.plan(mlps(), X, **o).graph), "fixed"),
    "fuse": (fused, "fixed"),
    "combine": (lambda **o: tensors(ng.combine(mlps(), X, **o)), "fixed"),
    "prune": (lambda **o: tensors(ng.prune(mlps()[0], X, ratio=0.5, **o)), "fixed"),
    "fuse_in_sequence": (lambda **o: tensors(fuse_in_sequence(mlps(), X, ("merge", "prune"), **o)), "fixed"),
    "average": (lambda **o: fused(method="average", **o), "exclude"),
    "refit_layers": (refitted, "layers"),
    "refit_exclude": (refitted, "exclude"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_string_is_one_pattern(name: str) -> None:
    call, option = CALLS[name]
    without = {"layers": "*", "fixed": (), "exclude": ()}[option]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in ("combine", "fuse_in_sequence"):
            # what is fixed between layers makes an exact average impossible
            with pytest.raises(PlanError, match="asked: layers.0"):
                call(**{option: "layers.0.bias"})
            return
        pattern = "layers.1.*" if "refit" in name else "layers.0.*"
        one, several, none = (call(**{option: given}) for given in (pattern, [pattern], without))
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(one, several, strict=True))
    shapes = [getattr(a, "shape", None) for a in one] != [getattr(b, "shape", None) for b in none]
    assert shapes or any(
        not torch.equal(a, b) if isinstance(a, Tensor) else a != b for a, b in zip(one, none, strict=True)
    )
    with pytest.raises(OptionError, match="a pattern or a list of patterns"):
        call(**{option: [7]})


class Branch(nn.Module):
    """A layer that the example inputs do not reach, beside one that moves."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.unused, self.b = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.b(self.unused(h) if x.shape[0] == 99 else h)


def test_a_string_switches_no_guard_off() -> None:
    models, x = [Branch(), Branch()], torch.randn(5, 4)
    # read letter by letter, the star among them would name every parameter
    with pytest.raises(Unreached, match=r"unused\.weight was not reached"):
        ng.fuse(models, x, fixed="b.bia*")
    ng.fuse(models, x, fixed="unused.*")
    with pytest.raises(Unreached, match=r"unused\.weight was not reached"):
        ng.combine(models, x, fixed="b.bias")


def test_outputs_given_as_a_string() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = self.a(x).relu()
            return {"hidden": h, "said": self.b(h)}

    graph = ng.trace(Two(), torch.randn(3, 4), outputs="said")
    assert graph.outputs == ("said",)
    assert groups(graph) == groups(ng.trace(Two(), torch.randn(3, 4), outputs=["said"]))
    assert not graph["a.weight:0"].fixed
