"""Mixtures of experts as people write them: what routes rows to experts, and how experts are found."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurograft.tracing.graph import FixedReason

EXPERTS, CHOSEN, WIDTH, HIDDEN = 4, 2, 8, 12


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / shape[-1] ** 0.5)


class Stack(nn.Module):
    """The experts: a hidden layer each, their weights one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.bias = parameter(EXPERTS, HIDDEN, WIDTH), parameter(EXPERTS, HIDDEN)
        self.down = parameter(EXPERTS, WIDTH, HIDDEN)


class Mixture(nn.Module):
    """A stem, a router, a stack of experts with a hidden layer each, a head; `run` sends the rows through them."""

    def __init__(self, run: Callable[["Mixture", Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.router, self.experts = nn.Linear(WIDTH, EXPERTS), Stack()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        return self.head(h + self.run(self, h))

    def routed(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers of the chosen experts, (rows, CHOSEN) both."""
        weights, numbers = self.router(h).softmax(-1).topk(CHOSEN, -1)
        return weights / weights.sum(-1, keepdim=True), numbers


def looked_up(m: Mixture, h: Tensor) -> Tensor:
    """The weights of every row's experts, found by number."""
    weights, numbers = m.routed(h)
    y = torch.einsum("rkio,ro->rki", m.experts.up[numbers], h) + m.experts.bias[numbers]
    return (torch.einsum("rkoi,rki->rko", m.experts.down[numbers], y.relu()) * weights[..., None]).sum(1)


def first_chosen(m: Mixture, h: Tensor) -> Tensor:
    """One expert per row, as in a Switch transformer."""
    chances = m.router(h).softmax(-1)
    weight, number = chances.max(-1)
    y = torch.bmm(m.experts.up[number], h[..., None]).squeeze(-1) + m.experts.bias[number]
    return torch.bmm(m.experts.down[number], y.relu()[..., None]).squeeze(-1) * weight[:, None]


def sorted_rows(m: Mixture, h: Tensor, descending: bool = False, stale: bool = False) -> tuple[Tensor, ...]:
    """Rows in the order of their experts, where they came from, their weights, and where each expert's rows end."""
    weights, numbers = m.routed(h)
    flat = numbers.flatten()
    ordered, origin = flat.sort(descending=descending)
    counted = m.routed(h * 0.5)[1].flatten() if stale else ordered
    ends = torch.bincount(counted, minlength=EXPERTS).cumsum(0).to(torch.int32)
    return h[origin // CHOSEN], origin, weights.flatten()[origin], ends, ordered


def grouped(m: Mixture, h: Tensor, **how: bool) -> Tensor:
    """Rows sorted by expert, one grouped product, and back by an inverse permutation."""
    rows, origin, weights, ends, ordered = sorted_rows(m, h, **how)
    y = F.grouped_mm(rows, m.experts.up.transpose(1, 2), offs=ends) + m.experts.bias[ordered]
    y = F.grouped_mm(y.relu(), m.experts.down.transpose(1, 2), offs=ends) * weights[:, None]
    return y[origin.argsort()].view(len(h), CHOSEN, WIDTH).sum(1)


def grouped_and_added(m: Mixture, h: Tensor) -> Tensor:
    """The same, the results added to their rows."""
    rows, origin, weights, ends, ordered = sorted_rows(m, h)
    y = F.grouped_mm(rows, m.experts.up.transpose(1, 2), offs=ends) + m.experts.bias[ordered]
    y = F.grouped_mm(y.relu(), m.experts.down.transpose(1, 2), offs=ends) * weights[:, None]
    return torch.zeros_like(h).index_add(0, origin // CHOSEN, y)


def grouped_and_written(m: Mixture, h: Tensor) -> Tensor:
    """The same, the results written to their places."""
    rows, origin, weights, ends, ordered = sorted_rows(m, h)
    y = F.grouped_mm(rows, m.experts.up.transpose(1, 2), offs=ends) + m.experts.bias[ordered]
    y = F.grouped_mm(y.relu(), m.experts.down.transpose(1, 2), offs=ends) * weights[:, None]
    out = torch.empty_like(y)
    out[origin] = y
    return out.view(len(h), CHOSEN, WIDTH).sum(1)


def every(m: Mixture, h: Tensor) -> Tensor:
    """What every expert says, (rows, EXPERTS, WIDTH)."""
    y = torch.einsum("ro,eio->rei", h, m.experts.up) + m.experts.bias
    return torch.einsum("rei,eoi->reo", y.relu(), m.experts.down)


def soft(m: Mixture, h: Tensor) -> Tensor:
    """All experts, weighed."""
    return (every(m, h) * m.router(h).softmax(-1)[..., None]).sum(1)


def scattered(m: Mixture, h: Tensor) -> Tensor:
    """All experts, the weights of those not chosen are zero."""
    weights, numbers = m.routed(h)
    return (every(m, h) * torch.zeros(len(h), EXPERTS).scatter(1, numbers, weights)[..., None]).sum(1)


def one_hot(m: Mixture, h: Tensor) -> Tensor:
    """All experts, chosen by a mask."""
    weights, numbers = m.routed(h)
    return torch.einsum("reo,rke,rk->ro", every(m, h), F.one_hot(numbers, EXPERTS).float(), weights)


def compared(m: Mixture, h: Tensor) -> Tensor:
    """All experts, chosen by comparing numbers with 0, 1, 2, …"""
    weights, numbers = m.routed(h)
    mask = (numbers[..., None] == torch.arange(EXPERTS)).float()
    return torch.einsum("reo,rke,rk->ro", every(m, h), mask, weights)


def gathered(m: Mixture, h: Tensor) -> Tensor:
    """All experts, and the results of the chosen ones."""
    weights, numbers = m.routed(h)
    said = every(m, h).gather(1, numbers[..., None].expand(-1, -1, WIDTH))
    return (said * weights[..., None]).sum(1)


def by_thirds(m: Mixture, h: Tensor) -> Tensor:
    """Experts in two teams of two: first a team is chosen, then experts of that team."""
    logits = m.router(h).softmax(-1)
    team = logits.view(-1, 2, 2).sum(-1).topk(1, -1).indices
    mask = torch.zeros(len(h), 2).scatter(1, team, 1.0)[..., None].expand(-1, -1, 2).reshape(-1, EXPERTS)
    weights, numbers = (logits * mask).topk(CHOSEN, -1)
    return (every(m, h) * torch.zeros(len(h), EXPERTS).scatter(1, numbers, weights)[..., None]).sum(1)


def one_by_one(m: Mixture, h: Tensor) -> Tensor:
    """Experts in a loop over their numbers."""
    weights, numbers = m.routed(h)
    out = torch.zeros_like(h)
    for e in range(EXPERTS):
        rows, place = torch.where(numbers == e)
        y = F.linear(h[rows], m.experts.up[e], m.experts.bias[e]).relu_()
        out.index_add_(0, rows, F.linear(y, m.experts.down[e]) * weights[rows, place, None])
    return out


def all_rows_one_by_one(m: Mixture, h: Tensor) -> Tensor:
    """Every expert sees all rows, those that are not its own weigh nothing."""
    weights, numbers = m.routed(h)
    out = torch.zeros_like(h)
    for e in range(EXPERTS):
        y = F.linear(F.linear(h, m.experts.up[e], m.experts.bias[e]).relu(), m.experts.down[e])
        out = out + y * (weights * (numbers == e)).sum(-1, keepdim=True)
    return out


def said_and_stacked(m: Mixture, h: Tensor) -> Tensor:
    """What the experts say, one by one, then stacked."""
    weights, numbers = m.routed(h)
    said = [F.linear(h, m.experts.up[e], m.experts.bias[e]).relu() @ m.experts.down[e].t() for e in range(EXPERTS)]
    return (torch.stack(said, 1).gather(1, numbers[..., None].expand(-1, -1, WIDTH)) * weights[..., None]).sum(1)


def python_sum(m: Mixture, h: Tensor) -> Tensor:
    """The same experts, summed up by Python."""
    weights, numbers = m.routed(h)
    shares = [(weights * (numbers == e)).sum(-1, keepdim=True) for e in range(EXPERTS)]
    said = [F.linear(h, m.experts.up[e], m.experts.bias[e]).relu() @ m.experts.down[e].t() for e in range(EXPERTS)]
    return sum((y * share for y, share in zip(said, shares, strict=True)), torch.zeros(()))


FOLLOWED: dict[str, Callable[[Mixture, Tensor], Tensor]] = {
    "looked_up": looked_up,
    "first_chosen": first_chosen,
    "grouped": grouped,
    "grouped_and_added": grouped_and_added,
    "grouped_and_written": grouped_and_written,
    "soft": soft,
    "scattered": scattered,
    "one_hot": one_hot,
    "compared": compared,
    "gathered": gathered,
    "one_by_one": one_by_one,
    "all_rows_one_by_one": all_rows_one_by_one,
    "said_and_stacked": said_and_stacked,
    "python_sum": python_sum,
}


def numbers_added(m: Mixture, h: Tensor) -> Tensor:
    """The numbers of the experts enter the result."""
    return looked_up(m, h) + m.routed(h)[1].sum(-1, keepdim=True) * 0.1


def numbers_embedded(m: Mixture, h: Tensor) -> Tensor:
    """The numbers of the experts are looked up in a table that has an order of its own."""
    return looked_up(m, h) + torch.linspace(0, 1, EXPERTS)[m.routed(h)[1]].sum(-1, keepdim=True)


def read_by_python(m: Mixture, h: Tensor) -> Tensor:
    """Python reads a number."""
    return looked_up(m, h) * (1.0 + int(m.routed(h)[1][0, 0]))


def cumulative(m: Mixture, h: Tensor) -> Tensor:
    """Sorted rows are summed up one after the other."""
    rows, origin, weights, _, ordered = sorted_rows(m, h)
    y = torch.bmm(m.experts.up[ordered], rows[..., None]).squeeze(-1) + m.experts.bias[ordered]
    y = torch.bmm(m.experts.down[ordered], y.relu()[..., None]).squeeze(-1) * weights[:, None]
    return y.cumsum(0)[origin.argsort()].view(len(h), CHOSEN, WIDTH).sum(1)


def weighed_by_place(m: Mixture, h: Tensor) -> Tensor:
    """Sorted rows are weighed by their places."""
    rows, origin, _, ends, ordered = sorted_rows(m, h)
    y = F.grouped_mm(rows, m.experts.up.transpose(1, 2), offs=ends) + m.experts.bias[ordered]
    y = F.grouped_mm(y.relu(), m.experts.down.transpose(1, 2), offs=ends) * torch.linspace(0, 1, len(rows))[:, None]
    return y[origin.argsort()].view(len(h), CHOSEN, WIDTH).sum(1)


def looping(m: Mixture, h: Tensor, experts: range = range(EXPERTS), kind: str = "") -> Tensor:
    """A loop over experts in which one is not like the others, as `kind` says."""
    weights, numbers = m.routed(h)
    out, count = torch.zeros_like(h), torch.ones(1)
    for e in experts:
        rows, place = torch.where(numbers == e)
        x = h[rows] + out[rows] if kind == "reads_the_sum" else h[rows]
        y = F.linear(F.linear(x, m.experts.up[e], m.experts.bias[e]).relu(), m.experts.down[e])
        if kind == "by_number":
            y = y * (1 + e)
        if kind == "counted":
            y = y * count
            count.add_(0.5)
        if kind == "one_louder" and e == 1:
            y = y * 2
        given = y * weights[rows, place, None]
        out = out.index_add(0, rows, given) if kind == "anew" else out.index_add_(0, rows, given)
    return out


def neighbours(m: Mixture, h: Tensor) -> Tensor:
    """Every expert hears the one before it."""
    said = [F.linear(h, m.experts.up[e], m.experts.bias[e]).relu() @ m.experts.down[e].t() for e in range(EXPERTS)]
    weights, numbers = m.routed(h)
    out = torch.zeros_like(h)
    for e in range(EXPERTS):
        out = out + (said[e] + said[e - 1].tanh()) * (weights * (numbers == e)).sum(-1, keepdim=True)
    return out


def one_after_another(m: Mixture, h: Tensor) -> Tensor:
    """Experts as layers, each on what the one before made."""
    for e in range(EXPERTS):
        mine = (m.routed(h)[1] == e).any(-1, keepdim=True)
        h = h + F.linear(F.linear(h, m.experts.up[e]).relu(), m.experts.down[e]) * mine
    return h


def joined(m: Mixture, h: Tensor) -> Tensor:
    """Shares of the experts side by side, read by position."""
    numbers = m.routed(h)[1]
    shares = torch.cat([(numbers == e).any(-1, keepdim=True) for e in range(EXPERTS)], -1)
    return looked_up(m, h) + (shares * torch.linspace(0, 1, EXPERTS)).sum(-1, keepdim=True)


# experts that are not all alike, or not known to be: fixed, and the kind of reason
FIXED: dict[str, tuple[Callable[[Mixture, Tensor], Any], FixedReason]] = {
    "numbers_added": (numbers_added, FixedReason.ORDER),
    "numbers_embedded": (numbers_embedded, FixedReason.POSITIONS),
    "read_by_python": (read_by_python, FixedReason.ORDER),
    "descending": (lambda m, h: grouped(m, h, descending=True), FixedReason.ORDER),
    "bounds_of_other_rows": (lambda m, h: grouped(m, h, stale=True), FixedReason.POSITIONS),
    "cumulative": (cumulative, FixedReason.ORDER),
    "weighed_by_place": (weighed_by_place, FixedReason.ORDER),
    "some_left_out": (lambda m, h: looping(m, h, range(1, EXPERTS)), FixedReason.ORDER),
    "by_number": (lambda m, h: looping(m, h, kind="by_number"), FixedReason.ORDER),
    "counted": (lambda m, h: looping(m, h, kind="counted"), FixedReason.ORDER),
    "one_louder": (lambda m, h: looping(m, h, kind="one_louder"), FixedReason.ORDER),
    "reads_the_sum": (lambda m, h: looping(m, h, kind="reads_the_sum"), FixedReason.ORDER),
    "reads_the_sum_anew": (lambda m, h: looping(m, h, kind="anew") * 1.0 + looping(m, h, range(2)), FixedReason.ORDER),
    "neighbours": (neighbours, FixedReason.ORDER),
    "one_after_another": (one_after_another, FixedReason.ORDER),
    "joined": (joined, FixedReason.ORDER),
}


class Separate(nn.Module):
    """Experts that are modules of their own, in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.router, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH)) for _ in range(EXPERTS)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        weights, numbers = self.router(h).softmax(-1).topk(CHOSEN, -1)
        out = torch.zeros_like(h)
        for e, expert in enumerate(self.experts):
            rows, place = torch.where(numbers == e)
            out.index_add_(0, rows, expert(h[rows]) * weights[rows, place, None])
        return self.head(h + out)


class Codebook(nn.Module):
    """Rows are replaced by the nearest entries of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.table, self.head = nn.Linear(5, WIDTH), nn.Embedding(7, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(torch.cdist(self.stem(x), self.table.weight).argmin(-1)))


def rows(count: int = 32, seed: int = 5) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))
