"""The line between two networks, before and after alignment."""

from pathlib import Path

import pytest
import torch
from tests.networks import MLP, build
from torch import nn
from torch.nn import functional as F

import neurograft as ng
from neurograft.errors import InputError, OptionError
from neurograft.evaluating.barrier import Barrier, LossCurve

X = torch.randn(40, 12, generator=torch.Generator().manual_seed(1))
BATCHES = [(X[:20], X[:20, :10].argmax(1)), (X[20:], X[20:, :10].argmax(1))]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return ng.finetune(MLP(12, 16, 14, 10, bias=True), BATCHES, epochs=30, lr=0.1, progress=False).eval()


def permuted(net: nn.Module) -> nn.Module:
    graph = ng.trace(net, X[:2])
    generator = torch.Generator().manual_seed(3)
    return ng.permute(net, graph, {g.name: torch.randperm(g.size, generator=generator) for g in graph.outermost})


def test_alignment_takes_away_the_barrier_to_the_own_permuted_copy(net: nn.Module) -> None:
    found = ng.barrier(net, permuted(net), BATCHES, points=5)
    assert found.shares == (0, 0.25, 0.5, 0.75, 1)
    assert found.loss_before > 0.3
    assert found.loss_after < 1e-5
    assert found.accuracy_before > 0.2
    assert found.accuracy_after < 1e-9
    assert "loss barrier" in str(found)


def test_the_line_is_the_line(net: nn.Module) -> None:
    torch.manual_seed(5)
    other = MLP(12, 16, 14, 10, bias=True)
    found = ng.barrier(net, other, BATCHES, method="average", points=3)
    middle = MLP(12, 16, 14, 10, bias=True)
    with torch.no_grad():
        for m, a, b in zip(middle.parameters(), net.parameters(), other.parameters(), strict=True):
            m.copy_((a + b) / 2)
        labels = torch.cat([y for _, y in BATCHES])
        expected = [float(F.cross_entropy(n(X), labels)) for n in (net, middle, other)]
    assert found.before.loss == pytest.approx(expected, rel=1e-4)
    assert found.before == found.after


def test_heights_are_measured_from_the_line_between_the_ends() -> None:
    shares = (0.0, 0.5, 1.0)
    line = LossCurve(loss=(1.0, 4.0, 2.0), accuracy=(0.9, 0.1, 0.7))
    assert line.loss_barrier(shares) == pytest.approx(2.5)
    assert line.accuracy_barrier(shares) == pytest.approx(0.7)
    flat = LossCurve(loss=(2.0, 1.0, 2.0), accuracy=(0.5, 0.9, 0.5))
    assert (flat.loss_barrier(shares), flat.accuracy_barrier(shares)) == (0.0, 0.0)


def test_recovery_is_applied_between_the_ends_only(net: nn.Module) -> None:
    seen: list[nn.Module] = []

    def recover(network: nn.Module) -> nn.Module:
        seen.append(network)
        return network

    ng.barrier(net, net, BATCHES, method="average", points=4, recover=recover)
    assert len(seen) == 4  # two inner points on each of two lines


def test_networks_come_back_as_they_were() -> None:
    a, b = build("vgg_batch_norm", 0).train(), build("vgg_batch_norm", 1).train()
    before = [{k: v.clone() for k, v in n.state_dict().items()} for n in (a, b)]
    images = torch.randn(6, 3, 8, 8)
    ng.barrier(a, b, [(images, torch.arange(6))], points=3)
    for network, state in zip((a, b), before, strict=True):
        assert network.training
        assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


def test_a_method_brings_its_own_metric(net: nn.Module) -> None:
    method = ng.Permutation(metric="activations")
    found = ng.barrier(
        net, permuted(net), BATCHES, method=method, calibration=[X], points=3, metric=lambda outputs, _: outputs.mean()
    )
    assert found.loss_after == pytest.approx(0, abs=1e-5)
    mean = float(net(X).detach().mean())
    assert found.after.accuracy == pytest.approx((mean, mean, mean), abs=1e-5)


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    line = LossCurve((1.0, 3.0, 1.0), (0.9, 0.2, 0.9))
    path = tmp_path / "barrier.png"
    figure = Barrier((0.0, 0.5, 1.0), line, line, "permutation").plot(path)
    assert path.stat().st_size > 1000
    left, right = figure.axes
    assert [list(drawn.get_ydata()) for drawn in left.lines] == [[1.0, 3.0, 1.0]] * 2
    assert list(right.lines[0].get_ydata()) == [90.0, 20.0, 90.0]


@pytest.mark.parametrize(
    ("batches", "options", "error", "message"),
    [
        (BATCHES, {"points": 1}, OptionError, "at least 2, got 1"),
        (BATCHES, {"method": "transplant"}, OptionError, "has no line between them"),
        (BATCHES, {"method": "permute"}, OptionError, "unknown method 'permute'"),
        (BATCHES, {"metric": "activations"}, OptionError, r"method=Permutation\(metric='activations'\)"),
        ([], {}, InputError, "batches are empty"),
        ([X], {"method": "average"}, InputError, "has no labels"),
        (iter(BATCHES), {}, InputError, "one-shot"),
    ],
)
def test_bad_input_is_refused(
    net: nn.Module, batches: object, options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ng.barrier(net, net, batches, **options)
