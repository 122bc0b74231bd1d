"""What neurons do on calibration batches: one column of activations per unit of every group."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from neurograft.axes.layout import Layout, layout_size, sizes_along
from neurograft.axes.mixing import cell_positions
from neurograft.axes.real_parts import real_parts
from neurograft.errors import InputError, OptionError
from neurograft.inputs import Batches, call, device_of, pair_note, split_labels, to_device
from neurograft.members.members import Members
from neurograft.preserve_state import preserve_state
from neurograft.tracing.graph import NeuronGraph, Use
from neurograft.tracing.observing import ObservedOp, observe

When = Literal["pre", "post"]
Side = Literal["input", "output"]
Cells: TypeAlias = dict[tuple[str, ...], Tensor]
"""A group and the groups inside it that are distinguished -> `(rows, units, neurons of each of these …)`."""


def member_activations(members: Members, *, when: When = "pre", samples: int = 1024) -> list[dict[str, Tensor]]:
    """`group_activations` of every member on the same samples, for all outermost free groups.

    Row i is the same sample, position and inner neuron in every member.

    Raises:
        OptionError: there are no networks to run, or no calibration batches.
        InputError: the batches are empty.
    """
    calibration, models = calibration_of(members)
    return [
        group_activations(model, graph, calibration, when=when, samples=samples)
        for model, graph in zip(models, members.graphs, strict=True)
    ]


IN_MEMORY = "load them as models (on the command line fuse .safetensors files without streaming, with --calibration)"


def calibration_of(members: Members, what: str = "looking at activations") -> tuple[Batches, tuple[nn.Module, ...]]:
    """The calibration batches and the networks to run them through.

    Raises:
        OptionError: there are no batches, or the members are checkpoints without networks to run.
    """
    if members.models is None:
        raise OptionError(f"{what} runs the members, but only their checkpoints are open; {IN_MEMORY}")
    if members.calibration is None:
        raise OptionError(
            f"{what} needs calibration batches: pass calibration=, a list of batches or a DataLoader (on the command "
            "line --calibration)"
        )
    return members.calibration, members.models


def group_activations(
    model: nn.Module,
    graph: NeuronGraph,
    batches: Batches,
    groups: Iterable[str] | None = None,
    *,
    when: When = "pre",
    samples: int = 1024,
) -> dict[str, Tensor]:
    """Run a network on calibration batches and keep a sample of what every group's neurons do.

    Args:
        model: the network; it comes back untouched.
        graph: its graph.
        batches: a re-iterable of inputs, with or without labels; read until `samples` inputs have been seen.
        groups: the groups that count, default all outermost free ones.
        when: "pre" takes what makes the neurons (after the norm, if there is one, and before the nonlinearity),
            "post" what their readers get.
        samples: inputs to look at, and rows to keep per group.

    Returns:
        For every group shape `(rows, units)`, at least float32. Rows are inputs; where a unit has many positions (an
        image, tokens, the channels of a head) a random choice among all of them, the same for every network of one
        architecture. A group that is used in several places has rows of each. Groups that no weight makes or reads
        along an activation are left out.

    Raises:
        InputError: the batches hold no inputs, or inputs that the network cannot take.

    Example:
        >>> import neurograft
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> graph = neurograft.trace(net, torch.randn(4, 3))
        >>> found = group_activations(net, graph, [torch.randn(16, 3)], when="post")
        >>> found["0.weight:0"].shape, bool((found["0.weight:0"] >= 0).all())
        (torch.Size([16, 8]), True)
    """
    names = [group.name for group in graph.outermost] if groups is None else list(groups)
    found: dict[str, list[Tensor]] = {}
    for (group,), rows in watch(model, graph, batches, _Collector(places(graph, names, when), samples)).items():
        found.setdefault(group, []).append(rows)
    return {group: torch.cat(rows) if len(rows) > 1 else rows[0] for group, rows in found.items()}


def member_cells(
    members: Members, *, when: When = "pre", samples: int = 1024, rotating: Container[str] = ()
) -> list[Cells]:
    """As `member_activations`, but the neurons inside a unit (the channels of a head) are distinguished.

    Returns:
        For every member and `(group,)` what no inner group divides, shape `(rows, units)`; for `(group, inner)`
        the rest, shape `(rows, units, inner neurons)`, and so on where several inner groups lie beside each other.
        Activations with another free group along another dimension are left out: their rows lie in another order in
        every member. Groups that are `rotating` are watched where they are read, behind the norm that all readers have
        in common; units that hold some wherever they are made or read.
    """
    calibration, models = calibration_of(members)
    cells: list[Cells] = []
    for model, graph in zip(models, members.graphs, strict=True):
        free = {group.name for group in graph.free}
        holding = {group.inside for group in graph.free if group.name in rotating}
        sides = {
            g.name: "post" if g.name in rotating else "both" if g.name in holding else when for g in graph.outermost
        }
        wanted = {
            use: [place for place in found if not place.beside & free]
            for use, found in places(graph, sides, sides).items()
        }
        inside = {g.name: [i.name for i in graph.free if i.inside == g.name] for g in graph.outermost}
        cells.append(watch(model, graph, calibration, _Collector(wanted, samples, inside)))
    return cells


def watch(model: nn.Module, graph: NeuronGraph, batches: Batches, collector: "_Collector") -> Cells:
    """Run the network, untouched, until the collector has seen as many inputs as it needs."""
    device = device_of(model)
    seen = 0
    with preserve_state(model), torch.no_grad(), observe(model, graph, collector):
        for number, batch in enumerate(batches):
            inputs = to_device(split_labels(batch)[0], device)
            try:
                call(model, inputs)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                raise InputError(
                    f"{type(model).__name__} cannot take calibration batch {number}: {error}{pair_note(inputs)}"
                ) from error
            seen += _count(inputs)
            if seen >= collector.samples:
                break
    if not seen:
        raise InputError("the calibration batches hold no inputs")
    return collector.found()


@dataclass(frozen=True, slots=True)
class ActivationSite:
    """Where a group can be watched: on one side of one use of a weight, along one dimension."""

    group: str
    side: Side
    dim: int
    layout: Layout
    rows: float  # share of the group's rows that are taken here
    beside: frozenset[str]  # groups along other dimensions: what they hold is rows here


def places(
    graph: NeuronGraph, groups: Iterable[str], when: str | Mapping[str, str]
) -> dict[tuple[str, int], list[ActivationSite]]:
    """Where to watch each group, per use `(tensor, nth)`; the other side is taken if the named one has no weight.

    `when` is "pre", "post" or "both", for all groups or for each.
    """
    found: dict[tuple[str, int], list[ActivationSite]] = {}
    for group in groups:
        made = list(_made(graph, group))
        read = list(_read(graph, group))
        side = when if isinstance(when, str) else when[group]
        chosen = made + read if side == "both" else (made or read) if side == "pre" else (read or made)
        for use, end, dim, layout in chosen:
            activation = (use.input or ()) if end == "input" else use.output
            beside = {group for d, other in enumerate(activation) if d != dim for group in sizes_along(other)}
            place = ActivationSite(group, end, dim, layout, 1 / len(chosen), frozenset(beside))
            found.setdefault((use.tensor, use.nth), []).append(place)
    return found


def _made(graph: NeuronGraph, group: str) -> Iterator[tuple[Use, Side, int, Layout]]:
    """Outputs that hold the group, of norms if any norm makes it, since they come last before the nonlinearity."""
    makers = [use for use in graph.uses if roles_in(graph, use, group) & {"out", "elementwise"}]
    norms = [use for use in makers if graph.tensors[use.tensor].kind in ("scale", "mean")]
    for use in norms or makers:
        for dim, layout in enumerate(use.output):
            if group in sizes_along(layout):
                yield use, "output", dim, layout
                break


def _read(graph: NeuronGraph, group: str) -> Iterator[tuple[Use, Side, int, Layout]]:
    """Inputs that hold the group, of the weights that read it."""
    for use in graph.uses:
        if "in" not in roles_in(graph, use, group):
            continue
        for dim, layout in enumerate(use.input or ()):
            if group in sizes_along(layout):
                yield use, "input", dim, layout
                break


def roles_in(graph: NeuronGraph, use: Use, group: str) -> frozenset[str]:
    """The roles a group plays in the weight of a use."""
    return frozenset(role for roles in graph.tensors[use.tensor].roles for role in roles.get(group, ()))


def _count(inputs: object) -> int:
    sizes = [leaf.shape[0] for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()]
    return max(sizes, default=0)


@dataclass(eq=False)
class _Rows:
    """Uniform samples, without repetition, of all rows seen so far: those with the smallest random keys."""

    most: int
    generator: torch.Generator
    keys: dict[tuple[str, ...], Tensor] = field(default_factory=dict)
    rows: dict[tuple[str, ...], Tensor] = field(default_factory=dict)

    def add(self, offered: Mapping[tuple[str, ...], Tensor]) -> None:
        """Offer the rows of one batch, each of shape `(rows, units, …)`."""
        for kind, rows in offered.items():
            keys = torch.rand(len(rows), generator=self.generator)
            rows, keys = self._least(rows, keys)
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32), copy=True)
            if kind in self.rows:
                rows, keys = self._least(torch.cat([self.rows[kind], rows]), torch.cat([self.keys[kind], keys]))
            self.rows[kind], self.keys[kind] = rows, keys

    def _least(self, rows: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        if len(keys) <= self.most:
            return rows, keys
        chosen = keys.argsort()[: self.most].sort().values
        return rows[chosen.to(rows.device)], keys[chosen]


class _Collector:
    """Keeps rows of activations as the network runs; `inside` names the groups to distinguish within each group."""

    def __init__(
        self,
        wanted: Mapping[tuple[str, int], Sequence[ActivationSite]],
        samples: int,
        inside: Mapping[str, Sequence[str]] | None = None,
    ):
        self.samples = samples
        self.wanted: dict[tuple[str, int], list[tuple[ActivationSite, _Rows, dict[tuple[str, ...], Tensor]]]] = {}
        number = 0
        for use, found in wanted.items():
            for place in found:
                rows = _Rows(max(1, round(place.rows * samples)), torch.Generator().manual_seed(number))
                cells = cell_positions(place.layout, place.group, (inside or {}).get(place.group, ()))
                self.wanted.setdefault(use, []).append((place, rows, cells))
                number += 1

    def before(self, step: ObservedOp) -> None:
        """Nothing is taken before an op has run."""

    def after(self, step: ObservedOp, result: Any) -> None:
        """Take what is wanted of this use of a weight."""
        if step.reading is None:
            return
        output = result[0] if isinstance(result, (tuple, list)) else result
        for place, rows, cells in self.wanted.get(step.reading.key, ()):
            tensor = step.reading.operands.input if place.side == "input" else output
            if tensor is not None and tensor.dim() > place.dim and tensor.shape[place.dim] == layout_size(place.layout):
                rows.add({key: _rows_of(real_parts(tensor), place.dim, found) for key, found in cells.items()})

    def found(self) -> Cells:
        """All rows of every group, by the groups inside that are distinguished."""
        parts: dict[tuple[str, ...], list[Tensor]] = {}
        for place, rows, _ in (item for found in self.wanted.values() for item in found):
            for inner, kept in rows.rows.items():
                parts.setdefault((place.group, *inner), []).append(kept)
        return {key: torch.cat(rows) if len(rows) > 1 else rows[0] for key, rows in parts.items()}


def _rows_of(tensor: Tensor, dim: int, positions: Tensor) -> Tensor:
    """All entries of each unit, or of each neuron inside units, as one column, shape `(rows, units, …)`."""
    last = tensor.movedim(dim, -1)
    flat = positions.movedim(-1, 0).flatten()
    if len(flat) != last.shape[-1] or not bool((flat == torch.arange(len(flat))).all()):
        last = last[..., flat.to(tensor.device)]
    return last.reshape(-1, *positions.shape[:-1])
