"""`compare`: what fine-tunes have changed since their ancestor, and how far they agree, by families of tensors."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neurograft.applying.formula import FusedRows
from neurograft.errors import MissingExtra
from neurograft.escaping import terminal
from neurograft.inputs import Inputs
from neurograft.members.members import Members, members_of
from neurograft.methods import choice_of
from neurograft.methods.method import Method
from neurograft.methods.planner import plan_members
from neurograft.operators.task_arithmetic import TaskArithmetic
from neurograft.plans.check_members import base_state
from neurograft.plans.plan import FusionPlan
from neurograft.preserve_state import keeps_random_state
from neurograft.text_table import text_table

NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])")
MOST_NAMED = 6  # members with a column each


@dataclass(frozen=True)
class Family:
    """Tensors whose names differ in the numbers of their blocks alone.

    Attributes:
        name: their name with `*` for these numbers.
        tensors: how many there are.
        entries: of all of them.
        changes: of every member |τ_m| / |W_base|.
        cosine: the mean cosine of two members' task vectors, <τ_i, τ_j> / (|τ_i| |τ_j|).
        conflicts: of the entries that at least two members have changed, the share where two have different signs.
    """

    name: str
    tensors: int
    entries: int
    changes: tuple[float, ...]
    cosine: float
    conflicts: float


@dataclass(frozen=True)
class Comparison:
    """What members have changed since their ancestor, in the basis in which they would be merged; prints as a table.

    Attributes:
        families: in the order of the network's tensors.
        whole: all of them together.
    """

    families: tuple[Family, ...]
    whole: Family

    def __str__(self) -> str:
        members = len(self.whole.changes)
        each = [f"change {m}" for m in range(members)] if members <= MOST_NAMED else ["least", "mean", "most change"]
        columns = ("tensors", "count", "entries", *each, "cosine", "conflicts")
        rows = [_row(family, members) for family in (*self.families, self.whole)]
        return text_table(columns, rows, numbers=columns[1:])

    def draw(self, path: str | Path) -> None:
        """Draw changes, cosines and conflicts of every family as bars, into an .svg, .png or .pdf file.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingExtra("pictures need matplotlib: pip install 'neurograft[plots]'") from error
        places = range(len(self.families))
        figure = Figure(figsize=(11, 1.2 + 0.32 * len(self.families)), layout="constrained")
        axes = figure.subplots(1, 3, sharey=True)
        count = len(self.whole.changes)
        for m in range(count):
            where = [place + 0.8 * ((m + 0.5) / count - 0.5) for place in places]
            axes[0].barh(where, [100 * f.changes[m] for f in self.families], 0.8 / count, label=f"member {m}")
        axes[1].barh(places, [f.cosine for f in self.families], 0.6)
        axes[2].barh(places, [100 * f.conflicts for f in self.families], 0.6)
        for axis, title in zip(axes, ("change, % of the base", "cosine of changes", "sign conflicts, %"), strict=True):
            axis.set_title(title)
        axes[1].set_xlim(min(0.0, *(f.cosine for f in self.families)), 1)
        axes[0].set_yticks(list(places), [terminal(f.name) for f in self.families], parse_math=False)
        axes[0].invert_yaxis()
        if count <= MOST_NAMED:
            axes[0].legend()
        figure.savefig(path)


@keeps_random_state
def compare(
    models: Sequence[nn.Module] | Members,
    example_inputs: Inputs | None = None,
    *,
    base: nn.Module | str | Path | None = None,
    align: str | Method | None = None,
) -> Comparison:
    """Measure what members have changed since their ancestor, and how far their changes agree.

    A cosine near 0 and half the signs in conflict are changes that have nothing to do with each other, which can be
    added up. With a large cosine members have learnt the same, which is to be averaged; a negative one, or more
    conflicts, asks for elected signs or for one member's tensors.

    Args:
        models: at least two networks of one class, or `Members`, which may lie on disk.
        example_inputs: what the networks take.
        base: the network that all were trained from, or its checkpoint or folder.
        align: the method that brings members and base into one basis first.

    Raises:
        OptionError: no base.
        PlanError: a base that no member comes from.
        NeurograftError: as `plan`.

    Example:
        >>> base = nn.Linear(3, 2)
        >>> nets = [nn.Linear(3, 2), nn.Linear(3, 2)]
        >>> _ = [net.load_state_dict({k: v * (1 + 0.1 * m) for k, v in base.state_dict().items()})
        ...      for m, net in enumerate(nets, 1)]
        >>> [round(change, 3) for change in compare(nets, torch.ones(1, 3), base=base).whole.changes]
        [0.1, 0.2]

    Source: Ilharco et al. 2023, arXiv:2212.04089, section 5 (cosines); Yadav et al. 2023, arXiv:2306.01708, section 2.
    """
    members = members_of(models, example_inputs, base=base)
    method, operator = choice_of(TaskArithmetic(), {}, align)
    return compared(plan_members(members, method, operator), members)


def compared(plan: FusionPlan, members: Members) -> Comparison:
    """`compare` for members in the basis of a plan that has their ancestor."""
    base = base_state(plan, members)
    families: dict[str, list[_Sums]] = {}
    # files may have another order than the network, and a tied tensor has a second name there
    own = dict.fromkeys((*members.networks[0].state_dict(), *members.states[0]))
    for name in filter(members.states[0].__contains__, own):
        tensors = [state[name] for state in members.states]
        if tensors[0].dtype.is_floating_point:
            rows = FusedRows(tensors, plan, name, base[name])
            families.setdefault(NUMBER.sub("*", name), []).append(_sums(rows))
    found = tuple(_family(name, sums) for name, sums in families.items())
    return Comparison(found, _family("all", [one for sums in families.values() for one in sums]))


@dataclass
class _Sums:
    """Of one tensor: <τ_i, τ_j> of all members and |W_base|² behind them, entries that two changed, and conflicts."""

    products: Tensor
    base: float = 0.0
    entries: int = 0
    changed: int = 0
    conflicts: int = 0


def _sums(rows: FusedRows) -> _Sums:
    found = _Sums(torch.zeros(()))
    for start in range(0, rows.count, rows.step):
        stop = min(start + rows.step, rows.count)
        base = rows.ancestor(start, stop)
        changes = torch.stack([(block - base).reshape(-1) for block in rows.aligned(start, stop)])
        wide = changes.double()
        found.products = found.products + wide @ wide.mT
        found.base += float(base.double().square().sum())
        found.entries += base.numel()
        up, down = (changes > 0).sum(0), (changes < 0).sum(0)
        found.changed += int((up + down >= 2).sum())
        found.conflicts += int(((up > 0) & (down > 0)).sum())
    return found


def _family(name: str, sums: Sequence[_Sums]) -> Family:
    products = torch.stack([own.products for own in sums]).sum(0)
    lengths = products.diagonal().sqrt()
    base = sum(own.base for own in sums) ** 0.5
    pairs = [(i, j) for i, j in combinations(range(len(lengths)), 2) if float(lengths[i] * lengths[j]) > 0]
    cosines = [float(products[i, j] / (lengths[i] * lengths[j])) for i, j in pairs]
    changed = sum(own.changed for own in sums)
    return Family(
        name=name,
        tensors=len(sums),
        entries=sum(own.entries for own in sums),
        changes=tuple(float(length) / base if base else float(length > 0) for length in lengths),
        cosine=sum(cosines) / len(cosines) if cosines else 0.0,
        conflicts=sum(own.conflicts for own in sums) / changed if changed else 0.0,
    )


def _row(family: Family, members: int) -> tuple[str, ...]:
    own: Iterable[Any] = family.changes
    if members > MOST_NAMED:
        own = (min(family.changes), sum(family.changes) / members, max(family.changes))
    shares = [f"{100 * change:.2f} %" for change in own]
    cells = (f"{family.cosine:.3f}", f"{100 * family.conflicts:.1f} %")
    return (family.name, str(family.tensors), f"{family.entries:,}", *shares, *cells)
