"""Tensors whose other axes differ along a dim: layers, directions and branches stay groups of their own."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import neurograft as ng
from tests.planting import planted

Join = Callable[[Tensor, Tensor, Tensor], Tensor]


class Branches(nn.Module):
    """Two branches of 6 neurons and a gate of 2, joined by a function of (a, b, gate), and a head."""

    def __init__(self, join: Join) -> None:
        super().__init__()
        self.join = join
        self.a, self.b, self.gate = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 2)
        with torch.no_grad():
            width = self.joined(torch.randn(3, 4))[0].shape[-1]
        self.head, self.side = nn.Linear(width, 3), nn.Linear(2, 3)

    def joined(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate = self.gate(x).softmax(-1)
        return self.join(self.a(x).tanh(), self.b(x).sigmoid(), gate), gate

    def forward(self, x: Tensor) -> Tensor:
        y, gate = self.joined(x)
        return self.head(y) + self.side(gate)


def written(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    out = a.new_zeros(a.shape[0], 2, 6)
    out[:, 0] = a
    out[:, 1] = b
    return out.flatten(1)


def written_in_front(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    out = a.new_empty(2, *a.shape)
    out[0], out[1] = a, b
    return torch.cat([out[1], out[0]], -1)


def written_in_slices(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    out = a.new_zeros(a.shape[0], 2, 6)
    out[:, 0:1] = a.unsqueeze(1)
    out[:, 1:2, :] = b.unsqueeze(1)
    return out.flatten(1)


def written_by_number(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    out = a.new_zeros(a.shape[0], 3, 6)
    out[:, [0, 2]] = torch.stack([a, b], 1)
    return out.flatten(1)


def written_twice_indexed(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    out = torch.zeros(2, 2, *a.shape, dtype=a.dtype)
    for i in range(2):
        out[i, 0] = a * (i + 1)
        out[i, 1] = b - i
    return out.permute(2, 0, 1, 3).flatten(1)


def written_and_added_to(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    out = torch.zeros(2, *a.shape).type_as(a)
    for _step in range(3):
        out[0] = out[0] + a
        out[1].mul_(0.5).add_(b)
    return out.transpose(0, 1).reshape(a.shape[0], 12)


def written_whole(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    out = a.new_empty(1, 2, *a.shape)
    out[0] = torch.stack([a, b])
    out += 1
    return out[0].transpose(0, 1).flatten(1)


def swapped(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    both = torch.stack([a, b], 1)
    return torch.cat([both[:, 1], both[:, 0]], -1)


def of_three(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    every = torch.stack([a, b, -a])
    return torch.cat([*every[::2], every[1:2].squeeze(0), *every.flip(0)[:2]], -1)


def by_number(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    both = torch.stack([a, b], 1)
    return torch.cat([both[:, [1, 0]], both.index_select(1, torch.tensor([1]))], 1).flatten(1)


def scattered(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    out = torch.select_scatter(a.new_zeros(a.shape[0], 2, 6), a, 1, 0)
    return torch.slice_scatter(out, b[:, None], 1, 1, 2).flatten(1)


def halves(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    one, other = torch.cat([a, b]).chunk(2)
    return torch.cat([one, other.relu()], -1)


def uncat(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    both = torch.cat([a, b], -1).view(-1, 2, 6)
    return torch.cat([both[:, 1], both[:, 0]], -1)


def split_in_heads(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    # the branches as heads of 2 and of 1 times 6 neurons
    every = torch.cat([a, b, b.exp()], -1).view(-1, 3, 6)
    first, second = every.split([1, 2], 1)
    return torch.cat([first.flatten(1), second.amax(1)], -1)


# name -> how the branches are joined, and the units of the free groups but for the gate's
JOINS: dict[str, tuple[Join, list[int]]] = {
    "stack": (lambda a, b, _: torch.stack([a, b], 1).flatten(1), [6, 6]),
    "stack_in_front": (lambda a, b, _: torch.stack([a, b]).transpose(0, 1).reshape(len(a), 12), [6, 6]),
    "cat_along_a_new_dim": (lambda a, b, _: torch.cat([a[:, None], b[:, None]], 1).flatten(1), [6, 6]),
    "written": (written, [6, 6]),
    "written_in_front": (written_in_front, [6, 6]),
    "written_in_slices": (written_in_slices, [6, 6]),
    "written_by_number": (written_by_number, [6, 6, 6]),
    "written_twice_indexed": (written_twice_indexed, [6, 6]),
    "written_and_added_to": (written_and_added_to, [6, 6]),
    "written_whole": (written_whole, [6, 6]),
    "swapped": (swapped, [6, 6]),
    "of_three": (of_three, [6, 6]),
    "by_number": (by_number, [6, 6]),
    "scattered": (scattered, [6, 6]),
    "unbind": (lambda a, b, _: torch.cat(torch.stack([a, b]).unbind(0)[::-1], -1), [6, 6]),
    "halves_of_a_batch": (halves, [6, 6]),
    "uncat": (uncat, [6, 6]),
    "split_in_heads": (split_in_heads, [6, 6]),
    "gated": (lambda a, b, g: (torch.stack([a, b], 1) * g[..., None]).flatten(1), [6, 6]),
    "gated_expanded": (lambda a, b, g: (torch.stack([a, b], 1) * g[..., None].expand(-1, -1, 6)).flatten(1), [6, 6]),
    "normalised": (lambda a, b, _: F.normalize(torch.stack([a, b], 1), dim=-1).softmax(-1).flatten(1), [6, 6]),
    "summed_by_branch": (lambda a, b, _: (torch.stack([a, b], 1) + torch.stack([b, a], 1)).flatten(1), [6]),
    "squares_by_branch": (lambda a, b, _: (torch.stack([a, b], 1) * torch.stack([a, b], 1)).flatten(1), [6, 6]),
    "stack_of_stacks": (
        lambda a, b, _: torch.stack([torch.stack([a, b]), torch.stack([b, -a])]).permute(2, 1, 0, 3).flatten(1),
        [6, 6],
    ),
    "branches_meet_in_a_sum": (lambda a, b, _: torch.stack([a, b]).sum(0), [6]),
    "branches_meet_in_a_mean": (lambda a, b, _: torch.stack([a, b], 1).mean(1), [6]),
    "branches_meet_in_the_largest": (lambda a, b, _: torch.stack([a, b], 1).max(1).values, [6]),
    "branches_meet_in_a_gated_sum": (lambda a, b, g: torch.einsum("bsf,bs->bf", torch.stack([a, b], 1), g), [6]),
    "branches_meet_in_a_running_sum": (lambda a, b, _: torch.stack([a, b], 1).cumsum(1).flatten(1), [6]),
    "branches_meet_in_pairs": (
        lambda a, b, _: (torch.stack([a, b], 1)[:, :, None] * torch.stack([a, b], 1)[:, None]).flatten(1),
        [6],
    ),
    "branches_meet_in_scores": (
        lambda a, b, _: (torch.stack([a, b], 1) @ torch.stack([a, b], 1).transpose(1, 2)).flatten(1),
        [6],
    ),
    "branches_meet_in_a_softmax": (lambda a, b, _: torch.stack([a, b], 1).softmax(1).flatten(1), [6]),
    "interleaved": (lambda a, b, _: torch.stack([a, b], -1).flatten(1), [6]),
}


def free_units(graph: ng.NeuronGraph, but: str) -> list[int]:
    return sorted(group.size for group in graph.free if not group.name.startswith(but))


def traced(model: nn.Module, x: Tensor) -> ng.NeuronGraph:
    """The graph, with nothing to warn of, every intermediate tensor proven."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = ng.trace(model, x)
    proof = ng.verify(model, graph, x, deep=True)
    assert proof.passed, str(proof)
    return graph


def assert_fuses_back(model: nn.Module, graph: ng.NeuronGraph, x: Tensor) -> None:
    """The same function with its neurons in another order is aligned exactly."""
    other = planted(model, graph, 3)
    expected = model(x)
    assert torch.allclose(other(x), expected, atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fused = ng.fuse([model, other], x, method="permutation")
    assert torch.allclose(fused(x), expected, atol=1e-10)


@pytest.mark.parametrize("name", JOINS)
def test_join(name: str) -> None:
    torch.manual_seed(0)
    join, units = JOINS[name]
    model, x = Branches(join).double(), torch.randn(5, 4, dtype=torch.float64)
    graph = traced(model, x)
    assert free_units(graph, "gate") == units
    assert_fuses_back(model, graph, x)


class Recurrent(nn.Module):
    """A recurrent layer of 6 neurons per depth and direction, and a head that reads a function of its last states."""

    def __init__(self, kind: str, read: Callable[[Tensor], Tensor], depth: int, directions: int) -> None:
        super().__init__()
        self.read = read
        self.layer = getattr(nn, kind)(4, 6, depth, bidirectional=directions == 2)
        self.head = nn.Linear(read(torch.randn(depth * directions, 3, 6)).shape[-1], 2)

    def forward(self, x: Tensor) -> Tensor:
        _, states = self.layer(x)
        return self.head(self.read(states[0] if isinstance(states, tuple) else states))


# name -> what the head reads of (depth * directions, batch, 6), depth, directions, groups
READS: dict[str, tuple[Callable[[Tensor], Tensor], int, int, int]] = {
    "last": (lambda h: h[-1], 2, 1, 2),
    "all": (lambda h: h.transpose(0, 1).reshape(h.shape[1], -1), 2, 1, 2),
    "permuted": (lambda h: h.permute(1, 0, 2).flatten(1), 3, 1, 3),
    "both_directions": (lambda h: torch.cat([h[-2], h[-1]], -1), 2, 2, 4),
    "by_depth": (lambda h: h.view(2, 2, h.shape[1], 6)[-1].transpose(0, 1).flatten(1), 2, 2, 4),
    "by_direction": (lambda h: torch.cat([h[0::2], h[1::2]], -1)[-1], 2, 2, 4),
    "unbind": (lambda h: torch.cat(h.unbind(0)[::-1], -1), 2, 2, 4),
    "directions_are_added": (lambda h: h.view(2, 2, h.shape[1], 6).sum(1)[-1], 2, 2, 2),
    "mean": (lambda h: h.mean(0), 2, 1, 1),
}


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("name", READS)
def test_last_states_of_recurrent_layers(kind: str, name: str) -> None:
    torch.manual_seed(0)
    read, depth, directions, groups = READS[name]
    model, x = Recurrent(kind, read, depth, directions).double(), torch.randn(5, 3, 4, dtype=torch.float64)
    graph = traced(model, x)
    assert free_units(graph, "none") == [6] * groups
    assert_fuses_back(model, graph, x)


class Translator(nn.Module):
    """An encoder whose last states start a decoder."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.encoder, self.decoder = (getattr(nn, kind)(4, 6, 2, batch_first=True) for _ in range(2))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decoder(x.flip(1), self.encoder(x)[1])[0])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_states_handed_on_are_the_neurons_of_their_layer(kind: str) -> None:
    torch.manual_seed(0)
    model, x = Translator(kind).double(), torch.randn(3, 5, 4, dtype=torch.float64)
    graph = traced(model, x)
    assert free_units(graph, "none") == [6, 6]
    for group in graph.free:
        names = {slot.tensor for slot in group.slots if "weight_hh" in slot.tensor}
        assert names in ({f"encoder.weight_hh_l{i}", f"decoder.weight_hh_l{i}"} for i in range(2))
    assert_fuses_back(model, graph, x)


class Cells(nn.Module):
    """Two layers of cells whose states lie in one tensor that is written to at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.GRUCell(4, 6), nn.GRUCell(6, 6)])
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        states = x.new_zeros(2, x.shape[0], 6)
        said = x.new_zeros(x.shape[0], x.shape[1], 12)
        for t in range(x.shape[1]):
            y = x[:, t]
            for i, cell in enumerate(self.cells):
                states[i] = y = cell(y, states[i].clone())
            said[:, t] = states.transpose(0, 1).flatten(1)
        return self.head(said)


def test_states_written_into_one_tensor() -> None:
    torch.manual_seed(0)
    model, x = Cells().double(), torch.randn(3, 4, 4, dtype=torch.float64)
    graph = traced(model, x)
    assert free_units(graph, "none") == [6, 6]
    assert_fuses_back(model, graph, x)


class Directions(nn.Module):
    """A recurrent layer whose output is viewed as (time, batch, directions, neurons)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(4, 6, bidirectional=True)
        self.forwards, self.backwards = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)[0].view(*x.shape[:2], 2, 6)
        return self.forwards(y[-1, :, 0]) + self.backwards(y[0, :, 1])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_directions_of_an_output(kind: str) -> None:
    torch.manual_seed(0)
    model, x = Directions(kind).double(), torch.randn(5, 3, 4, dtype=torch.float64)
    graph = traced(model, x)
    assert free_units(graph, "none") == [6, 6]
    assert_fuses_back(model, graph, x)


class Experts(nn.Module):
    """Weights of several layers stacked, so that one product runs them all."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(4, 6) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(6, 2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        up, down = (torch.stack([layer.weight.t() for layer in layers]) for layers in (self.up, self.down))
        bias = torch.stack([layer.bias for layer in self.up])[:, None]
        return (torch.baddbmm(bias, x.expand(3, -1, -1), up).tanh() @ down).mean(0)


def test_stacked_weights_keep_neurons_of_their_own() -> None:
    torch.manual_seed(0)
    model, x = Experts().double(), torch.randn(5, 4, dtype=torch.float64)
    graph = ng.trace(model, x)
    assert ng.verify(model, graph, x, deep=True).passed
    assert free_units(graph, "none") == [6, 6, 6]
    slots = {(slot.tensor, slot.dim, slot.role) for slot in graph["up.1.weight:0"].slots}
    assert slots == {("up.1.weight", 0, "out"), ("up.1.bias", 0, "out"), ("down.1.weight", 1, "in")}


class Packed(nn.Module):
    """Words of sentences of several lengths, packed for a recurrent layer."""

    def __init__(self, kind: str, sort: bool) -> None:
        super().__init__()
        self.sort, self.words = sort, nn.Embedding(20, 5)
        self.layer, self.head = getattr(nn, kind)(5, 6, 2, batch_first=True, bidirectional=True), nn.Linear(24, 2)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.words(words), lengths, batch_first=True, enforce_sorted=self.sort)
        said, states = self.layer(packed)
        states = states[0] if isinstance(states, tuple) else states
        mean = pad_packed_sequence(said, batch_first=True)[0].sum(1) / lengths[:, None]
        return self.head(torch.cat([mean, states[-2], states[-1]], -1))


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_packed_sequences_keep_the_neurons_of_their_words(kind: str, sort: bool) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([7, 5, 3, 2] if sort else [3, 7, 2, 5])
    model, inputs = Packed(kind, sort).double(), (torch.randint(0, 20, (4, 7)), lengths)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = ng.trace(model, inputs)
    assert ng.verify(model, graph, inputs).passed
    assert free_units(graph, "none") == [5, 6, 6, 6, 6]
    other = planted(model, graph, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fused = ng.fuse([model, other], inputs, method="permutation")
    assert torch.allclose(fused(*inputs), model(*inputs), atol=1e-10)
