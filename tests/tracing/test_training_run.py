"""Tensors that only training reaches follow the neurons they are averages of."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import neurograft as ng
from neurograft.errors import Unreached
from tests.planting import planted


class Codebook(nn.Module):
    """Vectors are replaced by their nearest code; in training codes become running means of what they replace."""

    def __init__(self, width: int = 6, codes: int = 10) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(4, width), nn.Linear(width, 3)
        self.calls = 0
        self.make(width, codes)

    def make(self, width: int, codes: int) -> None:
        raise AssertionError("each kind makes its own codes")

    def quantise(self, z: Tensor) -> Tensor:
        raise AssertionError("each kind has its own rule")

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        z = self.encode(x)
        return self.decode(z + (self.quantise(z) - z).detach())


class InPlace(Codebook):
    """Codes and their averages are buffers that training writes to."""

    def make(self, width: int, codes: int) -> None:
        self.register_buffer("codes", torch.randn(width, codes))
        self.register_buffer("counts", torch.rand(codes) + 1)
        self.register_buffer("sums", torch.randn(width, codes))

    def quantise(self, z: Tensor) -> Tensor:
        away = z.pow(2).sum(1, keepdim=True) - 2 * z @ self.codes + self.codes.pow(2).sum(0, keepdim=True)
        numbers = (-away).max(1).indices
        nearest = F.embedding(numbers, self.codes.t())
        if self.training:
            chosen = F.one_hot(numbers, self.counts.shape[0]).type(z.dtype)
            self.counts.data.mul_(0.9).add_(chosen.sum(0), alpha=0.1)
            self.sums.data.mul_(0.9).add_(z.t() @ chosen, alpha=0.1)
            total = self.counts.sum()
            self.codes.data.copy_(self.sums / ((self.counts + 1e-5) / (total + 1e-4) * total))
        return nearest


class Anew(Codebook):
    """Codes and their averages are parameters and buffers that training assigns anew."""

    def make(self, width: int, codes: int) -> None:
        self.codes = nn.Embedding(codes, width)
        self.register_buffer("counts", torch.rand(codes) + 1)
        self.sums = nn.Parameter(torch.randn(codes, width))

    def quantise(self, z: Tensor) -> Tensor:
        numbers = torch.cdist(z, self.codes.weight).argmin(1)
        chosen = z.new_zeros(z.shape[0], self.counts.shape[0]).scatter_(1, numbers[:, None], 1)
        nearest = chosen @ self.codes.weight
        if self.training:
            self.counts = self.counts * 0.9 + 0.1 * chosen.sum(0)
            self.sums = nn.Parameter(self.sums * 0.9 + 0.1 * chosen.t() @ z)
            self.codes.weight = nn.Parameter(self.sums / self.counts[:, None])
        return nearest


KINDS = {"in_place": InPlace, "anew": Anew}


def made(kind: str) -> tuple[Codebook, Tensor]:
    torch.manual_seed(0)
    return KINDS[kind]().double(), torch.randn(32, 4, dtype=torch.float64)


def stepped(model: nn.Module, x: Tensor) -> nn.Module:
    other = copy.deepcopy(model).train()
    with torch.no_grad():
        other(x)
    return other


@pytest.mark.parametrize("kind", KINDS)
def test_averages_move_with_the_codes(kind: str) -> None:
    model, x = made(kind)
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = ng.trace(model, x)
    assert not graph.unreached
    assert sorted(group.size for group in graph.free) == [6, 10]
    moved = {slot.tensor for group in graph.free for slot in group.slots if group.size == 10}
    assert {"counts", "sums"} <= moved
    # a training step of the permuted network is the permuted training step
    other = planted(model, graph, 1)
    after, expected = stepped(other, x).state_dict(), planted(stepped(model, x), graph, 1).state_dict()
    assert all(torch.allclose(after[name], expected[name]) for name in expected)
    assert not torch.allclose(after["counts"], other.state_dict()["counts"])
    assert all(torch.equal(y, before[name]) for name, y in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["permutation", "transplant"])
def test_a_permuted_codebook_is_fused_back_with_its_averages(kind: str, method: str) -> None:
    model, x = made(kind)
    other = planted(model, ng.trace(model, x), 1)
    options = {"diversity": True} if method == "transplant" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fused = ng.fuse([model, other], x, method=method, **options)
    assert torch.allclose(fused(x), model(x))
    assert torch.allclose(stepped(fused, x)(x), stepped(model, x)(x))


@pytest.mark.parametrize("kind", KINDS)
def test_codes_stay_where_their_averages_are_asked_to(kind: str) -> None:
    model, x = made(kind)
    graph = ng.trace(model, x, fixed="counts")
    assert [group.size for group in graph.free] == [6]
    assert next(group for group in graph if group.size == 10).why == "asked: counts"


class OnlyInTraining(nn.Module):
    """A second head that training alone uses, and a count beside the first."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.fails = fails
        self.a, self.b, self.second = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        if self.training:
            if self.fails:
                raise ValueError("labels are missing")
            self.seen += (h > 0).sum(0)
            return self.b(h) + self.second(h)
        return self.b(h)


def test_what_training_multiplies_by_is_still_unreached() -> None:
    graph = ng.trace(OnlyInTraining(fails=False), torch.randn(5, 4))
    assert graph.unreached == ("second.weight", "second.bias")
    assert {slot.tensor for slot in graph["a.weight:0"].slots} == {"a.weight", "a.bias", "b.weight", "seen"}


def test_a_network_that_does_not_run_in_training_mode_is_traced_as_it_is() -> None:
    models, x = [OnlyInTraining(fails=True) for _ in range(2)], torch.randn(5, 4)
    assert "seen" in ng.trace(models[0], x).unreached
    with pytest.raises(Unreached, match="was not reached"):
        ng.fuse(models, x)


def test_an_activation_behind_data_is_itself() -> None:
    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).relu()
            h.data.mul_(2)
            return self.b(h + nn.Parameter(h.data.tanh()))

    model, x = Behind(), torch.randn(5, 4)
    graph = ng.trace(model, x)
    assert [group.size for group in graph.free] == [6]
    assert ng.verify(model, graph, x, deep=True).passed
