"""Where each fused neuron came from, as a picture: the members' neurons above, the fused ones below."""

from collections.abc import Sequence
from html import escape
from itertools import groupby

import torch
from torch import Tensor

from neurograft.axes.maps import NeuronMap, Pairs, PerUnit
from neurograft.plans.plan import FusionPlan
from neurograft.reporting.palette import color

WIDTH, NAMES, ROW, GAP = 720, 150, 14, 3
FAINT = 0.13


def origins_picture(plan: FusionPlan) -> str:
    """One block per moved group, in one of two forms.

    If fused neurons have owners (transplant, zip): a strip per member, strong where a neuron goes into the fused
    network, faint where it is left out, and the fused strip in the colours of the members its neurons are made of.
    Otherwise (permutation, optimal transport) every member gives to every fused neuron: a strip per member over the
    fused neurons, whose shade says which of the member's neurons arrives there, from its first (faint) to its last.

    Returns:
        An `<svg>` element that takes its colours from the page's palette; empty for a plan that moves nothing.
    """
    blocks, y = [], 0
    for name, maps in plan.maps.items():
        blocks.append(_owned_block(name, maps, y) if plan.owned else _aligned_block(name, maps, y))
        y += 20 + (len(maps) + plan.owned) * (ROW + GAP) + 16
    if not blocks:
        return ""
    label = f"where the fused neurons came from, {len(plan.maps)} groups"
    return f'<svg viewBox="0 0 {WIDTH} {y}" role="img" aria-label="{label}" class="chart">{"".join(blocks)}</svg>'


def shares_of(mapping: NeuronMap) -> tuple[Tensor, Tensor]:
    """How much every fused neuron takes from a member, shape `(fused,)`, and each of its neurons gives, `(member,)`.

    Of a map that varies with the units of another group the mean over these.

    Example:
        >>> order = torch.tensor([2, 0])
        >>> shares_of(NeuronMap.selection(torch.tensor([0, 1]), order, 2, 3))
        (tensor([1., 1.]), tensor([1., 0., 1.]))
    """
    merge = mapping.merge
    if isinstance(merge, PerUnit):
        parts = [shares_of(NeuronMap(unit, unit)) for unit in map(merge.unit, range(merge.units))]
        taken, given = (torch.stack(found).mean(0) for found in zip(*parts, strict=True))
        return taken, given
    if not isinstance(merge, Pairs):
        return merge.abs().sum(1).float().cpu(), merge.abs().sum(0).float().cpu()
    weight = torch.ones(len(merge.target)) if merge.weight is None else merge.weight.abs().float().cpu()
    taken = torch.zeros(merge.fused).index_add_(0, merge.target.cpu(), weight)
    given = torch.zeros(merge.member).index_add_(0, merge.source.cpu(), weight)
    return taken, given


def _owned_block(name: str, maps: Sequence[NeuronMap], top: int) -> str:
    shares = [shares_of(m) for m in maps]
    mass = torch.stack([taken for taken, _ in shares])
    parts = [f'<text x="0" y="{top + 13}" class="label strong">{escape(name)}</text>']
    longest = max(m.member for m in maps)
    cell = (WIDTH - NAMES) / max(longest, maps[0].fused)
    for index, (_, given) in enumerate(shares):
        y = top + 20 + index * (ROW + GAP)
        used = int((given > 0).sum())
        parts.append(_name(f"member {index}: {used} of {len(given)}", y))
        strength = (given / given.max().clamp_min(1e-12)).clamp_min(FAINT) if used else torch.full_like(given, FAINT)
        parts.append(_strip([(color(index), 0.0, 1.0, round(float(s), 2)) for s in strength], y, cell))
    y = top + 20 + len(maps) * (ROW + GAP)
    parts.append(_name(f"fused: {maps[0].fused}", y))
    portions = mass / mass.sum(0).clamp_min(1e-12)
    for index in range(len(maps)):
        starts = portions[:index].sum(0)
        stack = [
            (color(index), round(float(start), 3), round(float(height), 3), 1.0)
            for start, height in zip(starts, portions[index], strict=True)
        ]
        parts.append(_strip(stack, y, cell))
    return "".join(parts)


def _aligned_block(name: str, maps: Sequence[NeuronMap], top: int) -> str:
    parts = [f'<text x="0" y="{top + 13}" class="label strong">{escape(name)}</text>']
    for index, mapping in enumerate(maps):
        y = top + 20 + index * (ROW + GAP)
        parts.append(_name(f"from member {index}", y))
        last = max(1, mapping.member - 1)
        shades = [round(FAINT + (1 - FAINT) * source / last, 2) for source in strongest_sources(mapping)]
        cell = (WIDTH - NAMES) / len(shades)
        parts.append(_strip([(color(index), 0.0, 1.0, shade) for shade in shades], y, cell))
    return "".join(parts)


def strongest_sources(mapping: NeuronMap) -> list[int]:
    """For every fused neuron, the member's neuron that gives most to it; if that varies with units, unit after unit.

    Example:
        >>> strongest_sources(NeuronMap.permutation(torch.tensor([2, 0, 1])))
        [2, 0, 1]
    """
    merge = mapping.merge
    if isinstance(merge, PerUnit):
        units = map(merge.unit, range(merge.units))
        return [source for unit in units for source in strongest_sources(NeuronMap(unit, unit))]
    if not isinstance(merge, Pairs):
        return merge.abs().argmax(1).tolist()
    found = torch.zeros(merge.fused, dtype=torch.long)
    return found.index_copy(0, merge.target.cpu(), merge.source.cpu()).tolist()


def _name(text: str, y: int) -> str:
    return f'<text x="{NAMES - 10}" y="{y + 11}" class="tick end">{escape(text)}</text>'


def _strip(cells: Sequence[tuple[str, float, float, float]], y: int, cell: float) -> str:
    """Neighbouring cells (colour, start and height as shares of the row, opacity) that look alike become one shape."""
    parts, at = [], 0
    gap = 1.0 if cell >= 5 else 0.0
    for (fill, start, height, opacity), run in groupby(cells):
        count = len(list(run))
        if height > 0:
            steps = range(count) if gap else (0,)
            wide = cell - gap if gap else count * cell
            for step in steps:
                x = NAMES + (at + step) * cell
                parts.append(
                    f'<rect x="{x:.2f}" y="{y + start * ROW:.2f}" width="{wide:.2f}" height="{height * ROW:.2f}" '
                    f'fill="{fill}" opacity="{opacity:g}"/>'
                )
        at += count
    return "".join(parts)
