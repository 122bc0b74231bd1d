"""Follow what a layer makes until it is added to a residual stream."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from neurograft.recovery.watching import BATCH_NORMS, Contraction, Key, Watcher

SAME = frozenset({"aten::clone", "aten::detach", "aten::alias", "aten::contiguous"})
VIEWS = frozenset({"aten::view", "aten::_unsafe_view", "aten::reshape", "aten::_reshape_alias", "aten::unsqueeze"})
ADDITIONS = frozenset({"aten::add", "aten::add_"})


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One op on the way from a layer to the addition: `func(x, *rest)`, and how to undo it if it only moves entries."""

    func: Any
    rest: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Trail:
    """What happened to a contraction's output so far: y = A·z + B per channel, its entries moved about.

    `scale` is A and `shift` is B, shape `(channels,)`; None stands for 1 and 0.
    """

    contraction: Contraction
    channels: int
    steps: tuple[Step, ...] = ()
    scale: Tensor | None = None
    shift: Tensor | None = None
    norms: tuple[str, ...] = ()

    def back(self, stream: Tensor) -> Tensor:
        """A tensor laid out like the stream, laid out like the contraction's output again; no number changes."""
        for step in reversed(self.steps):
            if step.name in VIEWS:
                stream = stream.reshape(step.shape)
            elif step.name == "aten::transpose":
                stream = stream.transpose(*step.rest)
            elif step.name == "aten::permute":
                order = [d % len(step.shape) for d in step.rest[0]]
                stream = stream.permute([order.index(d) for d in range(len(order))])
        return stream

    def forth(self, output: Tensor) -> Tensor:
        """Run the steps again on another output of the contraction."""
        for step in self.steps:
            result = step.func(output, *step.rest, **step.kwargs)
            output = result if isinstance(result, Tensor) else result[0]
        return output


@dataclass(frozen=True, slots=True, eq=False)
class Addition:
    """Two activations that are about to be added: the end of a trail, and another, which may end a trail `onto` too."""

    trail: Trail
    branch: Tensor
    other: Tensor
    onto: Trail | None

    @property
    def key(self) -> Key:
        """The contraction the trail began with."""
        return self.trail.contraction.key


class TrailWatcher(Watcher):
    """A watcher that follows the outputs of chosen contractions and offers the additions they reach."""

    def __init__(self, model: nn.Module, followed: set[Key] | None = None) -> None:
        super().__init__(model)
        self.followed = followed
        self.trails: dict[int, Trail] = {}
        self.kept: list[Tensor] = []  # ids stay unique while the tensors live

    def adding(self, addition: Addition) -> None:
        """The end of a trail is about to be added to another activation."""

    def follow(self, tensor: Tensor, trail: Trail) -> None:
        """Remember that this tensor is at the end of this trail."""
        self.trails[id(tensor)] = trail
        self.kept.append(tensor)

    def drop(self, key: Key) -> None:
        """Forget a contraction's trail, and let go of its tensors."""
        gone = {i for i, trail in self.trails.items() if trail.contraction.key == key}
        self.trails = {i: trail for i, trail in self.trails.items() if i not in gone}
        self.kept = [tensor for tensor in self.kept if id(tensor) not in gone]

    def ended(self, contraction: Contraction, output: Tensor) -> Tensor | None:
        """A contraction has run and may be followed; a tensor that is returned takes the place of its output."""

    def after(self, contraction: Contraction, output: Tensor) -> Tensor | None:
        """Start a trail."""
        replaced = self.ended(contraction, output)
        output = output if replaced is None else replaced
        if not contraction.skipped and (self.followed is None or contraction.key in self.followed):
            self.follow(output, Trail(contraction, output.shape[1]))
        return output

    def about(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Offer an addition before it runs."""
        if func._schema.name not in ADDITIONS or len(args) < 2 or kwargs.get("alpha", 1) != 1:
            return
        a, b = args[:2]
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape:
            return
        if self.is_parameter(a) or self.is_parameter(b):
            return
        first, second = self.trails.get(id(a)), self.trails.get(id(b))
        if first is not None:
            self.adding(Addition(first, a, b, second))
        if second is not None:
            self.adding(Addition(second, b, a, first))

    def done(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Carry trails through an op that has run."""
        output = result[0] if isinstance(result, (tuple, list)) and result else result
        if not isinstance(output, Tensor) or not self.trails:
            return
        trail = next((self.trails[id(a)] for a in args[:2] if id(a) in self.trails), None)
        longer = None if trail is None else self._longer(trail, func, args, kwargs)
        if longer is not None:
            self.follow(output, longer)
        else:
            self.trails.pop(id(output), None)

    def _longer(self, trail: Trail, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trail | None:
        name = func._schema.name
        x = args[0] if isinstance(args[0], Tensor) else None
        if x is None or self.trails.get(id(x)) is not trail:
            x = args[1] if len(args) > 1 and isinstance(args[1], Tensor) else None
            if x is None or name != "aten::mul":
                return None
            args = (args[1], args[0])
        step = Step(func, tuple(args[1:]), kwargs, tuple(x.shape), name)
        if name in SAME or name in VIEWS or name in ("aten::transpose", "aten::permute"):
            return replace(trail, steps=(*trail.steps, step))
        if name in BATCH_NORMS:
            scale, shift, norm = self.normed(args, func)
        elif name == "aten::mul" and self.is_parameter(args[1]) and args[1].numel() == trail.channels:
            scale, shift, norm = args[1].flatten(), None, ""
        else:
            return None
        if scale is None or scale.numel() != trail.channels:
            return None
        return replace(
            trail,
            steps=(*trail.steps, step),
            scale=scale.clone() if trail.scale is None else trail.scale * scale,
            shift=_joined(trail.shift, scale, shift),
            norms=(*trail.norms, norm) if norm else trail.norms,
        )

    def normed(self, args: tuple[Any, ...], func: Any) -> tuple[Tensor | None, Tensor | None, str]:
        """Scale, shift and name of a BatchNorm op in eval mode."""
        norm = self.norm(func, args)
        if norm is None:
            return None, None, ""
        scale = (norm.variance + norm.eps).rsqrt()
        scale = scale if norm.scale is None else scale * norm.scale
        shift = -norm.mean * scale
        return scale, shift if norm.shift is None else shift + norm.shift, norm.name


def _joined(before: Tensor | None, scale: Tensor, shift: Tensor | None) -> Tensor | None:
    if before is None:
        return shift
    return before * scale if shift is None else torch.addcmul(shift, before, scale)
