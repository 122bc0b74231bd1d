"""The proof of roles: what makes a unit and what reads it are distinguished by what may be changed unnoticed."""

from collections.abc import Container, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from neurograft.axes.layout import Layout, sizes_along
from neurograft.axes.mixing import occurrences
from neurograft.tracing.bench import Bench, failing_groups, largest_change
from neurograft.tracing.graph import Group, NeuronGraph, TensorInfo


def prove_roles(
    bench: Bench, graph: NeuronGraph, sound: Sequence[Group], tolerance: float, errors: dict[str, float]
) -> tuple[float, list[str], int]:
    """The largest change by exchanged readers and idle units, the groups that caused it, and how many were tried."""
    checked = [group for group in sound if _role_checkable(group, graph)]
    pairs = {group.name: _pair(group.size, bench.generator) for group in checked}

    def exchanging(names: Sequence[str]) -> float:
        chosen = {name: pairs[name] for name in names}
        return largest_change(
            bench.run(_exchanged(bench, graph, chosen, 0.0)), bench.run(_exchanged(bench, graph, chosen, 0.7))
        )

    idle = {group.name: _pair(group.size, bench.generator)[0] for group in sound if _idle_checkable(group, graph)}

    def idling(names: Sequence[str]) -> float:
        chosen = {name: idle[name] for name in names}
        return largest_change(
            bench.run(_with_idle_units(bench, graph, chosen, 0.0)),
            bench.run(_with_idle_units(bench, graph, chosen, 0.5)),
        )

    role_error, wrong = 0.0, []
    for subjects, measure in ((pairs, exchanging), (idle, idling)):
        moved_by = measure(list(subjects)) if subjects else 0.0
        role_error = max(role_error, moved_by)
        if moved_by > tolerance:
            wrong += failing_groups(list(subjects), measure, tolerance, errors)
    return role_error, list(dict.fromkeys(wrong)), len({*pairs, *idle})


def _pair(size: int, generator: torch.Generator) -> tuple[int, int]:
    first, second = torch.randperm(size, generator=generator)[:2].tolist()
    return int(first), int(second)


def _role_checkable(group: Group, graph: NeuronGraph) -> bool:
    # a dim that is made and read at once (tied), or read through a norm of the weight, cannot be shared out; of two
    # equal units a ranking chooses one
    if group.ranked_by:
        return False
    for slot in group.slots:
        info = graph.tensors[slot.tensor]
        roles = info.roles[slot.dim][group.name]
        if "in" in roles and (len(roles) > 1 or info.curved):
            return False
    return any(slot.role == "in" for slot in group.slots)


def _idle_checkable(group: Group, graph: NeuronGraph) -> bool:
    # what is reduced or contracted without a weight sees a unit that no weight reads
    if group.reduced_by or group.bilinear:
        return False
    infos = [(graph.tensors[slot.tensor], slot.dim) for slot in group.slots]
    return all(not info.curved and len(info.roles[dim][group.name]) == 1 for info, dim in infos)


def _with_idle_units(bench: Bench, graph: NeuronGraph, units: Mapping[str, int], amount: float) -> dict[str, Tensor]:
    # each named unit: nobody reads it, and what makes it is scaled by 1 + amount * noise
    changed: dict[str, Tensor] = {}
    for name, x in bench.original.items():
        info = graph.tensors[name]
        for dim, layout in enumerate(info.layouts):
            for group, places in _places(layout, units):
                own = places[units[group]].to(x.device)
                part = x.index_select(dim, own)
                if "in" in info.roles[dim][group]:
                    x = x.index_fill(dim, own, 0.0)
                else:
                    noise = torch.rand(part.shape, generator=torch.Generator().manual_seed(bench.seed))
                    x = x.index_copy(dim, own, part * (1 + amount * noise.to(x.device, x.dtype)))
                changed[name] = x
    return changed


def _exchanged(
    bench: Bench, graph: NeuronGraph, pairs: Mapping[str, tuple[int, int]], share: float
) -> dict[str, Tensor]:
    changed: dict[str, Tensor] = {}
    for name, x in bench.original.items():
        info = graph.tensors[name]
        if any(group in pairs for roles in info.roles for group in roles):
            changed[name] = _exchanged_tensor(x, info, pairs, share)
    return changed


def _exchanged_tensor(x: Tensor, info: TensorInfo, pairs: Mapping[str, tuple[int, int]], share: float) -> Tensor:
    for dim, layout in enumerate(info.layouts):
        for group, places in _places(layout, pairs):
            i, j = (places[unit].to(x.device) for unit in pairs[group])
            part = x.index_select(dim, i)
            if "in" in info.roles[dim][group]:
                x = x.index_add(dim, j, part * share)
                x = x.index_copy(dim, i, part * (1 - share))
            else:
                x = x.index_copy(dim, j, part)
    return x


def _places(layout: Layout, groups: Container[str]) -> Iterator[tuple[str, Tensor]]:
    # of those groups, where their units sit, one place after the other
    for group in sizes_along(layout):
        if group in groups:
            for places in occurrences(layout, group):
                yield group, places


__all__ = ["prove_roles"]
