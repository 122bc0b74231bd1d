"""What happened inside fused networks, as pictures: where neurons came from, and what refitting did to each layer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil, isnan
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

from neurograft.axes.maps import NeuronMap, Pairs, PerUnit
from neurograft.escaping import figure_text
from neurograft.fusing import Fusion
from neurograft.plans.plan import FusionPlan
from neurograft.recovery.report import LayerRecovery, RecoveryReport
from neurograft.reporting.document import Code, Heading, Paragraph, Part, Picture, Section
from neurograft_experiments.reports.figures import COLOURS, new_figure, picture_of

REFITTED = (
    "How far each layer's output is from what the members plan for it: the ring before, the dot after (a dot alone "
    "where the weights were kept), as a share of what it should be. Orange layers add to a residual stream, and should "
    "give what is missing in it."
)
OWNED = (
    "One strip per member: the stronger a cell, the more of that neuron went into the fused network; the faintest were "
    "left out, or share a fused neuron with many others. The strip below is the fused layer."
)
ALIGNED = (
    "Every fused neuron is the mean of one neuron (or a mixture) of each member. Columns are the fused neurons; the "
    "shade shows which neuron of the member arrives there, from its first (faint) to its last (strong). A smooth strip "
    "has kept its order."
)
Array: TypeAlias = NDArray[Any]
FAINT, FARTHEST, LETTERS = 0.13, 2.0, 30
"""Opacity of what is left out; up to which error layers are drawn; so much of a layer's name is shown."""


def inside_section(case: str, fusions: Mapping[str, Sequence[Fusion]]) -> Section:
    """Of one kind of network: what refitting did, where neurons came from, and which groups there are.

    Args:
        case: the title.
        fusions: method -> the fusion as it came, and recovered.
    """
    reports = {name: found for name, own in fusions.items() for fusion in own if (found := fusion.report.recovery)}
    parts: list[Part] = [Heading("Refitting, layer by layer"), Paragraph(REFITTED, "soft")]
    end = axis_end(reports.values())
    for method, report in reports.items():
        parts.append(Paragraph(f"{method}: {recovery_words(report)}", "soft"))
        parts += recovery_picture(report, end, f"relative error of every layer of {case}, {method}")
    for method, own in fusions.items():
        parts += _origins(case, method, own[0].plan)
    graph = next(iter(fusions.values()))[0].plan.graph
    parts += [Heading(f"The {len(graph)} neuron groups"), Code(str(graph))]
    return Section(f"{case}: inside", tuple(parts))


def _origins(case: str, method: str, plan: FusionPlan) -> Iterator[Part]:
    for picture in origins_picture(plan, f"where each neuron came from in {case}, {method}"):
        yield Heading(f"Where each fused neuron came from: {method}")
        yield Paragraph(OWNED if plan.owned else ALIGNED, "soft")
        yield picture
    for text in plan.warnings:
        yield Paragraph(f"Warning: {text}", "note")


def origins_picture(plan: FusionPlan, label: str) -> Iterator[Picture]:
    """One block of strips per moved group, in one of two forms; nothing for a plan that moves nothing.

    If fused neurons have owners (transplant, zip): a strip per member, strong where a neuron goes into the fused
    network, faint where it is left out, and the fused strip in the colours of the members its neurons are made of.
    Otherwise (permutation, optimal transport) every member gives to every fused neuron: a strip per member over the
    fused neurons, whose shade shows which of the member's neurons arrives there, from its first (faint) to its last.
    """
    blocks = {name: strips(maps, owned=plan.owned) for name, maps in plan.maps.items()}
    if not blocks:
        return
    rows = [len(names) for names, _ in blocks.values()]
    figure = new_figure(0.22 * sum(rows) + 0.42 * len(rows))
    axes = figure.subplots(len(rows), squeeze=False, height_ratios=rows)
    for axis, (name, (names, cells)) in zip(axes.flat, blocks.items(), strict=True):
        axis.imshow(cells, aspect="auto", interpolation="none")
        axis.set_title(figure_text(name), fontsize=9, loc="left")
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_yticks([row + 0.5 for row in range(len(names) - 1)], minor=True)
        axis.grid(which="minor", color="white", linewidth=3)
        axis.tick_params(which="both", length=0)
        axis.set_xticks([])
        axis.spines[:].set_visible(False)
    yield picture_of(figure, label)


def strips(maps: Sequence[NeuronMap], *, owned: bool) -> tuple[list[str], Array]:
    """Names of the rows, and their cells: red, green, blue and opacity, shape `(rows, cells, 4)`."""
    from matplotlib.colors import to_rgb

    colours = torch.tensor([to_rgb(COLOURS[member % len(COLOURS)]) for member in range(len(maps))])
    rows: dict[str, Tensor] = {}
    for index, mapping in enumerate(maps):
        if owned:
            _, given = shares_of(mapping)
            strength = (given / given.max().clamp_min(1e-12)).clamp_min(FAINT)
            name = f"member {index}: {int((given > 0).sum())} of {len(given)}"
        else:
            sources = torch.tensor(strongest_sources(mapping), dtype=torch.float)
            strength = FAINT + (1 - FAINT) * sources / max(1, mapping.member - 1)
            name = f"from member {index}"
        rows[name] = torch.cat([colours[index].expand(len(strength), 3), strength[:, None]], 1)
    if owned:
        mass = torch.stack([shares_of(mapping)[0] for mapping in maps], 1)
        mixed = (mass / mass.sum(1, keepdim=True).clamp_min(1e-12)) @ colours
        rows[f"fused: {maps[0].fused}"] = torch.cat([mixed, torch.ones(len(mixed), 1)], 1)
    cells = torch.zeros(len(rows), max(map(len, rows.values())), 4)
    for row, strip in enumerate(rows.values()):
        cells[row, : len(strip)] = strip
    return list(rows), cells.numpy()


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


def recovery_picture(report: RecoveryReport, end: float, label: str) -> Iterator[Picture]:
    """One line per layer in execution order: a ring where it was, a dot where it is, on an axis of relative error.

    The error is |z − t| / |t| of what the layer gives, z, against what the members planned for it, t; a layer that was
    kept as it is has a dot alone. Layers that were left out, and those without an error, are not drawn.

    Args:
        report: of a recovery.
        end: where the axis ends, so that several pictures can be compared.
        label: of the picture.
    """
    shown = _with_error(report)
    if not shown:
        return
    figure = new_figure(0.24 * len(shown) + 0.6)
    axis = figure.subplots()
    for y, layer in enumerate(shown):
        colour, (start, stop) = COLOURS[layer.target == "stream"], (min(x, end) for x in (layer.before, layer.after))
        axis.plot([start, stop], [y, y], color=colour)
        if layer.before != layer.after:
            axis.plot(start, y, "o", color=colour, fillstyle="none")
        axis.plot(stop, y, "o", color=colour)
        words = f"{layer.after:.2f}" if layer.before == layer.after else f"{layer.before:.2f} → {layer.after:.2f}"
        axis.text(1.01, y, words, transform=axis.get_yaxis_transform(), va="center", fontsize=8)
    names = [layer.tensor if len(layer.tensor) <= LETTERS else "…" + layer.tensor[1 - LETTERS :] for layer in shown]
    axis.set_yticks(range(len(shown)), list(map(figure_text, names)), fontsize=8)
    axis.set_xlim(0, 1.02 * end)
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.set_xlabel("relative error")
    axis.grid(axis="x")
    yield picture_of(figure, label)


def recovery_words(report: RecoveryReport) -> str:
    """What the picture was made from, and which layers are not in it and why, in one paragraph.

    Example:
        >>> left_out = LayerRecovery("embed.weight", "left out", note="tied to an embedding")
        >>> recovery_words(RecoveryReport("refit", (left_out,), 100, 1, 0.51))
        '100 samples, 1 pass, 0.5 s. Left out: embed.weight (tied to an embedding).'
    """
    passes = "1 pass" if report.passes == 1 else f"{report.passes} passes"
    absent = [f"{layer.tensor} ({layer.note})" for layer in report.layers if layer.target == "left out"]
    words = [f"{report.samples:,} samples, {passes}, {report.seconds:.1f} s."]
    words += [f"Left out: {', '.join(absent)}."] if absent else []
    return " ".join([*words, *(f"{note}." for note in report.notes)])


def axis_end(reports: Iterable[RecoveryReport]) -> float:
    """Where an axis ends that holds every error of the reports, up to `FARTHEST`.

    Example:
        >>> axis_end([RecoveryReport("refit", (LayerRecovery("a", "layer", before=0.72, after=0.2),), 100, 1, 0.5)])
        0.8
    """
    errors = [error for report in reports for layer in _with_error(report) for error in (layer.before, layer.after)]
    return max(0.2, ceil(min(FARTHEST, max(errors, default=0.0)) * 10) / 10)


def _with_error(report: RecoveryReport) -> list[LayerRecovery]:
    return [layer for layer in report.layers if not (isnan(layer.before) or isnan(layer.after))]
