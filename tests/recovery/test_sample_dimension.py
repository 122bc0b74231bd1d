"""Batches whose first dimension is not the sample: cut where samples lie, or used whole."""

from math import isfinite
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import neurograft as ng
from neurograft.members.sample_dimension import sample_dimension
from neurograft.recovery.samples import read_samples

pytestmark = pytest.mark.filterwarnings("ignore:this is member")


class Recurrent(nn.Module):
    """A recurrent layer and a head on every step, or on the last one."""

    def __init__(self, batch_first: bool, last: bool = False) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 16, batch_first=batch_first), nn.Linear(16, 4)
        self.batch_first, self.last = batch_first, last

    def forward(self, x: Tensor) -> Tensor:
        steps = self.rnn(x)[0]
        if self.last:
            steps = steps[:, -1] if self.batch_first else steps[-1]
        return self.head(steps)


class DenseGraph(nn.Module):
    """Features of nodes, and a matrix of edges between all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.b(edges @ (edges @ self.a(x)).relu())


class Images(nn.Module):
    """A list of images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, *images: Tensor) -> Tensor:
        return self.head(torch.stack([self.conv(image[None]).relu().mean((2, 3))[0] for image in images]))


class Standardised(nn.Module):
    """Compares every sample with the others in its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x - x.mean(0)).relu())


def edges(nodes: int) -> Tensor:
    return torch.rand(nodes, nodes).softmax(1)


CASES: dict[str, tuple[nn.Module, Any, int | None]] = {
    "batch first": (Recurrent(True), torch.randn(20, 9, 6), 0),
    "time first": (Recurrent(False), torch.randn(9, 20, 6), 1),
    "time first, last step": (Recurrent(False, last=True), torch.randn(9, 20, 6), 1),
    "as long as wide": (Recurrent(False, last=True), torch.randn(9, 9, 6), 1),
    "graph": (DenseGraph(), (torch.randn(9, 5), edges(9)), None),
    "images": (Images(), tuple(torch.randn(3, n, 9) for n in (7, 8, 9)), None),
    "images of one size": (Images(), tuple(torch.randn(3, 9, 9) for _ in range(3)), None),
    "compared": (Standardised(), torch.randn(20, 5), None),
    "norms": (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), torch.randn(20, 5), 0),
    "flattened": (nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(0, 1)), torch.randn(20, 2, 9), 0),
    "named": (Recurrent(False), {"x": torch.randn(9, 20, 6)}, 1),
    "single": (Recurrent(True), torch.randn(1, 9, 6), 0),
}


@pytest.mark.parametrize("case", CASES)
def test_where_samples_lie(case: str) -> None:
    model, batch, dim = CASES[case]
    assert sample_dimension(model, batch) == dim


def test_batches_are_cut_and_joined_where_samples_lie() -> None:
    model, x = Recurrent(False), torch.randn(9, 20, 6)
    samples = read_samples([x, x[:, :7]], torch.device("cpu")).seen_by(model)
    assert samples.counts == (20, 7)
    (joined,) = samples.joined().batches
    assert torch.equal(joined, torch.cat([x, x[:, :7]], 1))
    assert samples.cut(15).counts == (15, 5, 7)
    assert torch.equal(torch.cat(samples.cut(15).batches, 1), joined)
    assert samples.small()[0].shape == (9, 2, 6)


def away(model: nn.Module, members: list[nn.Module], x: Tensor) -> float:
    with torch.no_grad():
        wanted = (members[0](x) + members[1](x)) / 2
        return float((model(x) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_a_recurrent_network_gains_as_much_with_time_first(split: bool, last: bool) -> None:
    found = {}
    for batch_first in (True, False):
        torch.manual_seed(0)
        nets: list[nn.Module] = [Recurrent(batch_first, last) for _ in range(2)]
        x, fresh = torch.randn(200, 9, 6), torch.randn(100, 9, 6)
        if not batch_first:
            x, fresh = x.transpose(0, 1).contiguous(), fresh.transpose(0, 1).contiguous()
        data = list(x.split(20, 0 if batch_first else 1)) if split else [x]
        fusion = ng.Fusion.of(ng.Members(nets, data[0]), "average")
        better = fusion.refit(data)
        assert better.report.recovery is not None
        assert better.report.recovery.samples == 200
        found[batch_first] = away(fusion.model, nets, fresh), away(better.model, nets, fresh)
    before, after = found[True]
    assert after < 0.6 * before
    assert found[False][0] == pytest.approx(before, rel=1e-3)
    assert found[False][1] == pytest.approx(after, rel=0.15)


def graphs(count: int) -> list[tuple[tuple[Tensor, Tensor]]]:
    return [((torch.randn(9 + i % 3, 5), edges(9 + i % 3)),) for i in range(count)]


@pytest.mark.parametrize("recover", ["refit", "repair"])
def test_dense_graphs_and_lists_of_images_are_used_whole(recover: Any) -> None:
    torch.manual_seed(0)
    images = [(tuple(torch.randn(3, 8 + i % 3, 9) for i in range(3)),) for _ in range(30)]
    for make, data in ((DenseGraph, graphs(40)), (Images, images)):
        nets = [make() for _ in range(2)]
        inputs = data[0][0]
        fusion = ng.Fusion.of(ng.Members(nets, inputs), "average")
        better = fusion.recovered(recover, data)
        with torch.no_grad():
            wanted = (nets[0](*inputs) + nets[1](*inputs)) / 2
            errors = [float((model(*inputs) - wanted).norm()) for model in (fusion.model, better.model)]
        assert errors[1] < errors[0] if recover == "refit" else isfinite(errors[1])


def test_slopes_of_a_network_with_time_first_are_those_with_batch_first() -> None:
    torch.manual_seed(0)
    net, other = Recurrent(True, last=True), Recurrent(False, last=True)
    other.load_state_dict(net.state_dict())
    x, labels = torch.randn(16, 16, 6), torch.randint(0, 4, (16,))
    pruned = [
        ng.prune(model, given, importance="taylor", calibration=[(given, labels)])
        for model, given in ((net, x), (other, x.transpose(0, 1).contiguous()))
    ]
    for a, b in zip(pruned[0].parameters(), pruned[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)
