"""How alike neurons respond: products of their activations on the same samples."""

from collections.abc import Container

import torch
from torch import Tensor

from neurograft.alignment.activations import Cells
from neurograft.alignment.weight_similarity import Maps, Products, ProductSum, Similarity
from neurograft.axes.maps import PerUnit
from neurograft.axes.mixing import mix_axis

TIE = 1e-4  # how much the weights count beside the activations: enough to decide between equals only


class ActivationSimilarity:
    """Neurons are alike if they are active together; a group without activations falls back to its weights.

    Neurons that the samples cannot tell apart (all that are silent on them, behind a ReLU also those that respond in
    one and the same sample) are told apart by their weights, which count 10⁻⁴ as much as the activations.

    `target` and `member` are what `member_cells` gives, on the same samples: units whose insides are not matched yet
    count with their best inner matching, a group inside others once these are matched.
    """

    def __init__(self, target: Cells, member: Cells, otherwise: Similarity):
        self.target = target
        self.member = member
        self.otherwise = otherwise

    def products(self, group: str, maps: Maps, known: Container[str], readers: bool) -> Products | None:
        """As `Similarity.products` says; divided by the number of samples, with the weights as a tie-break."""
        total: ProductSum | None = None
        rows = 0
        for (outer, inner), other in self.target.items():
            own = self.member[outer, inner]
            if group == outer:
                shown = inner if inner is not None and inner not in known else None
                own = _moved(own, 2, inner, maps) if shown is None else own
                axis = 1
            elif group == inner and outer in known:
                own, axis, shown = _moved(own, 1, outer, maps), 2, None
            else:
                continue
            rows += len(other)
            total = total or ProductSum(own.shape[axis], other.shape[axis])
            total.add(shown, _features(own, axis, shown), _features(other, axis, shown))
        found = total.products() if total else None
        if found is None:
            return self.otherwise.products(group, maps, known, readers)
        found = Products(found.cross / rows, found.member / rows, found.target / rows)
        return _with_ties_broken(found, self.otherwise.products(group, maps, known, readers))

    def nothing(self, group: str) -> Products:
        """As `Similarity.nothing` says."""
        return self.otherwise.nothing(group)

    def twice(self, group: str) -> bool:
        """As `Similarity.twice` says: never for activations."""
        return not any(group in key for key in self.target) and self.otherwise.twice(group)

    def objective(self, maps: Maps, group: str | None = None) -> float:
        """Σ over groups of the mean products of matched neurons' activations."""
        total = 0.0
        for key, other in self.target.items():
            if group is None or group in key:
                own = _moved(_moved(self.member[key], 1, key[0], maps), 2, key[1], maps)
                total += float((own * other).sum(dtype=torch.double)) / len(other)
        return total


def _with_ties_broken(shown: Products, weights: Products | None) -> Products:
    """The products with the weights as further features, scaled to a small share of what the activations are."""
    if weights is None:
        return shown
    amount, other = (float(p.member.double().sum() + p.target.double().sum()) for p in (shown, weights))
    if other == 0:
        return shown
    scale = TIE * amount / other if amount else 1.0
    return Products(
        shown.cross + scale * weights.cross.to(shown.cross),
        shown.member + scale * weights.member.to(shown.member),
        shown.target + scale * weights.target.to(shown.target),
    )


def moved_cells(cells: Cells, maps: Maps) -> Cells:
    """The activations of fused neurons, in the basis that `maps` lead to."""
    return {(outer, inner): _moved(_moved(x, 1, outer, maps), 2, inner, maps) for (outer, inner), x in cells.items()}


def _moved(activations: Tensor, axis: int, group: str | None, maps: Maps) -> Tensor:
    if group is None or group not in maps:
        return activations
    merge = maps[group].merge
    assert not isinstance(merge, PerUnit)
    return mix_axis(activations, axis, merge)


def _features(activations: Tensor, axis: int, shown: str | None) -> Tensor:
    """One row of features per neuron of an axis, or per (unit, inner neuron) if the inner group is `shown`."""
    if shown is not None:
        return activations.flatten(1).T
    return activations.movedim(axis, 0).flatten(1)
