"""How alike neurons respond: products of their activations on the same samples."""

from collections.abc import Container

import torch
from torch import Tensor

from neurograft.alignment.activations import Cells
from neurograft.alignment.products import GroupNames, Products, ProductSum
from neurograft.alignment.weight_similarity import Maps, WeightSimilarity, is_hidden, units_of
from neurograft.axes.layout import Factor, Layout, resize_layout
from neurograft.axes.mixing import mix_along

TIE = 1e-4  # how much the weights count beside the activations: enough to decide between equals only


class ActivationSimilarity:
    """Neurons are alike if they are active together; a group without activations falls back to its weights.

    Neurons that the samples do not distinguish (all that are silent on them, behind a ReLU also those that respond in
    one and the same sample) are distinguished by their weights, which count 10⁻⁴ as much as the activations.

    `target` and `member` are what `member_cells` gives, on the same samples: units whose insides are not matched yet,
    or are matched in every pair of units by itself, count with their best inner matching.
    """

    def __init__(self, target: Cells, member: Cells, weights: WeightSimilarity):
        self.target = target
        self.member = member
        self.weights = weights
        self.graph = weights.target.graph

    def products(self, group: str, maps: Maps, known: Container[str], readers: bool) -> Products | None:
        """As `Similarity.products`; divided by the number of samples, with the weights as a tie-break."""
        weights = self.weights.sums(group, maps, known, readers)
        units = units_of(self.graph, group, maps)
        shown: ProductSum | None = None
        rows = 0
        for key, other in self.target.items():
            hidden = tuple(name for name in key if is_hidden(self.graph, name, group, known))
            if group not in key or any(name not in known and name not in (group, *hidden) for name in key):
                continue
            own = moved(key, self.member[key], {name: m for name, m in maps.items() if name not in (group, *hidden)})
            first = (group, *hidden) if units is None else (units, group)
            own, other = _features(own, key, first), _features(other, key, first)
            if shown is None:
                shown = ProductSum(*(x.shape[: 1 if units is None else 2] for x in (own, other)))
            shown.add(hidden, own, other)
            rows += len(self.target[key])
        if shown is None:
            return weights.products(self.weights.rotating)
        shown = shown.scaled(1 / rows)
        amount, beside = shown.amount(), weights.amount()
        return shown.plus(weights, TIE * amount / beside if amount and beside else 1.0).products(self.weights.rotating)

    def nothing(self, group: str) -> Products:
        """As `Similarity.nothing`."""
        return self.weights.nothing(group)

    def twice(self, group: str) -> bool:
        """As `Similarity.twice`: never for activations."""
        return not any(group in key for key in self.target) and self.weights.twice(group)

    def objective(self, maps: Maps, group: str | None = None) -> float:
        """Σ over groups of the mean products of matched neurons' activations."""
        total = 0.0
        for key, other in self.target.items():
            if group is None or group in key:
                own = moved(key, self.member[key], maps)
                total += float((own * other).sum(dtype=torch.double)) / len(other)
        return total


def moved_cells(cells: Cells, maps: Maps) -> Cells:
    """The activations of fused neurons, in the basis that `maps` lead to."""
    return {key: moved(key, x, maps) for key, x in cells.items()}


def moved(key: GroupNames, activations: Tensor, maps: Maps) -> Tensor:
    """Activations of shape `(rows, units, …)`, one dimension per group in `key`, each multiplied by its group's map."""
    sizes = activations.shape[1:]
    layout: Layout = (tuple(Factor(name, n) for name, n in zip(key, sizes, strict=True)),)
    fused = resize_layout(layout, {name: maps[name].fused for name in key if name in maps})
    merges = {name: maps[name].merge for name in key if name in maps}
    fused_sizes = [maps[name].fused if name in maps else n for name, n in zip(key, sizes, strict=True)]
    return mix_along(activations.flatten(1), 1, layout, fused, merges).reshape(len(activations), *fused_sizes)


def _features(activations: Tensor, key: GroupNames, first: GroupNames) -> Tensor:
    """The dimensions of some groups in front, all others as features."""
    return activations.movedim([1 + key.index(name) for name in first], list(range(len(first)))).flatten(len(first))
