"""The proof that a graph is right: neurons are moved about in a copy of the network and nothing may change."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from neurograft.axes.maps import Mixing, Pairs, PerUnit
from neurograft.axes.mixing import Mixings
from neurograft.axes.symmetry import Symmetry
from neurograft.errors import InputError, NeurograftError, TraceError
from neurograft.inputs import Inputs, check_model
from neurograft.options import check_seed
from neurograft.preserve_state import keeps_random_state
from neurograft.tracing.bench import Bench, failing_groups, largest_change
from neurograft.tracing.class_proof import prove_classes, prove_steps
from neurograft.tracing.deep import deep_check
from neurograft.tracing.dispatch import Dispatch
from neurograft.tracing.graph import Group, NeuronGraph
from neurograft.tracing.own_tensors import Reading, reads_noted
from neurograft.tracing.permutation import permuted_tensor
from neurograft.tracing.role_proof import prove_roles
from neurograft.tracing.tape import on_meta

DOUBLE_BYTES = 1 << 30  # that a copy of the network in float64 may take
# largest relative change that counts as rounding, by the lowest precision of the outputs and of what they are made of
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 1e-1}
_TOLERANCE |= {torch.complex128: 1e-9, torch.complex64: 1e-4, torch.complex32: 5e-2}
_NOTHING: tuple[float, list[str]] = 0.0, []
_UNREPEATED = (
    "the outputs do not repeat: two runs of the unchanged network on the same inputs are {:.1g} apart (relative); it "
    "keeps state between calls outside its modules, or draws numbers that no seed of torch, numpy or Python governs"
)
_CHANGING = (
    "the outputs of {} do not repeat from call to call: they are {:.1g} apart (relative) on the same inputs, as it "
    "keeps state between calls or draws random numbers; the graph is proven from its state now and a fixed seed"
)


@dataclass(frozen=True)
class Proof:
    """What moving neurons did to the outputs; `error` is max|change| / max|output|.

    `guilty` groups moved the outputs when permuted, `wrong_roles` when readers of two equal neurons were exchanged;
    groups that are `alike` did when every unit that holds them was permuted inside by itself, and not otherwise.
    `narrow` groups did when moved by a random element of their class; `class_error` is the change by all of these.
    `inexact` groups did without their means or biases.
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
    alike: tuple[str, ...] = ()
    narrow: tuple[str, ...] = ()
    inexact: tuple[str, ...] = ()
    class_error: float = 0.0
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
            f"rounding is below {self.tolerance:.0g}; random elements of their classes, {self.class_error:.1g}"
        ]
        if self.deep_error is not None:
            where = f", first at {self.deep_at}" if self.deep_at else ""
            lines.append(f"  every intermediate tensor: {self.deep_error:.1g}{where}")
        for title, names in (
            ("moved the outputs", self.guilty),
            ("has a wrong role", self.wrong_roles),
            ("must be ordered alike in all units", self.alike),
            ("has no wider class than permutation", self.narrow),
            ("has means or biases that count", self.inexact),
        ):
            lines += [f"  {name} {title} ({self.errors.get(name, float('nan')):.1g})" for name in names]
        return "\n".join(lines)


@contextmanager
def _precisions() -> Iterator[set[torch.dtype]]:
    # the dtypes of everything that is computed meanwhile from numbers of any precision
    seen: set[torch.dtype] = set()

    def meet(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        taken = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(x.is_floating_point() or x.is_complex() for x in taken):
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


@keeps_random_state
def verify(model: nn.Module, graph: NeuronGraph, example_inputs: Any, seed: int = 0, deep: bool = False) -> Proof:
    """Prove a graph on a copy of the network: permutations and exchanged readers must not move the outputs.

    (1) Every free group is permuted at random; those that may differ from unit to unit of another group once more, by
    a permutation of its own in every unit, in float64 where the network runs in it. (2) Roles: unit i is copied over
    unit j wherever neurons are made (`out`, `elementwise`), then a share of i's readers (`in`) is moved to j; the
    outputs must not depend on the share.
    And where a unit's readers are zero, the outputs must not depend on what makes it (but for what norms it enters).
    (3) In canonical form a random element of every group's class (a rotation, signs, scales) is applied, in float64
    where the network runs in it.
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
    reading = Reading(bench.model, [model])
    try:
        with reads_noted(reading):
            base, tolerance = _measured(bench)
    except NeurograftError:
        raise
    except Exception as failed:
        raise TraceError(
            f"{type(model).__name__} does not run on the example inputs: {type(failed).__name__}: {failed}"
        ) from failed
    reading.check(graph.unreached)
    if any(bool(torch.isnan(x).any()) for x in base):
        return Proof(True, 0.0, 0.0, 0.0, 0, 0, unproven="the outputs are NaN: look at the weights and the inputs")
    first, second = bench.again()
    repeated = largest_change(base, first)
    if repeated > tolerance:
        return Proof(True, repeated, 0.0, tolerance, 0, 0, unproven=_UNREPEATED.format(repeated), repeats=False)
    changing = largest_change(first, second)
    if changing > tolerance:
        warnings.warn(_CHANGING.format(type(model).__name__, changing), stacklevel=3)
    movable = [group for group in graph.free if group.size > 1]
    moved = {group.name: _shuffle(group.size, bench.generator) for group in movable}

    def permuting(names: Sequence[str]) -> float:
        chosen = {name: Pairs.permutation(moved[name]) for name in names}
        return largest_change(base, bench.run(_permuted(bench, graph, chosen)))

    errors: dict[str, float] = {}
    error = permuting(list(moved))
    guilty = [] if error <= tolerance else failing_groups(list(moved), permuting, tolerance, errors)
    sound = [group for group in movable if group.name not in guilty]
    exact = _Exact(model, bench)
    alike = _prove_insides(exact, graph, sound, errors)
    whole = [group for group in sound if group.name not in alike]
    class_error, narrow = _NOTHING
    if any(group.symmetry is not Symmetry.PERMUTATION for group in whole):
        class_error, narrow = prove_classes(exact.bench, exact.base, graph, whole, exact.tolerance, errors)
    inexact = prove_steps(exact.bench, exact.base, graph, exact.tolerance, errors) if graph.steps else []
    role_error, wrong, checked = prove_roles(bench, graph, sound, tolerance, errors)
    proof = Proof(
        passed=not (guilty or alike or wrong or narrow or inexact) and error <= tolerance and role_error <= tolerance,
        error=error,
        role_error=role_error,
        tolerance=tolerance,
        permuted=len(moved),
        roles_checked=checked,
        guilty=tuple(guilty),
        wrong_roles=tuple(wrong),
        alike=tuple(alike),
        narrow=tuple(narrow),
        inexact=tuple(inexact),
        class_error=class_error,
        errors=errors,
    )
    return _deepened(proof, bench, moved) if deep else proof


def _measured(bench: Bench) -> tuple[list[Tensor], float]:
    # the outputs, and how far they may move by rounding
    with _precisions() as seen:
        base = bench.run({})
    # norms that compute in float32, layers under bfloat16 autocast: what is cast back is no more exact than that
    return base, max((_TOLERANCE.get(dtype, 0.0) for dtype in [*seen, *(x.dtype for x in base)]), default=0.0) or 1e-4


class _Exact:
    """The bench in float64, where a mistake cannot hide in rounding; the given one where that does not run."""

    def __init__(self, model: nn.Module, bench: Bench):
        self._given = model, bench

    @cached_property
    def _found(self) -> tuple[Bench, list[Tensor], float]:
        model, bench = self._given
        return _in_double(model, bench) or (bench, *_measured(bench))

    @property
    def generator(self) -> torch.Generator:
        return self._given[1].generator

    @property
    def bench(self) -> Bench:
        return self._found[0]

    @property
    def base(self) -> list[Tensor]:
        return self._found[1]

    @property
    def tolerance(self) -> float:
        return self._found[2]


def _prove_insides(exact: _Exact, graph: NeuronGraph, sound: Sequence[Group], errors: dict[str, float]) -> list[str]:
    # the groups that may not be permuted differently in every unit, although the graph has them so
    apart: dict[str, Mixing] = {}
    for group in sound:
        if group.per_unit and group.inside is not None:
            orders = [_shuffle(group.size, exact.generator) for _ in range(graph[group.inside].size)]
            orders[0] = torch.arange(group.size)  # of two neurons there is one other order only
            apart[group.name] = PerUnit.permutations(group.inside, torch.stack(orders))
    if not apart:
        return []

    def permuting(names: Sequence[str]) -> float:
        chosen = {name: apart[name] for name in names}
        return largest_change(exact.base, exact.bench.run(_permuted(exact.bench, graph, chosen)))

    return (
        []
        if permuting(list(apart)) <= exact.tolerance
        else failing_groups(list(apart), permuting, exact.tolerance, errors)
    )


def _in_double(model: nn.Module, bench: Bench) -> tuple[Bench, list[Tensor], float] | None:
    # as `_measured`, where a mistake cannot hide in rounding; None where that does not run, or takes much memory
    if sum(x.numel() for x in bench.original.values()) * 8 > DOUBLE_BYTES:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            exact = Bench(model, bench.examples, bench.outputs, bench.seed, double=True)
            base, tolerance = _measured(exact)
    except Exception:  # whatever a network raises that insists on its precision
        return None
    fits = all(x.dtype == torch.float64 and bool(x.isfinite().all()) for x in base if x.is_floating_point())
    return (exact, base, tolerance) if fits else None


def _deepened(proof: Proof, bench: Bench, moved: Mapping[str, Tensor]) -> Proof:
    error, where = deep_check(bench, moved, proof.tolerance)
    return replace(proof, passed=proof.passed and where is None, deep_error=error, deep_at=where)


def _shuffle(size: int, generator: torch.Generator) -> Tensor:
    # a random cycle: no unit stays where it was
    cycle = torch.randperm(size, generator=generator)
    return torch.empty_like(cycle).index_copy(0, cycle, cycle.roll(1))


def _permuted(bench: Bench, graph: NeuronGraph, moved: Mixings) -> dict[str, Tensor]:
    return {
        name: permuted_tensor(x, graph.tensors[name], moved)
        for name, x in bench.original.items()
        if any(group in moved for roles in graph.tensors[name].roles for group in roles)
    }


__all__ = ["Proof", "examples_of", "verify"]
