"""The two sides of a matching: a network with its activations, a mean of several, or one given other widths."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from neurograft.alignment.activation_similarity import ActivationSimilarity, moved_cells
from neurograft.alignment.activations import Cells, When, member_cells
from neurograft.alignment.weight_similarity import (
    Maps,
    Network,
    Similarity,
    WeightSimilarity,
    aligned,
    neuron_norms,
)
from neurograft.axes.maps import NeuronMap, Pairs
from neurograft.members.members import Members
from neurograft.tracing.graph import NeuronGraph

Key = TypeVar("Key")


@dataclass(frozen=True, eq=False)
class Representation:
    """A network and, where they count, the activations of its neurons; `rotating` groups may be rotated."""

    network: Network
    activations: Cells | None = None
    rotating: frozenset[str] = frozenset()

    @property
    def graph(self) -> NeuronGraph:
        """How the network's neurons lie in its tensors."""
        return self.network.graph

    def against(self, member: "Representation") -> Similarity:
        """How alike a member's neurons are to this side's."""
        weights = WeightSimilarity(self.network, member.network, self.rotating)
        if self.activations is None or member.activations is None:
            return weights
        return ActivationSimilarity(self.activations, member.activations, weights)

    def mass(self, group: str, squares: Tensor | None = None) -> Tensor:
        """How much signal each neuron carries: |features| · |weights that read it|, shape `(units,)`, float64.

        `squares` are the squared norms of the features, default those of the weights that make the neurons.
        """
        made, read = neuron_norms(self.network, group)
        return (made if squares is None else squares.detach().double().cpu().sqrt()) * read

    def standardised(self) -> "Representation":
        """The same side with activations of mean 0 and variance 1, so that their products are correlations.

        Neurons that may be rotated have a variance of 1 on average.
        """
        if self.activations is None:
            return self
        standard = {}
        for key, values in self.activations.items():
            centred = values - values.mean(0)
            variance = centred.square().mean(0)
            together = [d for d, name in enumerate(key) if name in self.rotating]
            if together:
                variance = variance.mean(together, keepdim=True)
            standard[key] = centred / variance.sqrt().clamp_min(torch.finfo(values.dtype).eps)
        return Representation(self.network, standard, self.rotating)

    def moved(self, maps: Maps, graph: NeuronGraph) -> "Representation":
        """This side in the basis that `maps` lead to."""
        state = {name: aligned(self.network, name, maps)[0] for name in graph.tensors}
        activations = None if self.activations is None else moved_cells(self.activations, maps)
        return Representation(Network(state, graph), activations, self.rotating)


def representations_of(
    members: Members, metric: str, when: When, samples: int, rotating: frozenset[str] = frozenset()
) -> list[Representation]:
    """Every member as a side; with its activations if `metric` is "activations"."""
    networks = [Network(state, graph) for state, graph in zip(members.states, members.graphs, strict=True)]
    if metric == "weights":
        return [Representation(network, None, rotating) for network in networks]
    found = member_cells(members, when=when, samples=samples, rotating=rotating)
    return [Representation(network, own, rotating) for network, own in zip(networks, found, strict=True)]


def mean_representation(sides: Sequence[Representation], weights: Sequence[float]) -> Representation:
    """The weighted mean of sides that share a basis."""
    total = sum(weights)
    shares = [w / total for w in weights]

    def mean(values: Sequence[Mapping[Key, Tensor]]) -> dict[Key, Tensor]:
        first = {name: value * shares[0] for name, value in values[0].items()}
        for value, share in zip(values[1:], shares[1:], strict=True):
            for name in first:
                first[name].add_(value[name].to(first[name]), alpha=share)
        return first

    activations = [side.activations for side in sides if side.activations is not None]
    state = mean([side.network.state for side in sides])
    network = Network(state, sides[0].graph)
    return Representation(network, mean(activations) if activations else None, sides[0].rotating)


def resized_representation(side: Representation, sizes: Mapping[str, int]) -> Representation:
    """The network with other widths: its heaviest neurons alone, or each split into copies that share its readers.

    Splitting keeps the function; dropping does not, the dropped ones are merged into the kept when they are matched.
    """
    maps: dict[str, NeuronMap] = {}
    for group, n in sizes.items():
        own = side.graph[group].size
        if n == own:
            continue
        heaviest = side.mass(group).argsort(descending=True, stable=True)
        source = heaviest.repeat(-(-n // own))[:n].sort().values
        copies = torch.bincount(source, minlength=own)[source].double()
        merge = Pairs(torch.arange(n), source, n, own)
        maps[group] = NeuronMap(merge, Pairs(torch.arange(n), source, n, own, 1 / copies))
    return side.moved(maps, side.graph.resized({group: maps[group].fused for group in maps}))


def medoid(candidates: Sequence[int], members: int, cost: Callable[[int, int], float]) -> int:
    """The candidate that all members together are matched to most cheaply, the first of equals.

    Args:
        candidates: members that may be the reference.
        members: number of members.
        cost: what matching the second to the first costs; between candidates the same in both directions.
    """
    if len(candidates) == 1 or members == 2:
        return candidates[0]
    found: dict[tuple[int, int], float] = {}
    for r in candidates:
        for m in range(members):
            if m != r:
                found[r, m] = found[m, r] if (m, r) in found and m in candidates else cost(r, m)
    totals = [sum(found[r, m] for m in range(members) if m != r) for r in candidates]
    return candidates[min(range(len(candidates)), key=totals.__getitem__)]
