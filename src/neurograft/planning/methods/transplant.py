"""Neuron transplantation: put all members' neurons side by side and keep the most important ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from neurograft.errors import OptionError, closest
from neurograft.planning.importance import Magnitude
from neurograft.planning.maps import NeuronMap
from neurograft.planning.members import Members, check_member_weights
from neurograft.planning.plan import Filling

Tree: TypeAlias = "int | tuple[Tree, ...]"
Kept: TypeAlias = dict[int, dict[str, Tensor]]
"""member -> group -> the member's units that survive, int64, sorted."""


def transplant(
    members: Members,
    *,
    importance: Literal["magnitude", "l1"] = "magnitude",
    order: Literal["backward", "joint"] = "backward",
    strategy: Literal["flat", "iterative", "hierarchical"] = "flat",
    fraction: float | None = None,
    quota: Sequence[float] | None = None,
    ratio: float | None = None,
    width: int | Mapping[str, int] | None = None,
    balance: bool = False,
) -> Filling:
    """Keep, in every group, the n most important of all members' neurons, in their original order.

    Args:
        members: the networks.
        importance: "magnitude" (sum of squares over the group's weights) or "l1" (sum of absolutes).
        order: "backward" decides groups from the output to the input, each on what is still kept; "joint"
            scores all groups on the full networks.
        strategy: "flat" all members at once; "iterative" ((0,1),2),3 …; "hierarchical" merge-sort halves.
        fraction: two members only: the share of neurons from the second; each is scored alone.
        quota: the share of every member, summing to 1; each is scored alone.
        ratio: the share of the combined network's neurons to remove, in [0, 1); default: the members' width.
        width: neurons per group, one number for all or a mapping of group or parameter patterns to numbers.
        balance: divide every member's part of a score by its mean first, so that no member or layer wins by scale.

    Raises:
        OptionError: an option outside its range, or options that exclude each other.

    Source: Öz et al. 2024, arXiv:2502.06849, sections 3 and 4; DESIGN, section 6.
    """
    _check_choice("importance", importance, ("magnitude", "l1"))
    _check_choice("order", order, ("backward", "joint"))
    _check_choice("strategy", strategy, ("flat", "iterative", "hierarchical"))
    k = len(members.states)
    if fraction is not None:
        quota = _quota_of_fraction(fraction, quota, k)
    if quota is not None and strategy != "flat":
        raise OptionError(f"quota and fraction choose from each member alone; they exclude strategy={strategy!r}")
    sizes = fused_sizes(members, ratio, width)
    moved = frozenset(sizes)
    weights = members.weights_or(_default_weights(members, moved, strategy, fraction))
    select = _Selection(members, sizes, weights, moved, order, 2 if importance == "magnitude" else 1, balance)
    if quota is not None:
        kept = select.alone(check_member_weights(quota, k) or ())
    else:
        kept, _ = select.tree(_tree(strategy, k))
    return Filling(maps=selection_maps(members, kept, sizes), weights=weights, owned=True)


@dataclass(frozen=True, eq=False)
class _Selection:
    members: Members
    sizes: Mapping[str, int]
    weights: tuple[float, ...]
    moved: frozenset[str]
    order: str
    power: int
    balance: bool

    def tree(self, node: Tree) -> tuple[Kept, tuple[int, ...]]:
        """Select below a node first, then among what its children kept; returns survivors and the members below."""
        if isinstance(node, int):
            everything = {g: torch.arange(self.members.graphs[node][g].size) for g in self.sizes}
            return {node: everything}, (node,)
        kept: Kept = {}
        below: tuple[int, ...] = ()
        for child in node:
            survivors, names = self.tree(child)
            kept |= survivors
            below += names
        mass = sum(self.weights[m] for m in below)
        scales = {m: self.weights[m] / mass if mass else 0.0 for m in below}
        return self.decide(kept, scales, self.sizes), below

    def alone(self, quota: Sequence[float]) -> Kept:
        """Select from each member by itself, as many as its quota says."""
        counts = {g: _shares_of(n, quota) for g, n in self.sizes.items()}
        kept: Kept = {}
        for m in range(len(self.members.states)):
            own, _ = self.tree(m)
            wanted = {g: counts[g][m] for g in self.sizes}
            for g, n in wanted.items():
                if n > len(own[m][g]):
                    raise OptionError(f"the quota asks {n} neurons of {g} from member {m}, which has {len(own[m][g])}")
            kept |= self.decide(own, {m: 1.0}, wanted)
        return kept

    def decide(self, kept: Kept, scales: Mapping[int, float], sizes: Mapping[str, int]) -> Kept:
        """Decide group by group which of the units in `kept` stay."""
        graph = self.members.graph
        scorers = {
            m: Magnitude(self.members.states[m], self.members.graphs[m], self.moved, scales[m], self.power)
            for m in kept
        }
        alive: Kept = {m: dict(groups) for m, groups in kept.items()}
        chosen: Kept = {m: {} for m in kept}
        for group in (g for g in graph.backward_order if g in sizes):
            seen = alive if self.order == "backward" else kept
            scores = self._scores(scorers, group, seen)
            for m, units in _largest(scores, {m: seen[m][group] for m in kept}, sizes[group]).items():
                chosen[m][group] = units
                alive[m][group] = units
        return chosen

    def _scores(self, scorers: Mapping[int, Magnitude], group: str, alive: Kept) -> dict[int, Tensor]:
        scores = {}
        for m, scorer in scorers.items():
            others = {g: units for g, units in alive[m].items() if g != group}
            parts = scorer.contributions(group, others)
            if self.balance:
                units = alive[m][group]
                parts = [part / part[units].mean().clamp_min(torch.finfo(part.dtype).tiny) for part in parts]
            total = torch.stack(parts).sum(0) if parts else torch.zeros(scorer.graph[group].size)
            scores[m] = total / max(1, len(parts))
        return scores


def _largest(scores: Mapping[int, Tensor], candidates: Mapping[int, Tensor], n: int) -> dict[int, Tensor]:
    """The n largest scores among all members' candidates; equal scores go to the earlier member and neuron."""
    pool = torch.cat([scores[m][units].cpu() for m, units in candidates.items()])
    best = torch.zeros(len(pool), dtype=torch.bool)
    best[pool.argsort(descending=True, stable=True)[:n]] = True
    parts = torch.split(best, [len(units) for units in candidates.values()])
    return {m: units[part] for (m, units), part in zip(candidates.items(), parts, strict=True)}


def selection_maps(members: Members, kept: Kept, sizes: Mapping[str, int]) -> dict[str, tuple[NeuronMap, ...]]:
    """The maps of a selection: fused neurons are the kept ones, member 0's first."""
    maps = {}
    for group, n in sizes.items():
        found, start = [], 0
        for m, member_size in enumerate(members.sizes(group)):
            units = kept[m][group]
            target = torch.arange(start, start + len(units))
            found.append(NeuronMap.selection(target, units, n, member_size))
            start += len(units)
        maps[group] = tuple(found)
    return maps


def fused_sizes(members: Members, ratio: float | None, width: int | Mapping[str, int] | None) -> dict[str, int]:
    """How many neurons every moved group shall have: the members' number, or what `ratio` or `width` ask for.

    Raises:
        OptionError: both are given, a value is out of range, or a pattern names no group.
    """
    if ratio is not None and width is not None:
        raise OptionError("ratio and width both say how wide the fused network is; give one of them")
    if ratio is not None and not 0 <= ratio < 1:
        raise OptionError(f"ratio is the share of neurons removed, from 0 to below 1, got {ratio}")
    asked = _asked_widths(members, width)
    sizes = {}
    for group in members.graph.outermost:
        own = members.sizes(group.name)
        total = sum(own)
        n = asked.get(group.name, own[0] if ratio is None else max(1, total - round(ratio * total)))
        if not 1 <= n <= total:
            raise OptionError(
                f"group {group.name} cannot have {n} neurons: at least 1, at most the {total} of all members together"
            )
        sizes[group.name] = n
    return sizes


def _asked_widths(members: Members, width: int | Mapping[str, int] | None) -> dict[str, int]:
    outermost = [group.name for group in members.graph.outermost]
    if width is None:
        return {}
    if isinstance(width, int):
        return dict.fromkeys(outermost, width)
    asked: dict[str, int] = {}
    for pattern, n in width.items():
        names = [
            group.name
            for group in members.graph.outermost
            if fnmatch(group.name, pattern) or any(s.role == "out" and fnmatch(s.tensor, pattern) for s in group.slots)
        ]
        if not names:
            raise OptionError(f"width names no free group: {pattern!r}; {closest(pattern, outermost)}")
        asked |= dict.fromkeys(names, n)
    return asked


def _default_weights(
    members: Members, moved: frozenset[str], strategy: str, fraction: float | None
) -> tuple[float, ...]:
    k = len(members.states)
    if fraction is not None:
        return (1 - fraction, fraction)
    if strategy != "flat":
        weights = [0.0] * k
        _spread(_tree(strategy, k), 1.0, weights)
        return tuple(weights)
    last = next((g for g in members.graph.backward_order if g in moved), None)
    if last is None:
        return (1 / k,) * k
    sizes = members.sizes(last)
    return tuple(n / sum(sizes) for n in sizes)


def _spread(node: Tree, weight: float, weights: list[float]) -> None:
    if isinstance(node, int):
        weights[node] = weight
        return
    for child in node:
        _spread(child, weight / len(node), weights)


def _tree(strategy: str, k: int) -> Tree:
    if strategy == "flat":
        return tuple(range(k))
    if strategy == "iterative":
        node: Tree = 0
        for m in range(1, k):
            node = (node, m)
        return node
    return _halves(0, k)


def _halves(start: int, stop: int) -> Tree:
    count = stop - start
    if count == 1:
        return start
    if count <= 3:
        return tuple(range(start, stop))
    middle = start + count // 2
    return (_halves(start, middle), _halves(middle, stop))


def _quota_of_fraction(fraction: float, quota: Sequence[float] | None, k: int) -> tuple[float, float]:
    if quota is not None:
        raise OptionError("fraction and quota both say how many neurons each member gives; give one of them")
    if k != 2:
        raise OptionError(f"fraction is for two members, got {k}; use quota=[...]")
    if not 0 <= fraction <= 1:
        raise OptionError(f"fraction is the second member's share, between 0 and 1, got {fraction}")
    return (1 - fraction, fraction)


def _shares_of(n: int, quota: Sequence[float]) -> list[int]:
    """Cut n into parts proportional to the quota, the last of them rounded first (round(f·n) from the second)."""
    counts = []
    left, mass = n, 1.0
    for share in reversed(quota):
        count = left if mass <= 0 else min(left, round(share / mass * left)) if share < mass else left
        counts.append(count)
        left -= count
        mass -= share
    counts[-1] += left
    return counts[::-1]


def _check_choice(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise OptionError(f"{option}={value!r} is not known; {closest(str(value), known)}")
