"""Zipping: neurons of all members that respond alike become one, within a member too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from neurograft.alignment.activations import When, member_activations
from neurograft.alignment.assignment import memory_there
from neurograft.axes.maps import NeuronMap, Pairs
from neurograft.errors import OptionError, PlanError, closest
from neurograft.members.members import Members
from neurograft.methods.method import Method
from neurograft.operators.owned import Owned
from neurograft.options import check_count
from neurograft.plans.plan import Filling
from neurograft.selection.clustering import BYTES_PER_PAIR, greedy_clusters
from neurograft.selection.widths import fused_sizes, groups_made_by
from neurograft.tracing.graph import NeuronGraph


@dataclass(frozen=True, kw_only=True)
class Zip(Method):
    """Cluster all members' neurons by the correlation of their activations; a cluster becomes one fused neuron.

    A_m[c, u] = 1/|c| and B_m[u, c] = 1 for neuron u of member m in cluster c: a fused neuron is made like the mean of
    its cluster, and whoever read one of its neurons reads it.

    With `stop` the networks are zipped only up to a layer: from there on all members' neurons stay side by side, so
    the fused network is wider there and has one path per member. Their outputs are averaged by the last layer's
    weights; with `heads="keep"` they come out one after the other.

    Needs calibration batches, unlabelled.

    Attributes:
        when: compare activations before ("pre") or after ("post") the nonlinearity.
        samples: activations per neuron that are compared.
        stop: fnmatch pattern of the first group that is not zipped any more, or of a tensor that makes it.
        ratio: the share of all members' neurons to remove, in [0, 1); default: member 0's width.
        width: neurons per group, one number for all or a mapping of group or parameter patterns to numbers.
        max_memory: bytes that clustering one group may take, 8 per pair of all members' neurons; default what the
            machine has.

    Raises:
        OptionError: an option outside its range.

    Source: Stoica et al. 2023, arXiv:2305.03053, section 4.
    """

    name: ClassVar[str] = "zip"
    dense: ClassVar[bool] = True

    when: When = "post"
    samples: int = 2048
    stop: str | None = None
    ratio: float | None = None
    width: int | Mapping[str, int] | None = None
    max_memory: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("samples", self.samples)

    @property
    def needs_data(self) -> bool:
        """Always: clusters are found by activations."""
        return True

    def fill(self, members: Members, _generator: torch.Generator) -> Filling:
        """Cluster the neurons.

        Raises:
            OptionError: no calibration batches, or widths that do not suit the members.
            PlanError: a group behind `stop` that an op reduces over (LayerNorm, softmax), so that members cannot stay
                side by side.
        """
        apart = _groups_from(members, self.stop)
        sizes = fused_sizes(members, self.ratio, self.width)
        for group in sizes:
            if group not in apart:
                _check_memory(group, sum(members.sizes(group)), self.max_memory)
        found = member_activations(members, when=self.when, samples=self.samples)
        maps = {}
        for group, n in sizes.items():
            if group in apart:
                _check_side_by_side(members.graph, group)
                clusters = torch.arange(sum(members.sizes(group)))
            elif group not in found[0]:
                raise PlanError(
                    f"no activation shows what the neurons of {group} do, so they cannot be zipped; fix them"
                )
            else:
                clusters = greedy_clusters(torch.cat([own[group] for own in found], 1), n)
            maps[group] = cluster_maps(clusters, members.sizes(group))
        warnings = _soft_warnings(members.graph, [g for g in maps if g not in apart])
        return Filling(maps=maps, weights=members.weights_or(), operator=Owned(), warnings=warnings)


def _check_memory(group: str, neurons: int, limit: int | None) -> None:
    there = memory_there(limit)
    if (needed := BYTES_PER_PAIR * neurons**2) > there:
        raise OptionError(
            f"clustering all members' {neurons} neurons of group {group} takes about {needed / 2**30:.1f} GiB of "
            f"{there / 2**30:.1f} GiB; use method='permutation' or 'transplant', keep the group in place with "
            "fixed=[...], or raise max_memory"
        )


def cluster_maps(clusters: Tensor, sizes: Sequence[int]) -> tuple[NeuronMap, ...]:
    """The maps of a clustering of all members' neurons, numbered from 0.

    Example:
        >>> cluster_maps(torch.tensor([0, 1, 0]), (2, 1))[0].merge.dense().tolist()
        [[0.5, 0.0], [0.0, 1.0]]
    """
    count = int(clusters.max()) + 1
    shares = 1 / torch.bincount(clusters, minlength=count).double()
    maps = []
    for own in torch.split(clusters, list(sizes)):
        units = torch.arange(len(own))
        merge = Pairs(own, units, count, len(own), shares[own])
        maps.append(NeuronMap(merge, Pairs(own, units, count, len(own))))
    return tuple(maps)


def _groups_from(members: Members, stop: str | None) -> frozenset[str]:
    """The groups from the one that `stop` names onwards, in execution order."""
    if stop is None:
        return frozenset()
    outermost = [group.name for group in members.graph.outermost]
    named = set(groups_made_by(members, stop))
    order = [g for g in members.graph.execution_order if g in outermost]
    first = next((i for i, g in enumerate(order) if g in named), None)
    if first is None:
        raise OptionError(f"stop names no free group: {stop!r}; {closest(stop, outermost)}")
    return frozenset(order[first:])


def _check_side_by_side(graph: NeuronGraph, group: str) -> None:
    if ops := graph[group].reduced_by:
        raise PlanError(
            f"group {group} lies behind stop, where members stay side by side, but {ops[0]} works over all its neurons "
            "at once and would mix the members; stop later, or zip the whole network"
        )


def _soft_warnings(graph: NeuronGraph, groups: Sequence[str]) -> tuple[str, ...]:
    notes = []
    for group in groups:
        if ops := (*graph[group].reduced_by, *graph[group].bilinear):
            notes.append(
                f"{ops[0]} works over the neurons of {group}: averaging neurons there changes more than the neurons "
                "themselves; permutation and transplant are safer for such networks"
            )
    return tuple(notes)
