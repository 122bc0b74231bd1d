"""Choosing which neurons of all members stay: group by group, level by level."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from neurograft.axes.maps import NeuronMap, Pairs
from neurograft.errors import OptionError, PlanError
from neurograft.members.members import Members
from neurograft.selection.scoring import Importance
from neurograft.selection.widths import shares_of

Tree: TypeAlias = "int | tuple[Tree, ...]"
"""Which members are fused first: ((0, 1), 2) fuses 0 with 1 and the result with 2."""

Kept: TypeAlias = dict[int, dict[str, Tensor]]
"""member -> group -> the member's units that survive, int64, sorted."""

DuplicateClasses: TypeAlias = Mapping[str, Sequence[Tensor]]
"""group -> one tensor per member, shape `(units,)`: units with the same number respond alike."""

Normalize: TypeAlias = Literal["none", "layer", "member"]


def tree_of(strategy: str, k: int) -> Tree:
    """The order in which k members are fused.

    Example:
        >>> tree_of("iterative", 3), tree_of("hierarchical", 5)
        (((0, 1), 2), ((0, 1), (2, 3, 4)))
    """
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
    if count <= 3:
        return tuple(range(start, stop))
    middle = start + count // 2
    return (_halves(start, middle), _halves(middle, stop))


def tree_weights(node: Tree, k: int) -> tuple[float, ...]:
    """Every node's children weigh the same.

    Example:
        >>> tree_weights(((0, 1), 2), 3)
        (0.25, 0.25, 0.5)
    """
    weights = [0.0] * k
    _spread(node, 1.0, weights)
    return tuple(weights)


def _spread(node: Tree, weight: float, weights: list[float]) -> None:
    if isinstance(node, int):
        weights[node] = weight
        return
    for child in node:
        _spread(child, weight / len(node), weights)


@dataclass(frozen=True, eq=False)
class Selection:
    """The rules by which neurons are chosen.

    Attributes:
        members: the networks.
        sizes: how many units stay per group.
        weights: the members' weights; what fused networks are scored with is scaled by them.
        importance: makes the scorer of one member at one scale of its outputs.
        order: "backward" scores each group on what the groups decided before it have left, "joint" on everything.
        normalize: see `transplant`.
        balance: see `transplant`.
        duplicates: units that respond alike, empty to treat every unit as different.
    """

    members: Members
    sizes: Mapping[str, int]
    weights: tuple[float, ...]
    importance: Callable[[int, float], Importance]
    order: str
    normalize: Normalize = "none"
    balance: bool = False
    duplicates: DuplicateClasses = field(default_factory=dict)

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

    def alone(self, quota: Sequence[float] | None) -> Kept:
        """Select from each member by itself, as many as its quota sets; by default the same share of every member.

        Raises:
            OptionError: a quota takes more neurons of a member than it has.
        """
        own_sizes = {g: self.members.sizes(g) for g in self.sizes}
        counts = {
            g: shares_of(n, quota or [own / sum(own_sizes[g]) for own in own_sizes[g]]) for g, n in self.sizes.items()
        }
        kept: Kept = {}
        for m in range(len(self.members.states)):
            own, _ = self.tree(m)
            wanted = {g: counts[g][m] for g in self.sizes}
            for g, n in wanted.items():
                if n > len(own[m][g]):
                    raise OptionError(f"the quota takes {n} neurons of {g} from member {m}, which has {len(own[m][g])}")
            kept |= self.decide(own, {m: 1.0}, wanted, before=kept)
        return kept

    def decide(
        self, kept: Kept, scales: Mapping[int, float], sizes: Mapping[str, int], before: Kept | None = None
    ) -> Kept:
        """Decide group by group which of the units in `kept` stay; `before` was chosen earlier, from other members."""
        scorers = {m: self.importance(m, scales[m]) for m in kept}
        levels = {m: self._level(scorer, kept[m]) for m, scorer in scorers.items()}
        alive: Kept = {m: dict(groups) for m, groups in kept.items()}
        chosen: Kept = {m: {} for m in kept}
        for group in self._groups(sizes):
            seen = alive if self.order == "backward" else kept
            scores = {m: self._score(scorer, m, group, seen[m]) / levels[m] for m, scorer in scorers.items()}
            candidates = {m: kept[m][group] for m in kept}
            classes = self.duplicates.get(group)
            taken = _classes_of(classes, {m: units[group] for m, units in (before or {}).items()})
            for m, units in largest(scores, candidates, sizes[group], classes, taken).items():
                chosen[m][group] = units
                alive[m][group] = units
        return chosen

    def _groups(self, sizes: Mapping[str, int]) -> list[str]:
        first = [g for g in self.members.graph.backward_order if g in sizes]
        return first + [g for g in sizes if g not in first]

    def _level(self, scorer: Importance, kept: Mapping[str, Tensor]) -> float:
        """What a member's scores are divided by under `normalize="member"`: their mean over its groups."""
        if self.normalize != "member":
            return 1.0
        means = [float(total(scorer.contributions(g, kept), len(kept[g]))[kept[g]].mean()) for g in self.sizes]
        return max(sum(means) / len(means), torch.finfo(torch.float32).tiny) if means else 1.0

    def _score(self, scorer: Importance, m: int, group: str, alive: Mapping[str, Tensor]) -> Tensor:
        parts = scorer.contributions(group, alive)
        units = alive[group]
        if self.balance:
            parts = [part / _mean(part, units) for part in parts]
        score = total(parts, self.members.graphs[m][group].size)
        if self.normalize == "layer":
            score = score / _mean(score, units)
        if bool(score[units].isnan().any()):
            raise PlanError(
                f"the importance of {int(score[units].isnan().sum())} of {len(units)} neurons of {group} in member {m} "
                "is NaN; look for huge weights or for NaN in the calibration batches"
            )
        return score


def total(parts: Sequence[Tensor], size: int) -> Tensor:
    """The mean of the slots' contributions, zeros where a group has no slot that counts."""
    return torch.stack(list(parts)).sum(0) / len(parts) if parts else torch.zeros(size)


def _mean(scores: Tensor, units: Tensor) -> Tensor:
    return scores[units].mean().clamp_min(torch.finfo(scores.dtype).tiny)


def _classes_of(classes: Sequence[Tensor] | None, kept: Mapping[int, Tensor]) -> Tensor:
    if classes is None or not kept:
        return torch.zeros(0, dtype=torch.long)
    return torch.cat([classes[m][units] for m, units in kept.items()])


def largest(
    scores: Mapping[int, Tensor],
    candidates: Mapping[int, Tensor],
    n: int,
    classes: Sequence[Tensor] | None = None,
    taken: Tensor | None = None,
) -> dict[int, Tensor]:
    """The n largest scores among all members' candidates; equal scores go to the earlier member and neuron.

    Args:
        scores: member -> scores of all its units, shape `(units,)`.
        candidates: member -> the units to choose from, int64, sorted.
        n: how many to choose.
        classes: per member, shape `(units,)`: of the units of one class only the best is taken, unless too few
            classes are left.
        taken: classes that are taken already.

    Example:
        >>> scores = {0: torch.tensor([1.0, 3.0]), 1: torch.tensor([2.0, 3.0])}
        >>> largest(scores, {0: torch.arange(2), 1: torch.arange(2)}, 2)
        {0: tensor([1]), 1: tensor([1])}
    """
    pool = torch.cat([scores[m][units].cpu() for m, units in candidates.items()])
    order = pool.argsort(descending=True, stable=True)
    if classes is not None:
        alike = torch.cat([classes[m][units] for m, units in candidates.items()])[order]
        later = _seen_before(alike)
        if taken is not None and len(taken):
            later |= torch.isin(alike, taken)
        order = torch.cat([order[~later], order[later]])
    best = torch.zeros(len(pool), dtype=torch.bool)
    best[order[:n]] = True
    parts = torch.split(best, [len(units) for units in candidates.values()])
    return {m: units[part] for (m, units), part in zip(candidates.items(), parts, strict=True)}


def _seen_before(values: Tensor) -> Tensor:
    """Where a value stands that stood earlier in the vector already."""
    order = values.argsort(stable=True)
    ordered = values[order]
    repeated = torch.zeros(len(values), dtype=torch.bool)
    repeated[order[1:]] = ordered[1:] == ordered[:-1]
    return repeated


def selection_maps(
    members: Members, kept: Kept, sizes: Mapping[str, int], duplicates: DuplicateClasses | None = None
) -> dict[str, tuple[NeuronMap, ...]]:
    """The maps of a selection: fused neurons are the kept ones, member 0's first.

    With `duplicates`, the readers of a dropped unit read the kept unit of its class, if there is one: A stays the
    selection S, B becomes Sᵀ plus a 1 from the dropped unit to its twin.
    """
    maps = {}
    for group, n in sizes.items():
        found, start = [], 0
        classes = None if duplicates is None else duplicates.get(group)
        stands_for = None if classes is None else _representatives(classes, [units[group] for units in kept.values()])
        for m, member_size in enumerate(members.sizes(group)):
            units = kept[m][group]
            target = torch.arange(start, start + len(units))
            start += len(units)
            merge = Pairs(target, units, n, member_size)
            unmerge = merge
            if classes is not None and stands_for is not None:
                target, source = _read_duplicates(target, units, stands_for[classes[m]])
                unmerge = Pairs(target, source, n, member_size)
            found.append(NeuronMap(merge, unmerge))
        maps[group] = tuple(found)
    return maps


def _representatives(classes: Sequence[Tensor], kept: Sequence[Tensor]) -> Tensor:
    """For each class the first fused unit that belongs to it, -1 where none does."""
    alive = torch.cat([own[units] for own, units in zip(classes, kept, strict=True)])
    count = 1 + max(int(own.max()) for own in classes if len(own))
    first = torch.full((count,), len(alive)).scatter_reduce_(0, alive, torch.arange(len(alive)), "amin")
    return first.masked_fill(first == len(alive), -1)


def _read_duplicates(target: Tensor, units: Tensor, twin: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of a member's readers: kept units read themselves, dropped ones their twin; sorted by the unit read."""
    read = twin.clone()
    read[units] = target
    source = (read >= 0).nonzero().flatten()
    return read[source], source
