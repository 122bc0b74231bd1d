"""What a graph is made of: groups of neurons, where they sit in every tensor, and the uses of the weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from neurograft.axes.layout import Layout, Role, grid, spans
from neurograft.axes.symmetry import Symmetry
from neurograft.tracing.reasons import FixedReason

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
        counts, strides = [count for count, _ in self.inner], [stride for _, stride in self.inner]
        return grid(self.start, (size, *counts), (self.stride, *strides)).reshape(size, -1)


@dataclass(frozen=True, slots=True)
class Group:
    """Neurons that must move together, wherever they appear.

    Groups with a `reason` are fixed and never move; `why` gives it in words (op and module path). `inside` names the
    group whose units contain these (the channels of a head). `reduced_by` lists ops that reduce over the
    units (LayerNorm, softmax, mean) and `bilinear` ops that contract two activations over them (q·k). `ranked_by`
    lists those of the former that choose units by their values (the experts of a mixture, by `topk`): there must
    be at least as many as they choose, `least`. `per_unit`: every unit of the group they lie `inside` may hold
    them in an order of its own (the channels of each head); otherwise all units share one (a norm over the channels of
    any head has one weight for all). `symmetry` is the class of matrices that may act on the units in canonical form,
    `limit` the op that keeps it from being wider.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    reason: FixedReason | None = None
    why: str = ""
    inside: str | None = None
    reduced_by: tuple[str, ...] = ()
    bilinear: tuple[str, ...] = ()
    ranked_by: tuple[str, ...] = ()
    least: int = 1
    per_unit: bool = False
    symmetry: Symmetry = Symmetry.PERMUTATION
    limit: str = ""

    @property
    def fixed(self) -> bool:
        """Whether the neurons must keep their places."""
        return self.reason is not None


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
    `output_dims` name which of them the weight's dimensions face (weight dim -> activation dim). `node` is its number
    in the graph's flow.
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
    node: int = -1


@dataclass(frozen=True, slots=True)
class Tied:
    """A tensor that makes and reads the same group (embedding and head), and the affine norm in front of the reader.

    `norm` names the scale and shift tensors of the norm whose output only the reader sees, empty if there is none.
    """

    tensor: str
    group: str
    norm: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fold:
    """A scale that is multiplied into what reads the scaled units: W ← W·diag(g), g ← 1.

    Or, in front of an addition (LayerScale), into what makes them: `readers` are these then.

    The scale that acts is `scale` + `offset` (Gemma's norms have an offset of 1). Its `shift` b becomes b / g, or is
    moved into the readers' biases, c ← c + W b, where all readers have one: then these are `biases`.
    """

    group: str
    scale: str
    offset: float
    shift: str | None
    readers: tuple[str, ...]
    biases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where units lie: in one term of the layout of one dimension of a tensor."""

    tensor: str
    dim: int
    term: int


@dataclass(frozen=True, slots=True)
class Balance:
    """Units whose two sides are brought to one scale: M on `made`, M⁻ᵀ on `other`.

    M is a matrix for every unit that the group lies inside, or for all of them; `each` makes it diagonal, s > 0.
    `other` are the readers, or what makes the units that these are contracted with (k beside q).
    """

    group: str
    made: tuple[Place, ...]
    other: tuple[Place, ...]
    each: bool


@dataclass(frozen=True, slots=True)
class Centre:
    """What writes into a stream that only LayerNorms read, less its mean over the units, which they take out."""

    group: str
    made: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Absorb:
    """Biases of units that only pass through linear layers, moved into the bias of what reads them.

    They become 0, and `into` what it was + W b. Without a reader they change nothing (of keys: the same number is added
    to all scores of a query) and are dropped.
    """

    group: str
    biases: tuple[Place, ...]
    reader: Place | None
    into: str | None


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
    "Absorb",
    "Balance",
    "Centre",
    "Fold",
    "Group",
    "Kind",
    "Place",
    "Slot",
    "TensorInfo",
    "Tied",
    "Use",
    "slots_by_group",
]
