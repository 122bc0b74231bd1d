"""The class of symmetry of every group: the meet over all ops that its units pass, and what keeps it from being wider.

A norm's scale stands between what may rotate and what reads it. Where nothing else sees what is scaled, it can be
folded into the readers (`Fold`), and does not count.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from neurograft.axes.symmetry import Symmetry
from neurograft.tracing.algebra import Axis, Var, find, leaves
from neurograft.tracing.blocks import blocks_of
from neurograft.tracing.labelling import Labelling
from neurograft.tracing.laws import (
    ATTENTION,
    BATCH_NORMS,
    BIAS,
    CONTRACTIONS,
    ENTRYWISE,
    FIXING_ONE,
    LAYER_NORMS,
    LINEAR,
    RMS_NORMS,
    SUMS,
)
from neurograft.tracing.parts import Fold, TensorInfo
from neurograft.tracing.rules.table import arg
from neurograft.tracing.tape import Op, op_tensors

NORMS = LAYER_NORMS | RMS_NORMS
EXPANDING = {"expand", "expand_as", "broadcast_to"}


@dataclass(slots=True)
class Found:
    """What the ops allow of the groups, by name.

    `classes` holds the class and the op that limits it. `folds` are the scales that must be folded for that. Weights
    that are `before_norm` make units whose scale a BatchNorm behind them takes out.
    """

    classes: dict[str, tuple[Symmetry, str]]
    folds: tuple[Fold, ...]
    before_norm: frozenset[str]
    centred: frozenset[str]
    inexact: frozenset[str]


@dataclass(slots=True)
class _Scale:
    """A scale of one group on its way: where it is added to, and what reads what was scaled.

    Or which weights alone make what is scaled (LayerScale), so that it is folded into these.
    """

    tensor: str
    offset: float
    at: str
    shift: str | None = None
    readers: dict[str, str | None] = field(default_factory=dict)  # a weight, and the bias beside it
    biased: bool = True  # whether the shift can be moved into the readers' biases
    refused: str = ""
    writers: tuple[str, ...] = ()


@dataclass(slots=True)
class _Marks:
    """What is known of tensors, by identity.

    They are scaled, squared, centred or even (one value for all units) along a group, or made by weights and nothing
    since.
    """

    scaled: dict[tuple[int, str], _Scale] = field(default_factory=dict)
    squared: set[tuple[int, str]] = field(default_factory=set)
    even: set[tuple[int, str]] = field(default_factory=set)
    centred: set[tuple[int, str]] = field(default_factory=set)
    fresh: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def replace(self, tensors: set[int], new: "_Marks") -> None:
        """Forget what was known of some tensors, which were written over, and learn what is new."""
        if tensors:
            self.scaled = {key: scale for key, scale in self.scaled.items() if key[0] not in tensors}
            self.squared = {key for key in self.squared if key[0] not in tensors}
            self.even = {key for key in self.even if key[0] not in tensors}
            self.centred = {key for key in self.centred if key[0] not in tensors}
            self.fresh = {key: names for key, names in self.fresh.items() if key not in tensors}
        self.scaled |= new.scaled
        self.squared |= new.squared
        self.even |= new.even
        self.centred |= new.centred
        self.fresh |= new.fresh


def classes_of(labelling: Labelling, variables: Mapping[str, Var], tensors: Mapping[str, TensorInfo]) -> Found:
    """The classes of all free groups, by rules alone."""
    return _Reading(labelling, variables, tensors).found()


class _Reading:
    def __init__(self, labelling: Labelling, variables: Mapping[str, Var], tensors: Mapping[str, TensorInfo]):
        self.labelling, self.tensors = labelling, tensors
        self.names = {var: name for name, var in variables.items() if not var.fixed}
        self.kinds = dict.fromkeys(self.names.values(), Symmetry.LINEAR)
        self.limits = dict.fromkeys(self.names.values(), "")
        self.marks = _Marks()
        self.scales: dict[tuple[str, str], _Scale] = {}
        self.reads: dict[tuple[str, str], set[str | None]] = {}  # by which scales a weight reads a group
        self.offsets: dict[int, float] = {}
        self.before_norm: set[str] = set()
        self.bare: set[str] = set()  # groups that something reads with their mean
        self.known: dict[int, tuple[frozenset[str], ...]] = {}
        self.along: dict[Axis, frozenset[str]] = {}
        self.taken = Counter(id(x) for op in labelling.steps for x in op_tensors(op))
        self.now = _Marks()

    def found(self) -> Found:
        if self.names:
            for op in self.labelling.steps:
                self._read(op)
        for info in self.tensors.values():
            groups = [group for group in self._of_info(info) if (info.name, group) not in self.scales]
            if info.kind == "statistic" or (info.curved and groups):
                self._limit(groups, Symmetry.PERMUTATION, f"the values of {info.name}")
        for var, why in self.labelling.narrowed.items():
            self._limit([self.names[root] for root in [find(var)] if root in self.names], Symmetry.PERMUTATION, why)
        folds = [fold for key in self.scales if (fold := self._fold(*key)) is not None]
        kept = [fold for fold in folds if self.kinds[fold.group].rotates]
        classes = {name: (kind, self.limits[name]) for name, kind in self.kinds.items()}
        inexact = {self.names[root] for var in self.labelling.inexact for root in [find(var)] if root in self.names}
        centred = {name for name, kind in self.kinds.items() if kind is Symmetry.FIXING_ONE}
        return Found(
            classes, tuple(kept), frozenset(self.before_norm), frozenset(centred - self.bare), frozenset(inexact)
        )

    # where groups lie

    def _dims(self, x: Tensor) -> tuple[frozenset[str], ...]:
        if id(x) not in self.known:
            self.known[id(x)] = self._dims_now(x)
        return self.known[id(x)]

    def _dims_now(self, x: Tensor) -> tuple[frozenset[str], ...]:
        label = self.labelling.seen.get(id(x))
        if label is None:
            return ()
        dims: list[frozenset[str]] = []
        for axes in blocks_of(label):
            found = [self._groups_along(axis) for axis in axes]
            dims = [a | b for a, b in zip(dims, found, strict=True)] if dims else found
        return tuple(dims)

    def _groups_along(self, axis: Axis) -> frozenset[str]:
        if axis not in self.along:
            self.along[axis] = frozenset(self.names[var] for var in leaves(axis) if var in self.names)
        return self.along[axis]

    def _groups(self, x: Tensor) -> frozenset[str]:
        return frozenset().union(*self._dims(x))

    def _varying(self, x: Tensor) -> frozenset[str]:
        # the groups along which a tensor has not one value for all units
        return frozenset(group for group in self._groups(x) if (id(x), group) not in self.marks.even)

    def _of_info(self, info: TensorInfo) -> Iterator[str]:
        return (group for roles in info.roles for group in roles if group in self.kinds)

    # limits

    def _limit(self, groups: Iterable[str], kind: Symmetry, why: str | Op) -> None:
        for group in groups:
            met = self.kinds[group].meet(kind)
            if met is not self.kinds[group]:
                self.kinds[group] = met
                self.limits[group] = (
                    f"{why.name} at {why.module or 'the network itself'}" if isinstance(why, Op) else why
                )

    def _refuse_scales(self, x: Tensor, groups: Iterable[str], op: Op) -> None:
        # somebody looks at what was scaled who cannot take the scale over
        for group in groups:
            scale = self.marks.scaled.get((id(x), group))
            if scale is not None and not scale.refused:
                scale.refused = f"{op.name} at {op.module or 'the network itself'} sees the scale {scale.tensor}"

    def _pass_on(self, op: Op, x: Tensor, groups: Iterable[str] | None = None, fresh: bool = True) -> None:
        # what is known of x is true of the results; `fresh` unless the op depends on more than weights
        for r in _results(op):
            for group in self._groups(r) if groups is None else groups:
                if (id(x), group) in self.marks.even or group not in self._groups(x):
                    self.now.even.add((id(r), group))
                if (id(x), group) in self.marks.scaled:
                    self.now.scaled[id(r), group] = self.marks.scaled[id(x), group]
                if (id(x), group) in self.marks.squared:
                    self.now.squared.add((id(r), group))
                if (id(x), group) in self.marks.centred:
                    self.now.centred.add((id(r), group))
            if fresh and id(x) in self.marks.fresh:
                self.now.fresh[id(r)] = self.marks.fresh[id(x)]

    # one op

    def _read(self, op: Op) -> None:
        taken = [x for x in op_tensors(op) if self._groups(x)]
        if not taken:
            if op.name in EXPANDING:
                self.marks.even.update((id(r), group) for r in _results(op) for group in self._groups(r))
            return
        self.now = _Marks()
        self._read_one(op, op.name.rstrip("_"), taken)
        self.marks.replace({id(x) for x in op.mutates}, self.now)

    def _read_one(self, op: Op, name: str, taken: list[Tensor]) -> None:
        if any(id(r) in self.labelling.behind for r in _results(op)) and name not in CONTRACTIONS:
            self._read_weights(op, name, taken)
        elif name in LINEAR or name in ("copy",):
            self._read_linear(op, taken)
        elif name in CONTRACTIONS:
            self._read_contraction(op, name)
        elif name in ATTENTION:
            self._read_attention(op)
        elif name in ("add", "sub"):
            self._read_sum(op, taken)
        elif name in ("mul", "div"):
            self._read_product(op, name, taken)
        elif name == "square" or (name == "pow" and arg(op, 1) == 2):
            self._square(op, taken[0])
        elif name in SUMS or name in FIXING_ONE or name in ("norm", "linalg_vector_norm"):
            self._read_reduction(op, name, taken[0])
        elif name in NORMS:
            self._read_norm(op, name)
        elif name in BATCH_NORMS:
            self._read_batch_norm(op)
        elif name in ENTRYWISE or (name == "clamp_min" and arg(op, 1) == 0):
            self._read_entrywise(op, ENTRYWISE.get(name, Symmetry.SCALED), taken)
        else:
            self._read_entrywise(op, Symmetry.PERMUTATION, taken)

    def _read_entrywise(self, op: Op, kind: Symmetry, taken: list[Tensor]) -> None:
        results = frozenset().union(*(self._groups(r) for r in _results(op)))
        for x in taken:
            groups = self._groups(x)
            # what an op reduces or mixes entry by entry nobody can undo
            self._limit(groups & results, kind, op)
            self._limit(groups - results, Symmetry.PERMUTATION, op)
            self._refuse_scales(x, groups, op)

    def _read_weights(self, op: Op, name: str, taken: list[Tensor]) -> None:
        # ops on parameters alone make a weight: (1 + w) of Gemma's norms, w.T
        others = [a for a in op.args if isinstance(a, (int, float))]
        if name == "add" and len(taken) == 1 and len(others) == 1 and op.kwargs.get("alpha", 1) == 1:
            for r in _results(op):
                self.offsets[id(r)] = self.offsets.get(id(taken[0]), 0.0) + others[0]
        elif name in LINEAR:
            for r in _results(op):
                self.offsets[id(r)] = self.offsets.get(id(taken[0]), 0.0)
        else:
            for x in taken:
                self._limit(self._groups(x), Symmetry.PERMUTATION, op)

    def _read_linear(self, op: Op, taken: list[Tensor]) -> None:
        if len(taken) == 1 or op.name in ("copy_", "copy"):
            self._pass_on(op, taken[-1])
        else:
            for x in taken:
                self._refuse_scales(x, self._groups(x), op)

    def _read_contraction(self, op: Op, name: str) -> None:
        bias = arg(op, BIAS[name]) if name in BIAS else None
        operands = [x for x in op_tensors(op) if x is not bias]
        made = frozenset().union(*(self._groups(r) for r in _results(op)))
        if name == "convolution" and arg(op, 8) != 1:
            for x in operands:
                self._limit(self._groups(x), Symmetry.PERMUTATION, op)
                self._refuse_scales(x, self._groups(x), op)
            return
        if "grouped" in name:  # experts run along with the rows that are dealt to them
            self._limit(self._dims(operands[1])[0], Symmetry.PERMUTATION, op)
            operands = operands[:2]
        for i, x in enumerate(operands):
            behind = self.labelling.behind.get(id(x), ())
            for group in self._groups(x):
                facing = [y for j, y in enumerate(operands) if j != i and group in self._groups(y)]
                if (facing and group in made) or sum(group in dim for dim in self._dims(x)) > 1:
                    self._limit([group], Symmetry.PERMUTATION, op)  # run along, as heads do
                    self._refuse_scales(x, [group], op)
                elif facing and not behind:
                    self._read_by(op, name, group, x, facing, bias)
                elif not facing and not behind:
                    for r in _results(op):
                        if (id(x), group) in self.marks.scaled:
                            self.now.scaled[id(r), group] = self.marks.scaled[id(x), group]
                        if (id(x), group) in self.marks.squared:
                            self._limit([group], Symmetry.PERMUTATION, op)
        weights = [n for x in operands for n in self.labelling.behind.get(id(x), ())]
        if weights:
            beside = self.labelling.behind.get(id(bias), ()) if isinstance(bias, Tensor) else ()
            self.now.fresh.update((id(r), (*weights, *beside)) for r in _results(op))

    def _read_attention(self, op: Op) -> None:
        operands = list(op_tensors(op))
        for i, x in enumerate(operands):
            dims = self._dims(x)
            across = frozenset().union(*(dims if i > 2 else dims[:-1]))
            self._limit(across, Symmetry.PERMUTATION, op)
            self._refuse_scales(x, self._groups(x), op)

    def _read_by(self, op: Op, name: str, group: str, x: Tensor, facing: list[Tensor], bias: Any) -> None:
        # a contraction over the group, with a weight or another activation
        if (id(x), group) not in self.marks.centred:
            self.bare.add(group)
        scale = self.marks.scaled.get((id(x), group))
        if (id(x), group) in self.marks.squared:
            self._limit([group], Symmetry.PERMUTATION, op)
        weights = [n for y in facing for n in self.labelling.behind.get(id(y), ())]
        readers = [n for n in weights if any("in" in roles.get(group, ()) for roles in self.tensors[n].roles)]
        if not readers:
            self._refuse_scales(x, [group], op)
        for reader in readers:
            self.reads.setdefault((reader, group), set()).add(None if scale is None else scale.tensor)
            if scale is not None:
                beside = self.labelling.behind.get(id(bias), ()) if isinstance(bias, Tensor) else ()
                scale.readers[reader] = beside[0] if beside else None
                scale.biased &= bool(beside) and name in ("mm", "addmm", "linear")

    def _read_sum(self, op: Op, taken: list[Tensor]) -> None:
        first, second = arg(op, 0), arg(op, 1)
        plain = [x for x in (first, second) if not isinstance(x, Tensor)]
        if op.kwargs.get("alpha", 1) != 1 or any(x == 0 for x in plain):
            plain = [x for x in plain if x != 0]
        shared = self._varying(taken[0]) & (self._varying(taken[1]) if len(taken) > 1 else frozenset())
        for x in taken:
            rest = self._varying(x) - shared
            if rest and (plain or isinstance(second, Tensor)):
                # the same number is added to all units
                self._limit(rest, Symmetry.FIXING_ONE, op)
                self._refuse_scales(x, rest, op)
            for group in self._groups(x):
                if (id(x), group) in self.marks.squared:
                    self._limit([group], Symmetry.PERMUTATION, op)
        for group in shared:
            scales = [self.marks.scaled.get((id(x), group)) for x in taken]
            weights = [self.labelling.behind.get(id(x), ()) for x in taken]
            own = next((i for i in (0, 1) if scales[i] is not None), None)
            if own is None:
                continue
            scale, shift = scales[own], weights[1 - own]
            assert scale is not None
            if len(shift) == 1 and op.name.startswith("add") and scale.shift in (None, shift[0]) and not scale.readers:
                scale.shift = shift[0]
                for r in _results(op):
                    self.now.scaled[id(r), group] = scale
            else:
                for x in taken:
                    self._refuse_scales(x, [group], op)
        if len(taken) == 2:
            weights = [self.labelling.behind.get(id(x), ()) for x in taken]
            for x, beside in zip(taken, reversed(weights), strict=True):
                if id(x) in self.marks.fresh and beside:
                    self.now.fresh.update((id(r), (*self.marks.fresh[id(x)], *beside)) for r in _results(op))

    def _read_product(self, op: Op, name: str, taken: list[Tensor]) -> None:
        if name == "div" and len(taken) == 2 and not self._varying(taken[1]):
            taken = taken[:1]
        if len(taken) == 1:
            x = taken[0]
            if name == "div" and x is not arg(op, 0):
                self._limit(self._varying(x), Symmetry.PERMUTATION, op)
                self._refuse_scales(x, self._varying(x), op)
            elif arg(op, 0) is arg(op, 1):
                self._square(op, x)
            else:
                self._pass_on(op, x, fresh=not all(isinstance(y, Tensor) for y in (arg(op, 0), arg(op, 1))))
            return
        if taken[0] is taken[1]:
            self._square(op, taken[0])
            return
        shared = self._varying(taken[0]) & self._varying(taken[1])
        weights = [self.labelling.behind.get(id(x), ()) for x in taken]
        if name == "mul" and len([w for w in weights if w]) == 1:
            own = next(i for i in (0, 1) if weights[i])
            self._scale(op, taken[1 - own], taken[own], shared)
        else:
            for x in taken:
                self._limit(shared, Symmetry.PERMUTATION, op)
                self._refuse_scales(x, shared, op)
        for x in taken:
            rest = self._varying(x) - shared
            self._pass_on(op, x, rest, fresh=False)

    def _scale(self, op: Op, x: Tensor, weight: Tensor, groups: Iterable[str]) -> None:
        names = self.labelling.behind.get(id(weight), ())
        for group in groups:
            self._refuse_scales(x, [group], op)
            if len(names) != 1 or (id(x), group) in self.marks.squared:
                self._limit([group], Symmetry.PERMUTATION, op)
                continue
            offset = self.offsets.get(id(weight), 0.0)
            if (id(x), group) in self.marks.centred:
                self.now.centred.update((id(r), group) for r in _results(op))
            scale = self.scales.setdefault((names[0], group), _Scale(names[0], offset, str(op)))
            if op.name == "mul" and id(x) in self.marks.fresh and self.taken[id(x)] == 1 and not scale.readers:
                scale.writers = self.marks.fresh[id(x)]
                continue
            for r in _results(op):
                self.now.scaled[id(r), group] = scale

    def _square(self, op: Op, x: Tensor) -> None:
        self._refuse_scales(x, self._groups(x), op)
        self.now.squared.update((id(r), group) for r in _results(op) for group in self._groups(x))

    def _read_reduction(self, op: Op, name: str, x: Tensor) -> None:
        left = frozenset().union(*(self._groups(r) for r in _results(op)))
        gone = self._groups(x) - left
        for group in gone:
            squares = (id(x), group) in self.marks.squared
            if squares and name in SUMS:
                self._limit([group], Symmetry.ORTHOGONAL, op)
            elif name in FIXING_ONE and not squares:
                self._limit([group], Symmetry.FIXING_ONE, op)
                self.bare.add(group)
            elif name not in SUMS and name not in FIXING_ONE and arg(op, 1, 2) in (2, 2.0, None) and not squares:
                self._limit([group], Symmetry.ORTHOGONAL, op)
            else:
                self._limit([group], Symmetry.PERMUTATION, op)
            self._refuse_scales(x, [group], op)
        kept = self._groups(x) & left
        if name in SUMS:
            self._pass_on(op, x, kept)
        else:
            self._limit(kept, Symmetry.PERMUTATION, op)
            self._refuse_scales(x, kept, op)

    def _read_norm(self, op: Op, name: str) -> None:
        x = arg(op, 0)
        count = len(arg(op, 1))
        dims = self._dims(x)
        within = frozenset().union(*dims[len(dims) - count :]) if dims else frozenset()
        self._refuse_scales(x, self._groups(x), op)
        whole = count == 1 and _is_one(self.labelling.seen.get(id(x)))
        kind = Symmetry.FIXING_ONE if name in LAYER_NORMS else Symmetry.ORTHOGONAL
        self._limit(within, kind if whole else Symmetry.PERMUTATION, op)
        self._limit(self._groups(x) - within, Symmetry.PERMUTATION, op)
        weight, bias = arg(op, 2), (arg(op, 3) if name in LAYER_NORMS else None)
        if isinstance(weight, Tensor):
            self._scale(op, x, weight, within)
            shift = self.labelling.behind.get(id(bias), ()) if isinstance(bias, Tensor) else ()
            for group in within:
                scale = self.now.scaled.get((id(op.results[0]), group))
                if scale is not None and shift:
                    scale.shift = shift[0]
        if name in LAYER_NORMS:
            self.now.centred.update((id(op.results[0]), group) for group in within)
        for r in _results(op)[1:]:
            for group in within:
                self.now.scaled.pop((id(r), group), None)

    def _read_batch_norm(self, op: Op) -> None:
        x = arg(op, 0)
        fresh = self.marks.fresh.get(id(x))
        self._refuse_scales(x, self._groups(x), op)
        if fresh is None or self.taken[id(x)] > 1 or not isinstance(arg(op, 1), Tensor):
            self._limit(self._groups(x), Symmetry.PERMUTATION, op)
            return
        self._limit(self._groups(x), Symmetry.SCALED, op)
        self.before_norm.update(fresh)

    # what must be folded

    def _fold(self, tensor: str, group: str) -> Fold | None:
        scale = self.scales[tensor, group]
        if not self.kinds[group].rotates:
            return None
        refused = scale.refused or self._refused(scale, group)
        if refused:
            self._limit([group], Symmetry.SCALED, refused)
            return None
        readers = scale.writers or tuple(scale.readers)
        biases = tuple(b for b in scale.readers.values() if b is not None) if scale.biased and not scale.writers else ()
        return Fold(group, tensor, scale.offset, scale.shift, readers, biases)

    def _refused(self, scale: _Scale, group: str) -> str:
        info = self.tensors[scale.tensor]
        wide = [roles for n, roles in zip(info.shape, info.roles, strict=True) if n > 1]
        if len(wide) != 1 or list(wide[0]) != [group]:
            return f"the scale {scale.tensor} lies along more than one group"
        if scale.writers:
            return f"{scale.tensor} scales twice" if scale.readers else ""
        if not scale.readers:
            return f"the scale {scale.tensor} has no readers"
        for reader in scale.readers:
            if self.reads[reader, group] != {scale.tensor}:
                return f"{reader} reads both with and without the scale {scale.tensor}"
            played = [roles[group] for roles in self.tensors[reader].roles if group in roles]
            if played != [frozenset({"in"})]:
                return f"{reader} reads behind the scale {scale.tensor} and makes the same units"
        shift = None if scale.shift is None else self.tensors[scale.shift]
        if shift is not None and [list(r) for n, r in zip(shift.shape, shift.roles, strict=True) if n > 1] != [[group]]:
            return f"the shift {scale.shift} lies along more than one group"
        return ""


def _results(op: Op) -> list[Tensor]:
    found: list[Tensor] = []
    for r in op.results:
        if isinstance(r, Tensor):
            found.append(r)
        elif isinstance(r, (list, tuple)):
            found += [x for x in r if isinstance(x, Tensor)]
    return found


def _is_one(label: Any) -> bool:
    # whether the last axis is one group and nothing else
    return label is not None and all(len(list(leaves(axes[-1]))) == 1 for axes in blocks_of(label))


__all__ = ["Found", "classes_of"]
