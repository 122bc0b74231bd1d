"""Neuron transplantation: put all members' neurons side by side and keep the most important ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from neurograft.errors import OptionError
from neurograft.members.checks import check_member_weights
from neurograft.members.members import Members
from neurograft.methods.method import Method
from neurograft.operators.owned import Owned
from neurograft.plans.plan import Filling
from neurograft.selection.duplicates import duplicate_classes, matched_insides
from neurograft.selection.scoring import MEASURED, Kind, scorers
from neurograft.selection.selection import Normalize, Selection, selection_maps, tree_of, tree_weights
from neurograft.selection.widths import fused_sizes


@dataclass(frozen=True, kw_only=True)
class Transplant(Method):
    """Keep, in every group, the n most important of all members' neurons, in their original order.

    Who gets the neurons: raw magnitudes compare members by scale, and the function of a ReLU network does not
    change if a layer is scaled up and its reader down. So members trained to other scales can end as a cut network,
    layer 1 from one member and layer 2 from the other; the plan warns of it. `normalize="layer"` gives every
    member the same mean score in every group: members then share each group about equally and only the rank inside
    a member counts. `normalize="member"` takes out one factor per member, so that a member with larger weights
    everywhere has no advantage but keeps its weight in the layers that are strong for it. `balance=True` does it per
    tensor, before the slots of a group are added up: what producers and readers contribute then weighs the same,
    and no rescaling of layers that keeps the function changes which neurons are kept.

    Attributes:
        importance: "magnitude", "l1", "activation", "variance", "taylor" or "random"; see `scoring.scorers`.
        normalize: "none", "layer" or "member", as above.
        balance: equalise the scale of members and layers first, as above.
        order: "backward" decides groups from the output to the input, each on what is still kept; "joint"
            scores all groups on the full networks.
        strategy: "flat" all members at once; "iterative" ((0,1),2),3 …; "hierarchical" merge-sort halves.
        sequence: "merge-prune" chooses among all members' neurons together, "prune-merge" the same number from
            each alone; with training in between see `neurograft.training.sequences`.
        fraction: two members only: the share of neurons from the second, and its weight; each is scored alone.
        quota: the share of every member, and its weight; each is scored alone.
        ratio: the share of the combined network's neurons to remove, in [0, 1); default: member 0's width.
        width: neurons per group, one number for all or a mapping of group or parameter patterns to numbers.
        diversity: pass over neurons that duplicate a kept one for the next best; readers of the duplicate read
            the kept twin. A network fused with its own (permuted) copy then is that network. The insides of units
            (the channels of heads, of convolution groups) are first brought into member 0's order, which is one order
            for all units of a member: twins inside one member whose insides lie in different orders stay two units.
        tolerance: with `diversity`, how far apart the incoming weights of duplicates may lie, relative to the
            longer of the two; 0.1 also finds similar neurons.

    Raises:
        OptionError: an option outside its range, or options that exclude each other.

    Source: Öz et al. 2024, arXiv:2502.06849, sections 3 and 4; docs/design.md, "Parity with the
    published code".
    """

    name: ClassVar[str] = "transplant"
    passes: ClassVar[int] = 3  # scores of makers and of readers, then the formula
    finds_bad_numbers: ClassVar[bool] = True

    importance: Kind = "magnitude"
    normalize: Normalize = "none"
    balance: bool = False
    order: Literal["backward", "joint"] = "backward"
    strategy: Literal["flat", "iterative", "hierarchical"] = "flat"
    sequence: Literal["merge-prune", "prune-merge"] = "merge-prune"
    fraction: float | None = None
    quota: Sequence[float] | None = None
    ratio: float | None = None
    width: int | Mapping[str, int] | None = None
    diversity: bool = False
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.tolerance < 1:
            raise OptionError(f"tolerance is a relative distance, from 0 to below 1, got {self.tolerance}")
        alone = {"fraction": self.fraction, "quota": self.quota}
        names = [name for name, value in alone.items() if value is not None]
        names += ["sequence='prune-merge'"] if self.sequence == "prune-merge" else []
        if len(names) > 1:
            raise OptionError(f"{' and '.join(names)} both set how many neurons each member gives; give one of them")
        if names and self.strategy != "flat":
            raise OptionError(f"{names[0]} chooses from each member alone; it excludes strategy={self.strategy!r}")
        if self.fraction is not None and not 0 <= self.fraction <= 1:
            raise OptionError(f"fraction is the second member's share, between 0 and 1, got {self.fraction}")

    @property
    def needs_data(self) -> bool:
        """Whether the importance is measured on batches."""
        return self.importance in MEASURED

    def fill(self, members: Members, generator: torch.Generator) -> Filling:
        """Choose the neurons.

        Raises:
            OptionError: widths or shares that do not suit the members, or no calibration batches where they are
                looked at.
        """
        share = self._shares(len(members))
        sizes = fused_sizes(members, self.ratio, self.width)
        moved = frozenset(sizes)
        weights = members.weights_or(share or _default_weights(members, moved, self.strategy))
        insides = matched_insides(members) if self.diversity else {}
        twins = duplicate_classes(members, list(sizes), self.tolerance, insides) if self.diversity else {}
        importance = scorers(self.importance, members, moved, generator)
        select = Selection(members, sizes, weights, importance, self.order, self.normalize, self.balance, twins)
        alone = share is not None or self.sequence == "prune-merge"
        kept = select.alone(share) if alone else select.tree(tree_of(self.strategy, len(members)))[0]
        return Filling(maps=selection_maps(members, kept, sizes, twins) | insides, weights=weights, operator=Owned())

    def _shares(self, members: int) -> tuple[float, ...] | None:
        """How much each member gives, where that is asked for."""
        if self.fraction is None:
            return check_member_weights(self.quota, members, "quota")
        if members != 2:
            raise OptionError(f"fraction is for two members, got {members}; use quota=[...]")
        return (1 - self.fraction, self.fraction)


def _default_weights(members: Members, moved: frozenset[str], strategy: str) -> tuple[float, ...]:
    """The published ones: shares of the last hidden width, or halves per pair."""
    k = len(members.states)
    if strategy != "flat":
        return tree_weights(tree_of(strategy, k), k)
    last = next((g for g in members.graph.backward_order if g in moved), None)
    if last is None:
        return (1 / k,) * k
    sizes = members.sizes(last)
    return tuple(n / sum(sizes) for n in sizes)
