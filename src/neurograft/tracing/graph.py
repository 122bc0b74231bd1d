"""What tracing hands on: groups of neurons, where they sit in every tensor, and in which order they run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property

from neurograft.axes.layout import Factor, Layout, Role, layout_size, resize_layout
from neurograft.axes.symmetry import Symmetry
from neurograft.errors import OptionError, closest
from neurograft.escaping import terminal
from neurograft.options import patterns_of
from neurograft.tracing.flow import Flow
from neurograft.tracing.parts import (
    Absorb,
    Balance,
    Centre,
    Fold,
    Group,
    Kind,
    Place,
    Slot,
    TensorInfo,
    Tied,
    Use,
    slots_by_group,
)
from neurograft.tracing.reasons import FixedReason
from neurograft.tracing.table import footnotes, groups_table


@dataclass(frozen=True)
class NeuronGraph:
    """Which tensor axes share neurons in one network; what `neurograft.trace` returns.

    `groups` come in parameter order, `execution_order` names the free outermost groups as the run first makes
    them, `backward_order` as a depth-first walk from the output meets them (Torch-Pruning's order).
    `outputs` are the dotted paths of the returned tensors whose positions have a meaning ("" is the only one).
    `products` names the parameters of which an op makes one weight before an activation meets them (U @ V).
    `flow` holds what every use of a weight reads and who reads what it makes. `steps` lead to the canonical form, in
    which the class of every group holds.
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
    flow: Flow = field(default_factory=Flow)
    steps: tuple[Fold | Centre | Absorb | Balance, ...] = ()

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
    def _uses(self) -> dict[tuple[str, int], Use]:
        return {(use.tensor, use.nth): use for use in self.uses}

    def use(self, tensor: str, nth: int) -> Use | None:
        """The nth use of a weight in the run, None if there is none."""
        return self._uses.get((tensor, nth))

    @cached_property
    def free(self) -> tuple[Group, ...]:
        """The groups a permutation may move."""
        return tuple(group for group in self.groups if not group.fixed)

    @cached_property
    def outermost(self) -> tuple[Group, ...]:
        """The free groups a selection may act on: those that lie inside no other free group."""
        return tuple(group for group in self.free if group.inside is None)

    def fixing(self, patterns: str | Sequence[str]) -> "NeuronGraph":
        """The same graph with every group fixed that has a place in a tensor whose name fits an fnmatch pattern.

        Raises:
            OptionError: a pattern fits no tensor.
        """
        asked: dict[str, str] = {}
        for pattern in patterns_of(patterns, "fixed"):
            names = [name for name in self.tensors if fnmatch(name, pattern)]
            if not names:
                raise OptionError(f"fixed={pattern!r} matches no parameter; {closest(pattern, self.tensors)}")
            for name in names:
                asked |= {g: f"asked: {pattern}" for dim in self.tensors[name].roles for g in dim if g not in asked}
        asked = {name: why for name, why in asked.items() if not self[name].fixed}
        if not asked:
            return self

        def outer(name: str | None) -> str | None:
            return outer(self[name].inside) if name in asked else name

        groups = tuple(
            replace(
                g,
                reason=FixedReason.ASKED,
                why=asked[g.name],
                inside=None,
                per_unit=False,
                symmetry=Symmetry.PERMUTATION,
                limit="",
            )
            if g.name in asked
            else replace(g, inside=outer(g.inside), per_unit=g.per_unit and g.inside not in asked)
            for g in self.groups
        )
        return replace(
            self,
            groups=groups,
            tied=tuple(t for t in self.tied if t.group not in asked),
            steps=tuple(step for step in self.steps if step.group not in asked),
            execution_order=tuple(name for name in self.execution_order if name not in asked),
            backward_order=tuple(name for name in self.backward_order if name not in asked),
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
        return f"NeuronGraph({self._title})"

    @property
    def _title(self) -> str:
        name = self.model_class.rpartition(".")[2] or "network"
        free, fixed = len(self.free), len(self.groups) - len(self.free)
        return f"{name}: {free} free group{'s' if free != 1 else ''}, {fixed} fixed"

    def __str__(self) -> str:
        title = f"{self._title}; {self.proven}"
        notes = footnotes(self.unruled, self.unreached, self.tied)
        return terminal("\n".join([title, groups_table(self.groups), *notes, *self.notes]), lines=True)


__all__ = [
    "Absorb",
    "Balance",
    "Centre",
    "Factor",
    "FixedReason",
    "Fold",
    "Group",
    "Kind",
    "Layout",
    "NeuronGraph",
    "Place",
    "Role",
    "Slot",
    "TensorInfo",
    "Tied",
    "Use",
    "slots_by_group",
]
