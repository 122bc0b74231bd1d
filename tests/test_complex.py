"""Networks of complex numbers: Fourier layers keep their channels, and a score is the size of a number."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import neurograft as ng
from neurograft.alignment.ancestry import distance_ratio
from neurograft.selection.importance import power_sums
from tests.planting import planted


class Fourier(nn.Module):
    """A layer that mixes channels frequency by frequency, beside a plain one, between two pointwise layers."""

    def __init__(self, kept: int = 5) -> None:
        super().__init__()
        self.stem, self.beside, self.head = nn.Conv1d(2, 6, 1), nn.Conv1d(6, 6, 1), nn.Conv1d(6, 1, 1)
        self.weight = nn.Parameter(torch.randn(6, 6, kept, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        spectrum, kept = torch.fft.rfft(h), self.weight.shape[-1]
        mixed = torch.zeros_like(spectrum)
        mixed[..., :kept] = torch.einsum("bix,iox->box", spectrum[..., :kept], self.weight)
        return self.head(F.gelu(torch.fft.irfft(mixed, n=h.shape[-1]) + self.beside(h)))


class FourierConvolution(nn.Module):
    """A convolution over real and imaginary parts side by side, as in fast Fourier convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(2, 6, 1), nn.Conv2d(12, 12, 1), nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        spectrum = torch.fft.rfft2(h, norm="ortho")
        real, imaginary = self.mix(torch.cat([spectrum.real, spectrum.imag], 1)).relu().chunk(2, 1)
        return self.head(h + torch.fft.irfft2(torch.complex(real, imaginary), s=h.shape[-2:], norm="ortho"))


class Phases(nn.Module):
    """Complex linear layers, a gate by size between them, a buffer of turns."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(i, o, dtype=torch.cfloat) for i, o in ((4, 9), (9, 7), (7, 3)))
        self.register_buffer("turn", torch.polar(torch.ones(9), torch.rand(9)))

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(torch.complex(x, x.sin()))
        z = self.b(z * z.abs().sigmoid() * self.turn)
        return self.c(z * z.abs().sigmoid()).abs()


class Mixing(nn.Module):
    """FNet: Fourier sums over words and over channels, whose positions they give a meaning."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down, self.head = (nn.Linear(i, o) for i, o in ((3, 6), (6, 10), (10, 6), (6, 2)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real
        return self.head(x + self.down(self.up(x).relu()))


NETWORKS: dict[str, tuple[type[nn.Module], tuple[int, ...], list[int]]] = {
    "fourier": (Fourier, (3, 2, 16), [6, 6]),
    "fourier_convolution": (FourierConvolution, (2, 2, 8, 8), [6]),
    "phases": (Phases, (16, 4), [7, 9]),
    "mixing": (Mixing, (2, 5, 3), [10]),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape, _ = NETWORKS[name]
    return make(), torch.randn(*shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_are_free_and_proven(name: str) -> None:
    model, x = made(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = ng.trace(model, x)
    assert sorted(group.size for group in graph.free) == NETWORKS[name][2]
    proof = ng.verify(model, graph, x, deep=True)
    assert proof.passed, str(proof)
    assert proof.tolerance == 1e-4


METHODS: dict[str, dict[str, Any]] = {
    "permutation": {},
    "permutation_by_activations": {"metric": "activations"},
    "optimal_transport": {},
    "optimal_transport_by_activations": {"metric": "activations"},
    "zip": {},
    "transplant": {"diversity": True},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["fourier", "phases"])
def test_a_permuted_copy_is_fused_back(name: str, method: str) -> None:
    model, x = made(name)
    other = planted(model, ng.trace(model, x), 1)
    data = {"calibration": [x]} if method == "zip" or "metric" in METHODS[method] else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fused = ng.fuse([model, other], x, method=method.partition("_by")[0], **METHODS[method], **data)
    assert torch.allclose(fused(x), model(x), atol=1e-5)


def test_the_size_of_a_weight_is_its_modulus() -> None:
    weight = torch.tensor([[3 + 4j, 0], [1, 1j]])
    assert power_sums(weight, 0, [None, None], power=1).tolist() == [5, 2]
    assert power_sums(weight, 1, [None, None], power=2).tolist() == [26, 1]


@pytest.mark.parametrize("importance", ["l1", "magnitude", "taylor", "activation"])
def test_every_importance_keeps_the_heaviest_neurons(importance: str) -> None:
    torch.manual_seed(0)
    model, x = Phases(), torch.randn(32, 4)
    with torch.no_grad():
        # these two neurons are read with purely imaginary weights, all others hardly at all
        model.b.weight.mul_(1e-3)
        model.b.weight[:, [2, 5]] = 1j * torch.randn(7, 2)
    labels = torch.randint(0, 3, (32,))
    small = ng.prune(model, x, ratio=7 / 9, importance=importance, calibration=[(x, labels)], fixed=["c.*"])
    assert torch.equal(small.turn.real, model.turn[[2, 5]].real)


def test_neurons_that_differ_in_their_imaginary_parts_lie_apart() -> None:
    model, x = made("phases")
    other = Phases()
    with torch.no_grad():
        for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
            two.copy_(torch.complex(one.real, torch.randn_like(one.real)) if "weight" in name else one)
    graph = ng.trace(model, x)
    first, second = model.state_dict(), other.state_dict()
    expected = sum(float((first[n].imag - second[n].imag).square().sum()) for n in ("a.weight", "b.weight"))
    spread = sum(float((first[n] - second[n].roll(-1, 0)).abs().square().sum()) for n in ("a.weight", "b.weight"))
    assert distance_ratio(first, second, graph) == pytest.approx(expected / spread)


def test_recovery_leaves_complex_layers_as_they_are() -> None:
    models = [made("phases")[0], Phases()]
    x = made("phases")[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fused = ng.fuse(models, x)
        plan = ng.plan(models, x)
        refitted = ng.refit(fused, plan, models, [torch.randn(64, 4)])
    assert all(torch.equal(a, b) for a, b in zip(fused.parameters(), refitted.parameters(), strict=True))
