"""Which layers of a fused network can be brought towards the members, in which order, and what they write into."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from neurograft.axes.layout import sizes_along
from neurograft.errors import OptionError, closest
from neurograft.plans.plan import FusionPlan
from neurograft.preserve_state import preserve_state
from neurograft.recovery.residual_branches import Addition, Trail, TrailWatcher
from neurograft.recovery.ridge import bytes_for
from neurograft.recovery.samples import Samples
from neurograft.recovery.watching import Contraction, Key, Norm, run
from neurograft.tracing.graph import NeuronGraph, Use


@dataclass(frozen=True, slots=True)
class Place:
    """One use of a weight in the run of the fused network.

    Attributes:
        key: the parameter's name, and which use of it this is.
        number: in execution order.
        inputs: of one output neuron.
        outputs: neurons.
        reads: layers with the same number here read the same activation.
        stream: whether what it writes is added to other activations, towards whose planned sum it is brought.
        norms: the BatchNorms between the layer and that addition.
        followed: the BatchNorm that alone reads what the layer makes, "" if there is none.
        groups: of a grouped convolution.
        use: what the tracer says of it, None where it is left out.
        skipped: why it is left out, "" if it is not.
    """

    key: Key
    number: int
    inputs: int
    outputs: int
    reads: int
    stream: bool = False
    norms: tuple[str, ...] = ()
    followed: str = ""
    groups: int = 1
    use: Use | None = None
    skipped: str = ""

    @property
    def matrices(self) -> int:
        """Bytes of the matrices it is solved with."""
        return bytes_for(self.groups, self.inputs, self.outputs // self.groups)


@dataclass(frozen=True, slots=True)
class Survey:
    """What one small run of a fused network shows.

    Attributes:
        places: every contraction, in execution order.
        run: contractions (keys) and BatchNorms (names) in execution order.
        order: the same in the order in which they can be settled: a layer that writes into a stream at its addition.
        largest: bytes of the largest activation of one sample.
        unseen: weights the tracer saw in contractions that the run does not read directly.
    """

    places: tuple[Place, ...]
    run: tuple[Key | str, ...]
    order: tuple[Key | str, ...]
    largest: int
    unseen: tuple[str, ...]


class _Surveyor(TrailWatcher):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.met: dict[Key, Contraction] = {}
        self.events: list[Key | str] = []
        self.run: list[Key | str] = []
        self.behind: dict[Key, str] = {}
        self.streams: dict[Key, Trail] = {}
        self.offered: set[Key] = set()
        self.above: dict[int, frozenset[Key]] = {}
        self.largest = 0

    def before(self, contraction: Contraction) -> None:
        self.met[contraction.key] = contraction
        self.events.append(contraction.key)
        self.run.append(contraction.key)
        self.kept.append(contraction.input)

    def done(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        results = [r for r in (result if isinstance(result, (tuple, list)) else (result,)) if isinstance(r, Tensor)]
        above = frozenset().union(*(self.above.get(id(x), frozenset()) for x in pytree.tree_leaves((args, kwargs))))
        for r in results:
            self.above[id(r)] = above
            self.kept.append(r)
            self.largest = max(self.largest, r.numel() * r.element_size())
        super().done(func, args, kwargs, result)

    def ended(self, contraction: Contraction, output: Tensor) -> None:
        self.above[id(output)] = self.above.get(id(contraction.input), frozenset()) | {contraction.key}
        self.kept.append(output)

    def normalising(self, norm: Norm) -> None:
        if norm.name not in self.events:
            self.events.append(norm.name)
            self.run.append(norm.name)
        trail = self.trails.get(id(norm.input))
        if trail is not None and not trail.steps and len(norm.mean) == trail.channels:
            self.behind[trail.contraction.key] = norm.name

    def adding(self, addition: Addition) -> None:
        key, onto = addition.key, addition.onto
        first = key not in self.offered
        self.offered.add(key)
        if not first or key in self.above.get(id(addition.other), ()):
            return  # an activation function such as x + x³ is no stream
        if onto is not None and _size(onto) > _size(addition.trail):
            return  # the wider branch is settled last and corrects the sum
        if onto is not None and _size(onto) == _size(addition.trail) and onto.contraction.key in self.streams:
            return
        self.streams[key] = addition.trail
        self.events.remove(key)
        self.events.append(key)


def _size(trail: Trail) -> int:
    return trail.contraction.weight.numel()


def survey(
    model: nn.Module, plan: FusionPlan, samples: Samples, *, layers: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> Survey:
    """Run the fused network once on a few samples and see what there is to settle.

    Raises:
        OptionError: a pattern in `layers` or `exclude` fits no parameter.
        InputError: the network cannot take the samples.
    """
    check_patterns(model, layers, "layers")
    check_patterns(model, exclude, "exclude")
    inputs, count = samples.small()
    with preserve_state(model):
        seen = _Surveyor(model)
        run(model, inputs, seen, what="batches[0]")
    reads: dict[int, int] = {}
    places = []
    for number, (key, contraction) in enumerate(seen.met.items()):
        shared = reads.setdefault(id(contraction.input), len(reads))
        place = _place(number, contraction, shared, plan, seen)
        asked = any(fnmatch(key[0], p) for p in layers) and not any(fnmatch(key[0], p) for p in exclude)
        places.append(place if asked else replace(place, stream=False, skipped="not asked for"))
    contracted = (u.tensor for u in plan.graph.uses if u.input is not None and "norm" not in u.op)
    unseen = tuple(dict.fromkeys(name for name in contracted if name not in seen.uses))
    return Survey(tuple(places), tuple(seen.run), tuple(seen.events), -(-seen.largest // count), unseen)


def _place(number: int, contraction: Contraction, reads: int, plan: FusionPlan, seen: _Surveyor) -> Place:
    key, weight, geometry = contraction.key, contraction.weight, contraction.geometry
    use, skipped = _use_of(contraction, plan, seen)
    if geometry is None:
        outputs = weight.shape[-1]
    else:
        outputs = weight.shape[1] * geometry.groups if geometry.transposed else weight.shape[0]
    trail = seen.streams[key] if key in seen.streams and use is not None else None
    return Place(
        key,
        number,
        max(1, weight.numel() // max(1, outputs)),
        outputs,
        reads,
        trail is not None,
        trail.norms if trail is not None else (),
        seen.behind.get(key, ""),
        1 if geometry is None else geometry.groups,
        use,
        skipped,
    )


def _use_of(contraction: Contraction, plan: FusionPlan, seen: _Surveyor) -> tuple[Use | None, str]:
    """The tracer's word on a contraction, or why it is left out."""
    if contraction.skipped:
        return None, contraction.skipped
    name, nth = contraction.key
    graph = plan.graph
    uses = contractions_of(graph, name)
    if any(u.tensor == name and u.input is None for u in graph.uses):
        return None, "tied to an embedding"
    same = [c for (other, _), c in seen.met.items() if other == name and _region(c) == _region(contraction)]
    if len(same) > 1:
        return None, f"used {len(same)} times in one run"
    if nth >= len(uses):
        return None, "the tracer did not see this use"
    dims = len(contraction.input.shape)
    use = uses[nth]
    if len(use.output) != dims:
        return None, f"the tracer saw an output of {len(use.output)} dimensions, the run has {dims}"
    for d, layout in enumerate(use.output):
        moved = sizes_along(layout).keys() & plan.maps.keys()
        if moved and d != 1:
            return None, f"neurons of {min(moved)} lie along its rows"
    return use, ""


def contractions_of(graph: NeuronGraph, tensor: str) -> list[Use]:
    """The uses of a weight in contractions, in execution order."""
    return [u for u in graph.uses if u.tensor == tensor and u.input is not None]


def _region(contraction: Contraction) -> tuple[int, int]:
    return int(contraction.weight.storage_offset()), contraction.weight.numel()


def check_patterns(model: nn.Module, patterns: Sequence[str], option: str) -> None:
    """Refuse patterns that fit nothing, and a string where a list of patterns is meant.

    Raises:
        OptionError: with the parameters there are.
    """
    if isinstance(patterns, str):
        raise OptionError(f"{option} is a list of patterns; write {option}=[{patterns!r}]")
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise OptionError(f"{option}: no parameter is called {pattern!r}; {closest(pattern, names[:30])}")
