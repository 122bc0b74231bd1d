"""What tracing hands on: groups of neurons, where they sit in every tensor, and in which order they run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from neurograft.axes.layout import Factor, Layout, Role, layout_size, resize_layout, spans
from neurograft.errors import OptionError, closest

Kind = Literal["weight", "bias", "scale", "shift", "mean", "variance", "statistic"]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the units of a group sit in one dimension of one tensor.

    Unit i sits at `start + i*stride` plus every combination of the `(count, stride)` pairs in `inner`.

    Example:
        >>> Slot("fc.weight", 1, 0, 4, ((4, 1),), "in").positions(2)
        tensor([[0, 1, 2, 3],
                [4, 5, 6, 7]])
    """

    tensor: str
    dim: int
    start: int
    stride: int
    inner: tuple[tuple[int, int], ...]
    role: Role

    def positions(self, size: int) -> Tensor:
        """The positions of units 0 … size-1, shape `(size, positions per unit)`, int64."""
        offsets = torch.zeros(1, dtype=torch.long)
        for count, stride in self.inner:
            offsets = (offsets[:, None] + torch.arange(count) * stride).flatten()
        return self.start + torch.arange(size)[:, None] * self.stride + offsets


@dataclass(frozen=True, slots=True)
class Group:
    """Neurons that must move together, wherever they appear.

    `fixed` groups never move and `why` says what fixed them (op and module path). `inside` names the
    group whose units contain these (the channels of a head). `reduced_by` lists ops that reduce over the
    units (LayerNorm, softmax, mean) and `bilinear` ops that contract two activations over them (q·k). `ranked_by`
    lists those of the former that choose units by their values (the experts of a mixture, by `topk`): there must
    be at least as many as they choose, `least`.
    """

    name: str
    size: int
    fixed: bool
    why: str | None
    slots: tuple[Slot, ...]
    inside: str | None = None
    reduced_by: tuple[str, ...] = ()
    bilinear: tuple[str, ...] = ()
    ranked_by: tuple[str, ...] = ()
    least: int = 1


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One parameter or persistent float buffer: its shape, what it is, and how neurons lie along each dimension.

    `layouts[d]` covers dimension d completely (fixed and private factors included). `roles[d]` maps each group
    of dimension d to the roles it plays there: a tied embedding is made and read in the same dimension, the
    groups of a grouped convolution are elementwise where its output channels are made. A `curved` tensor reaches
    its uses through ops that are not linear in it (weight norm).
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: Kind
    buffer: bool
    layouts: tuple[Layout, ...]
    roles: tuple[Mapping[str, frozenset[Role]], ...]
    curved: bool = False


@dataclass(frozen=True, slots=True)
class Use:
    """One time the run used a weight in a contraction, a norm or a lookup, in execution order.

    `nth` counts the uses of the same tensor. `input` and `output` lay out every dimension of the activation
    that enters beside the weight and of the result (`input` is None for a lookup); `input_dims` and
    `output_dims` say which of them the weight's dimensions face (weight dim -> activation dim).
    """

    tensor: str
    bias: str | None
    op: str
    module: str
    nth: int
    input: tuple[Layout, ...] | None
    output: tuple[Layout, ...]
    input_dims: Mapping[int, int]
    output_dims: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Tied:
    """A tensor that makes and reads the same group (embedding and head), and the affine norm in front of the reader.

    `norm` names the scale and shift tensors of the norm whose output only the reader sees, empty if there is none.
    """

    tensor: str
    group: str
    norm: tuple[str, ...]


@dataclass(frozen=True)
class NeuronGraph:
    """Which tensor axes share neurons in one network; what `neurograft.trace` returns.

    `groups` come in parameter order, `execution_order` names the free outermost groups as the run first makes
    them, `backward_order` as a depth-first walk from the output meets them (DESIGN: Torch-Pruning's order).
    `outputs` are the dotted paths of the returned tensors whose positions have a meaning ("" is the only one).
    `products` names the parameters that are multiplied with each other before an activation meets them (U @ V).
    """

    groups: tuple[Group, ...]
    tensors: Mapping[str, TensorInfo]
    uses: tuple[Use, ...] = ()
    tied: tuple[Tied, ...] = ()
    execution_order: tuple[str, ...] = ()
    backward_order: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    unruled: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    proven: str = "unproven"
    model_class: str = ""
    notes: tuple[str, ...] = field(default=())
    products: tuple[tuple[str, ...], ...] = ()

    @cached_property
    def by_name(self) -> dict[str, Group]:
        """The groups by name."""
        return {group.name: group for group in self.groups}

    def __getitem__(self, name: str) -> Group:
        try:
            return self.by_name[name]
        except KeyError:
            raise OptionError(f"no neuron group is called {name!r}; {closest(name, self.by_name)}") from None

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @cached_property
    def free(self) -> tuple[Group, ...]:
        """The groups a permutation may move."""
        return tuple(group for group in self.groups if not group.fixed)

    @cached_property
    def outermost(self) -> tuple[Group, ...]:
        """The free groups a selection may act on: those that lie inside no other free group."""
        return tuple(group for group in self.free if group.inside is None)

    def fixing(self, patterns: Sequence[str]) -> "NeuronGraph":
        """The same graph with every group fixed that has a place in a tensor whose name fits an fnmatch pattern.

        Raises:
            OptionError: a pattern fits no tensor.
        """
        whys: dict[str, str] = {}
        for pattern in patterns:
            names = [name for name in self.tensors if fnmatch(name, pattern)]
            if not names:
                raise OptionError(f"fixed={pattern!r} matches no parameter; {closest(pattern, self.tensors)}")
            for name in names:
                whys |= {g: f"asked: {pattern}" for dim in self.tensors[name].roles for g in dim if g not in whys}
        whys = {name: why for name, why in whys.items() if not self[name].fixed}
        if not whys:
            return self

        def outer(name: str | None) -> str | None:
            return outer(self[name].inside) if name in whys else name

        groups = tuple(
            replace(g, fixed=True, why=whys[g.name], inside=None)
            if g.name in whys
            else replace(g, inside=outer(g.inside))
            for g in self.groups
        )
        return replace(
            self,
            groups=groups,
            tied=tuple(t for t in self.tied if t.group not in whys),
            execution_order=tuple(name for name in self.execution_order if name not in whys),
            backward_order=tuple(name for name in self.backward_order if name not in whys),
        )

    def resized(self, sizes: Mapping[str, int]) -> "NeuronGraph":
        """The same graph with the named groups given new sizes: shapes, layouts and slots follow."""
        for name in sizes:
            self[name]
        tensors = {}
        for name, info in self.tensors.items():
            layouts = tuple(resize_layout(layout, sizes) for layout in info.layouts)
            tensors[name] = replace(info, layouts=layouts, shape=tuple(layout_size(layout) for layout in layouts))
        slots = slots_by_group(tensors)
        groups = tuple(
            replace(group, size=sizes.get(group.name, group.size), slots=slots.get(group.name, ()))
            for group in self.groups
        )
        uses = tuple(
            replace(
                use,
                input=None if use.input is None else tuple(resize_layout(x, sizes) for x in use.input),
                output=tuple(resize_layout(x, sizes) for x in use.output),
            )
            for use in self.uses
        )
        return replace(self, groups=groups, tensors=tensors, uses=uses)

    def __repr__(self) -> str:
        name = self.model_class.rpartition(".")[2] or "network"
        free, fixed = len(self.free), len(self.groups) - len(self.free)
        return f"NeuronGraph({name}: {free} free group{'s' if free != 1 else ''}, {fixed} fixed)"

    def __str__(self) -> str:
        from neurograft.tracing.table import graph_table

        return graph_table(self)


def slots_by_group(tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[Slot, ...]]:
    """Every group's slots, read off the layouts of the tensors (a tied dimension gives one slot per role)."""
    found: dict[str, list[Slot]] = {}
    for info in tensors.values():
        for dim, layout in enumerate(info.layouts):
            for span in spans(layout):
                for role in sorted(info.roles[dim][span.group]):
                    found.setdefault(span.group, []).append(
                        Slot(info.name, dim, span.start, span.stride, span.inner, role)
                    )
    return {name: tuple(slots) for name, slots in found.items()}


__all__ = [
    "Factor",
    "Group",
    "Kind",
    "Layout",
    "NeuronGraph",
    "Role",
    "Slot",
    "TensorInfo",
    "Tied",
    "Use",
    "slots_by_group",
]
