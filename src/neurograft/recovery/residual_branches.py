"""Layers whose outputs are added to a residual stream: which they are, and what happens on the way to the addition."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from neurograft.axes.layout import layout_size
from neurograft.recovery.watching import BATCH_NORMS, Contraction, Norm, Owner, UseKey
from neurograft.tracing.flow import Edge, NodeKind
from neurograft.tracing.graph import NeuronGraph, Use
from neurograft.tracing.observing import ObservedOp

SAME = frozenset({"clone", "detach", "alias", "contiguous", "_to_copy"})
VIEWS = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze"})
MOVES = VIEWS | {"transpose", "permute"}


@dataclass(frozen=True, slots=True)
class Branch:
    """A layer's way to an addition: the use of its weight, the BatchNorms between, and the edge to the addition."""

    use: Use
    norms: tuple[str, ...]
    edge: Edge


def streams(graph: NeuronGraph, sizes: Mapping[UseKey, int]) -> dict[UseKey, Branch]:
    """The layers that write into a residual stream, towards whose planned sum they are brought.

    Of two layers that are added up, the one with the larger weight is, since it is settled last and corrects the sum.
    An activation function such as x + x³ makes no stream.

    Args:
        graph: of the network.
        sizes: entries of the weight of every layer that can be solved.
    """
    found: dict[UseKey, Branch] = {}
    offered: set[UseKey] = set()
    for node, ways in zip(graph.flow.nodes, graph.flow.into, strict=True):
        if node.happening is not NodeKind.SUM or len(ways) > 2:  # another example may have come other ways
            continue
        branches = [_branch(graph, edge, sizes) for edge in ways]
        for mine, onto, other in zip(branches, branches[::-1], ways[::-1], strict=True):
            if mine is None or _key(mine) in offered:
                continue
            offered.add(_key(mine))
            if graph.flow.depends(other.source, mine.use.node):
                continue
            if onto is not None and (sizes[_key(onto)], _key(onto) in found) > (sizes[_key(mine)], False):
                continue
            found[_key(mine)] = mine
    return found


def _key(branch: Branch) -> UseKey:
    return branch.use.tensor, branch.use.nth


def _branch(graph: NeuronGraph, edge: Edge, sizes: Collection[UseKey]) -> Branch | None:
    # back from an addition through BatchNorms and factors per channel to the layer, None if there is more between
    layers = {use.node: use for use in graph.uses if (use.tensor, use.nth) in sizes}
    norms: list[str] = []
    channels: set[int] = set()
    way = edge
    while MOVES.issuperset(way.ops):
        node, use = graph.flow.nodes[way.source], layers.get(way.source)
        if use is not None:
            return Branch(use, tuple(reversed(norms)), edge) if channels <= {layout_size(use.output[1])} else None
        means = [name for name in node.tensors if graph.tensors[name].kind == "mean"]
        if len(graph.flow.into[way.source]) != 1 or not (
            means if node.op in BATCH_NORMS else node.op == "mul" and len(node.tensors) == 1
        ):
            return None
        norms += means
        channels.add(_entries(graph, (means or node.tensors)[0]))
        (way,) = graph.flow.into[way.source]
    return None


def _entries(graph: NeuronGraph, name: str) -> int:
    shape = graph.tensors[name].shape
    return int(torch.Size(shape).numel())


@dataclass(frozen=True, slots=True, eq=False)
class BranchPath:
    """What happened to a contraction's output so far: y = A·z + B per channel, its entries moved about.

    `steps` are the ops on the way and the shapes they were given. `scale` is A and `shift` is B, shape `(channels,)`;
    None stands for 1 and 0.
    """

    contraction: Contraction
    channels: int
    steps: tuple[tuple[ObservedOp, tuple[int, ...]], ...] = ()
    scale: Tensor | None = None
    shift: Tensor | None = None

    def back(self, stream: Tensor) -> Tensor:
        """A tensor laid out like the stream, laid out like the contraction's output again; no number changes."""
        for step, shape in reversed(self.steps):
            if step.op in VIEWS:
                stream = stream.reshape(shape)
            elif step.op == "transpose":
                stream = stream.transpose(*step.args[1:])
            elif step.op == "permute":
                order = [d % len(shape) for d in step.args[1]]
                stream = stream.permute([order.index(d) for d in range(len(order))])
        return stream

    def forth(self, output: Tensor) -> Tensor:
        """Run the steps again on another output of the contraction."""
        for step, _ in self.steps:
            result = step.func(output, *step.args[1:], **step.kwargs)
            output = result if isinstance(result, Tensor) else result[0]
        return output


@dataclass(frozen=True, slots=True, eq=False)
class Addition:
    """Two activations that are about to be added: the end of a trail, and another."""

    trail: BranchPath
    branch: Tensor
    other: Tensor

    @property
    def key(self) -> UseKey:
        """The contraction the trail began with."""
        return self.trail.contraction.key


class BranchPaths:
    """Follows the outputs of chosen contractions as a network runs; calls `adding` at the additions they reach."""

    def __init__(self, model: nn.Module, followed: Collection[UseKey], adding: Callable[[Addition], None]) -> None:
        self.owner, self.followed, self.adding = Owner(model), followed, adding
        self.trails: dict[int, BranchPath] = {}
        self.kept: list[Tensor] = []  # ids stay unique while the tensors live

    def start(self, contraction: Contraction, output: Tensor) -> None:
        """A contraction has made this output."""
        if contraction.key in self.followed and not contraction.skipped:
            self._follow(output, BranchPath(contraction, output.shape[1]))

    def _follow(self, tensor: Tensor, trail: BranchPath) -> None:
        self.trails[id(tensor)] = trail
        self.kept.append(tensor)

    def drop(self, key: UseKey) -> None:
        """Forget a contraction's trail, and let go of its tensors."""
        gone = {i for i, trail in self.trails.items() if trail.contraction.key == key}
        self.trails = {i: trail for i, trail in self.trails.items() if i not in gone}
        self.kept = [tensor for tensor in self.kept if id(tensor) not in gone]

    def about(self, step: ObservedOp) -> None:
        """Offer an addition before it runs."""
        if step.op not in ("add", "add_") or len(step.args) < 2 or step.kwargs.get("alpha", 1) != 1:
            return
        a, b = step.args[:2]
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape:
            return
        if self.owner.is_parameter(a) or self.owner.is_parameter(b):
            return
        for branch, other, trail in ((a, b, self.trails.get(id(a))), (b, a, self.trails.get(id(b)))):
            if trail is not None:
                self.adding(Addition(trail, branch, other))

    def done(self, step: ObservedOp, result: Any) -> None:
        """Carry trails through an op that has run."""
        output = result[0] if isinstance(result, (tuple, list)) and result else result
        if not isinstance(output, Tensor) or not self.trails:
            return
        trail = next((self.trails[id(a)] for a in step.args[:2] if id(a) in self.trails), None)
        longer = None if trail is None else self._longer(trail, step)
        if longer is not None:
            self._follow(output, longer)
        else:
            self.trails.pop(id(output), None)

    def _longer(self, trail: BranchPath, step: ObservedOp) -> BranchPath | None:
        if self.trails.get(id(step.args[0])) is not trail:
            if step.op != "mul":
                return None
            step = replace(step, args=(step.args[1], step.args[0], *step.args[2:]))
        steps = (*trail.steps, (step, tuple(step.args[0].shape)))
        if step.op in SAME or step.op in MOVES:
            return replace(trail, steps=steps)
        norm = self.owner.norm(step)
        if norm is not None:
            scale, shift = _affine(norm)
        elif step.op == "mul" and self.owner.is_parameter(step.args[1]):
            scale, shift = step.args[1].flatten().clone(), None
        else:
            return None
        if scale.numel() != trail.channels:
            return None
        return replace(
            trail,
            steps=steps,
            scale=scale if trail.scale is None else trail.scale * scale,
            shift=_joined(trail.shift, scale, shift),
        )


def _affine(norm: Norm) -> tuple[Tensor, Tensor]:
    # scale and shift of a BatchNorm in eval mode
    scale = (norm.variance + norm.eps).rsqrt()
    scale = scale if norm.scale is None else scale * norm.scale
    shift = -norm.mean * scale
    return scale, shift if norm.shift is None else shift + norm.shift


def _joined(before: Tensor | None, scale: Tensor, shift: Tensor | None) -> Tensor | None:
    if before is None:
        return shift
    return before * scale if shift is None else torch.addcmul(shift, before, scale)
