"""The proof that a graph is right: neurons are moved about in a copy of the network and nothing may change."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from neurograft.axes.layout import Layout, sizes_along
from neurograft.axes.maps import Pairs
from neurograft.axes.mixing import Mixings, occurrences
from neurograft.errors import InputError
from neurograft.inputs import Inputs, check_model
from neurograft.options import check_seed
from neurograft.tracing.bench import Bench, largest_change
from neurograft.tracing.deep import deep_check
from neurograft.tracing.dispatch import Dispatch
from neurograft.tracing.graph import Group, NeuronGraph, TensorInfo
from neurograft.tracing.permutation import permuted_tensor
from neurograft.tracing.tape import on_meta

# largest relative change that counts as rounding, by the lowest precision of the outputs and of what they are made of
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 1e-1}
_UNREPEATED = (
    "the outputs do not repeat: two runs of the unchanged network on the same inputs are {:.1g} apart (relative); it "
    "keeps state between calls, or draws numbers that torch.manual_seed does not govern"
)


@dataclass(frozen=True)
class Proof:
    """What moving neurons did to the outputs; `error` is max|change| / max|output|.

    `guilty` groups moved the outputs when permuted, `wrong_roles` when readers of two equal neurons were exchanged.
    `repeats` is False if the outputs differ from call to call, so that nothing can be proven.
    `deep_error` is the largest error of any intermediate tensor, `deep_at` the first op above the tolerance.
    """

    passed: bool
    error: float
    role_error: float
    tolerance: float
    permuted: int
    roles_checked: int
    guilty: tuple[str, ...] = ()
    wrong_roles: tuple[str, ...] = ()
    errors: Mapping[str, float] = field(default_factory=dict)
    deep_error: float | None = None
    deep_at: str | None = None
    unproven: str | None = None
    repeats: bool = True

    def __str__(self) -> str:
        if self.unproven:
            return f"unproven ({self.unproven})"
        lines = [
            f"{'proven' if self.passed else 'WRONG'}: {self.permuted} groups permuted, outputs moved by "
            f"{self.error:.1g} (relative); roles of {self.roles_checked} groups, {self.role_error:.1g}; "
            f"rounding is below {self.tolerance:.0g}"
        ]
        if self.deep_error is not None:
            where = f", first at {self.deep_at}" if self.deep_at else ""
            lines.append(f"  every intermediate tensor: {self.deep_error:.1g}{where}")
        for title, names in (("moved the outputs", self.guilty), ("has a wrong role", self.wrong_roles)):
            lines += [f"  {name} {title} ({self.errors.get(name, float('nan')):.1g})" for name in names]
        return "\n".join(lines)


@contextmanager
def _precisions() -> Iterator[set[torch.dtype]]:
    # the dtypes of everything that is computed meanwhile from numbers of any precision
    seen: set[torch.dtype] = set()

    def meet(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if any(x.is_floating_point() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)):
            seen.update(x.dtype for x in tree_leaves(result) if isinstance(x, Tensor))
        return result

    with Dispatch(meet):
        yield seen


def examples_of(example_inputs: Any) -> tuple[Inputs, ...]:
    """A list is several example inputs, anything else is one."""
    if isinstance(example_inputs, list):
        if not example_inputs:
            raise InputError("example_inputs is an empty list: give at least one example input")
        return tuple(example_inputs)
    return (example_inputs,)


def verify(model: nn.Module, graph: NeuronGraph, example_inputs: Any, seed: int = 0, deep: bool = False) -> Proof:
    """Prove a graph on a copy of the network: permutations and exchanged readers must not move the outputs.

    (1) Every free group is permuted at random. (2) Roles: unit i is copied over unit j wherever neurons are made
    (`out`, `elementwise`), then a share of i's readers (`in`) is moved to j; the outputs must not depend on the share.
    And where a unit's readers are zero, the outputs must not depend on what makes it (but for what norms it enters).
    With `deep`, every intermediate tensor is compared with its permuted original, which finds wrong rules that the
    outputs forgive. If outputs move, the guilty groups are found one by one.

    Example:
        >>> import neurograft
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(4, 3)
        >>> neurograft.verify(net, neurograft.trace(net, x), x).passed
        True
    """
    check_model(model)
    check_seed(seed)
    examples = examples_of(example_inputs)
    if on_meta(model):
        return Proof(True, 0.0, 0.0, 0.0, 0, 0, unproven="meta device")
    bench = Bench(model, examples, graph.outputs, seed)
    with _precisions() as seen:
        base = bench.run({})
    if any(x.is_floating_point() and bool(torch.isnan(x).any()) for x in base):
        return Proof(True, 0.0, 0.0, 0.0, 0, 0, unproven="the outputs are NaN: look at the weights and the inputs")
    # norms that compute in float32, layers under bfloat16 autocast: what is cast back is no more exact than that
    tolerance = max((_TOLERANCE.get(dtype, 0.0) for dtype in [*seen, *(x.dtype for x in base)]), default=0.0) or 1e-4
    repeated = largest_change(base, bench.run({}))
    if repeated > tolerance:
        return Proof(True, repeated, 0.0, tolerance, 0, 0, unproven=_UNREPEATED.format(repeated), repeats=False)
    movable = [group for group in graph.free if group.size > 1]
    moved = {group.name: _shuffle(group.size, bench.generator) for group in movable}

    def permuting(names: Sequence[str]) -> float:
        chosen = {name: Pairs.permutation(moved[name]) for name in names}
        return largest_change(base, bench.run(_permuted(bench, graph, chosen)))

    errors: dict[str, float] = {}
    error = permuting(list(moved))
    guilty = [] if error <= tolerance else culprits(list(moved), permuting, tolerance, errors)
    sound = [group for group in movable if group.name not in guilty]
    role_error, wrong, checked = _prove_roles(bench, graph, sound, tolerance, errors)
    proof = Proof(
        passed=not guilty and not wrong and error <= tolerance and role_error <= tolerance,
        error=error,
        role_error=role_error,
        tolerance=tolerance,
        permuted=len(moved),
        roles_checked=checked,
        guilty=tuple(guilty),
        wrong_roles=tuple(wrong),
        errors=errors,
    )
    return _deepened(proof, bench, moved) if deep else proof


def _prove_roles(
    bench: Bench, graph: NeuronGraph, sound: Sequence[Group], tolerance: float, errors: dict[str, float]
) -> tuple[float, list[str], int]:
    # the largest change by exchanged readers and idle units, the groups that caused it, and how many were asked
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
            bench.run(_idled(bench, graph, chosen, 0.0)), bench.run(_idled(bench, graph, chosen, 0.5))
        )

    role_error, wrong = 0.0, []
    for subjects, measure in ((pairs, exchanging), (idle, idling)):
        moved_by = measure(list(subjects)) if subjects else 0.0
        role_error = max(role_error, moved_by)
        if moved_by > tolerance:
            wrong += culprits(list(subjects), measure, tolerance, errors)
    return role_error, list(dict.fromkeys(wrong)), len({*pairs, *idle})


def _deepened(proof: Proof, bench: Bench, moved: Mapping[str, Tensor]) -> Proof:
    error, where = deep_check(bench, moved, proof.tolerance)
    return replace(proof, passed=proof.passed and where is None, deep_error=error, deep_at=where)


def culprits(
    names: Sequence[str], measure: Callable[[Sequence[str]], float], tolerance: float, errors: dict[str, float]
) -> list[str]:
    """The names without which all others together stay within the tolerance; halves first, then one by one."""

    def search(part: Sequence[str]) -> list[str]:
        error = measure(part)
        if error <= tolerance:
            return []
        if len(part) <= 1:
            errors.update(dict.fromkeys(part, error))
            return list(part)
        middle = len(part) // 2
        return search(part[:middle]) + search(part[middle:])

    guilty = search(names)
    rest = [name for name in names if name not in guilty]
    if guilty and measure(rest) <= tolerance:
        return guilty
    kept: list[str] = []
    for name in rest:
        error = measure([*kept, name])
        if error <= tolerance:
            kept.append(name)
        else:
            errors[name] = error
            guilty.append(name)
    return guilty


def _shuffle(size: int, generator: torch.Generator) -> Tensor:
    # a random cycle: no unit stays where it was
    cycle = torch.randperm(size, generator=generator)
    return torch.empty_like(cycle).index_copy(0, cycle, cycle.roll(1))


def _pair(size: int, generator: torch.Generator) -> tuple[int, int]:
    first, second = torch.randperm(size, generator=generator)[:2].tolist()
    return int(first), int(second)


def _permuted(bench: Bench, graph: NeuronGraph, moved: Mixings) -> dict[str, Tensor]:
    return {
        name: permuted_tensor(x, graph.tensors[name], moved)
        for name, x in bench.original.items()
        if any(group in moved for roles in graph.tensors[name].roles for group in roles)
    }


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


def _idled(bench: Bench, graph: NeuronGraph, units: Mapping[str, int], amount: float) -> dict[str, Tensor]:
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


__all__ = ["Proof", "examples_of", "verify"]
