"""The proof of classes: random elements of every group's class, in canonical form, must not move the outputs."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from neurograft.axes.maps import NeuronMap, PerUnit, Plain
from neurograft.axes.mixing import mix_along, roles_mixing
from neurograft.axes.symmetry import Symmetry, random_element
from neurograft.tracing.bench import Bench, failing_groups, largest_change
from neurograft.tracing.canonical import canonical, canonical_graph
from neurograft.tracing.graph import Group, NeuronGraph
from neurograft.tracing.parts import Absorb, Balance, Centre, Fold


def prove_classes(
    bench: Bench,
    base: Sequence[Tensor],
    graph: NeuronGraph,
    groups: Sequence[Group],
    tolerance: float,
    errors: dict[str, float],
) -> tuple[float, list[str]]:
    """The largest change by random elements of the groups' classes, and the groups whose class is too wide."""
    names = [group.name for group in groups if group.symmetry is not Symmetry.PERMUTATION]
    if not names:
        return 0.0, []

    def disturbing(chosen: Sequence[str]) -> float:
        return largest_change(base, bench.run(disturbed(bench.original, graph, chosen, bench.seed)))

    error = disturbing(names)
    return error, [] if error <= tolerance else failing_groups(names, disturbing, tolerance, errors)


def prove_steps(
    bench: Bench, base: Sequence[Tensor], graph: NeuronGraph, tolerance: float, errors: dict[str, float]
) -> list[str]:
    """The groups whose means or biases count, although the graph has them taken out."""
    steps = [step for step in graph.steps if isinstance(step, (Centre, Absorb))]
    names = list(dict.fromkeys(step.group for step in steps))

    def without(chosen: Sequence[str]) -> float:
        changed = canonical(bench.original, graph, [step for step in steps if step.group in chosen])
        return largest_change(base, bench.run({name: x.to(bench.original[name].dtype) for name, x in changed.items()}))

    return [] if not names or without(names) <= tolerance else failing_groups(names, without, tolerance, errors)


def disturbed(
    state: Mapping[str, Tensor],
    graph: NeuronGraph,
    names: Container[str],
    seed: int,
    classes: Mapping[str, Symmetry] | None = None,
) -> dict[str, Tensor]:
    """The tensors that a random element of the classes of some groups changes, in the tensors' own precision.

    Args:
        state: the network's tensors; they are only read.
        graph: its graph.
        names: the groups.
        seed: of the elements.
        classes: other classes than the graph's, to see what a wider one does.
    """
    kinds = {g.name: g.symmetry for g in graph.groups if g.name in names} | dict(classes or {})
    own = [step for step in graph.steps if step.group in names]
    steps: list[Fold | Balance] = [s for s in own if isinstance(s, Fold)]
    steps += [s for s in own if isinstance(s, Balance) and kinds[s.group] is graph[s.group].symmetry]
    generators = {name: torch.Generator().manual_seed(seed + i) for i, name in enumerate(graph.by_name)}

    def element(step: Balance, shape: tuple[int, ...]) -> Tensor:
        drawn = generators[step.group]
        if step.each:
            return 4.0 ** (torch.rand(shape, generator=drawn, dtype=torch.double) - 0.5)
        matrix = random_element(kinds[step.group], shape[-1], drawn, shape[0])
        assert isinstance(matrix, Tensor)
        return matrix

    changed = canonical(state, graph, steps, element)
    balanced = {step.group for step in steps if isinstance(step, Balance)}
    moved = {
        name: _random_map(graph[name], graph, kind, generators[name])
        for name, kind in kinds.items()
        if name not in balanced and kind is not Symmetry.PERMUTATION
    }
    return _moved(state, changed, graph, moved)


def _random_map(group: Group, graph: NeuronGraph, kind: Symmetry, generator: torch.Generator) -> NeuronMap:
    outer = group.inside if group.per_unit else None
    merge = random_element(kind, group.size, generator, 0 if outer is None else graph[outer].size)
    unmerge: Plain = merge
    if isinstance(merge, Tensor):
        unmerge = torch.linalg.inv(merge).mT
    elif merge.weight is not None:
        unmerge = replace(merge, weight=merge.weight.reciprocal())
    return NeuronMap(merge, unmerge) if outer is None else NeuronMap(PerUnit(outer, merge), PerUnit(outer, unmerge))


def _moved(
    state: Mapping[str, Tensor], changed: dict[str, Tensor], graph: NeuronGraph, moved: Mapping[str, NeuronMap]
) -> dict[str, Tensor]:
    for name, info in canonical_graph(graph).tensors.items():
        if any(group in moved for roles in info.roles for group in roles):
            x = changed.get(name, state[name])
            x = x.to(torch.promote_types(x.dtype, torch.float64))
            for dim, layout in enumerate(info.layouts):
                mixings = {g: roles_mixing(moved[g], roles) for g, roles in info.roles[dim].items() if g in moved}
                x = mix_along(x, dim, layout, layout, mixings)
            changed[name] = x
    return {name: x.to(state[name].dtype) for name, x in changed.items()}


__all__ = ["disturbed", "prove_classes", "prove_steps"]
