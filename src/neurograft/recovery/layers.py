"""Which layers of a fused network can be brought towards the members, in which order, and what they write into."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

from torch import Tensor, nn

from neurograft.axes.layout import sizes_along
from neurograft.errors import OptionError, closest
from neurograft.plans.plan import FusionPlan
from neurograft.preserve_state import preserve_state
from neurograft.recovery.residual_branches import Branch, streams
from neurograft.recovery.ridge import bytes_for
from neurograft.recovery.samples import Samples
from neurograft.recovery.watching import BATCH_NORMS, Contraction, Norm, UseKey, Watcher, run
from neurograft.tracing.graph import NeuronGraph, Use
from neurograft.tracing.observing import ObservedOp


@dataclass(frozen=True, slots=True)
class LayerUse:
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
        use: what the tracer found of it, None where it is left out.
        skipped: why it is left out, "" if it is not.
    """

    key: UseKey
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
class NetworkLayers:
    """What one small run of a fused network shows.

    Attributes:
        places: every contraction, in execution order.
        run: contractions (keys) and BatchNorms (names) in execution order.
        order: the same in the order in which they can be settled: a layer that writes into a stream at its addition.
        largest: bytes of the largest activation of one sample.
        unseen: weights the tracer saw in contractions that the run does not read directly.
    """

    places: tuple[LayerUse, ...]
    run: tuple[UseKey | str, ...]
    order: tuple[UseKey | str, ...]
    largest: int
    unseen: tuple[str, ...]


class _LayerFinder:
    """Notes contractions and BatchNorms as they run, and the largest activation."""

    def __init__(self) -> None:
        self.met: dict[UseKey, Contraction] = {}
        self.run: list[UseKey | str] = []
        self.kept: list[Tensor] = []  # an activation that two layers read is known by its id
        self.largest = 0

    def before(self, contraction: Contraction) -> None:
        self.met[contraction.key] = contraction
        self.run.append(contraction.key)
        self.kept.append(contraction.input)

    def norm(self, norm: Norm) -> None:
        if norm.name not in self.run:
            self.run.append(norm.name)

    def done(self, _: ObservedOp, result: Any) -> None:
        results = result if isinstance(result, (tuple, list)) else (result,)
        sizes = [r.numel() * r.element_size() for r in results if isinstance(r, Tensor)]
        self.largest = max([self.largest, *sizes])


def survey(
    model: nn.Module, plan: FusionPlan, samples: Samples, *, layers: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> NetworkLayers:
    """Run the fused network once on a few samples and see what there is to settle.

    Raises:
        OptionError: a pattern in `layers` or `exclude` fits no parameter.
        InputError: the network cannot take the samples.
    """
    check_patterns(model, layers, "layers")
    check_patterns(model, exclude, "exclude")
    inputs, count = samples.small()
    with preserve_state(model):
        seen = _LayerFinder()
        watcher = Watcher(before=seen.before, norm=seen.norm, done=seen.done)
        run(model, plan.graph, inputs, watcher, what="batches[0]")
    branches = streams(plan.graph, {key: c.weight.numel() for key, c in seen.met.items() if not c.skipped})
    reads: dict[int, int] = {}
    places = []
    for number, (key, contraction) in enumerate(seen.met.items()):
        shared = reads.setdefault(id(contraction.input), len(reads))
        place = _place(number, contraction, shared, plan, seen.met, branches.get(key))
        asked = any(fnmatch(key[0], p) for p in layers) and not any(fnmatch(key[0], p) for p in exclude)
        places.append(place if asked else replace(place, stream=False, skipped="not asked for"))
    contracted = (u.tensor for u in plan.graph.uses if u.input is not None and "norm" not in u.op)
    met = {name for name, _ in seen.met}
    unseen = tuple(dict.fromkeys(name for name in contracted if name not in met))
    order = _settling_order(plan.graph, seen.run, branches)
    return NetworkLayers(tuple(places), tuple(seen.run), order, -(-seen.largest // count), unseen)


def _settling_order(
    graph: NeuronGraph, run: Sequence[UseKey | str], branches: Mapping[UseKey, Branch]
) -> tuple[UseKey | str, ...]:
    # as the run goes, but what writes into a stream at its addition
    nodes: dict[UseKey | str, int] = {(use.tensor, use.nth): use.node for use in graph.uses}
    for number, node in enumerate(graph.flow.nodes):
        for mean in node.tensors:
            if graph.tensors[mean].kind == "mean":
                nodes.setdefault(mean, number)
    places: dict[UseKey | str, int] = {}
    now = -1
    for name in run:
        now = places[name] = max(now, nodes.get(name, now))
    places |= {key: branch.edge.target for key, branch in branches.items()}
    return tuple(sorted(run, key=lambda name: (places[name], name in branches)))


def _place(
    number: int,
    contraction: Contraction,
    reads: int,
    plan: FusionPlan,
    met: Mapping[UseKey, Contraction],
    branch: Branch | None,
) -> LayerUse:
    key, weight, geometry = contraction.key, contraction.weight, contraction.geometry
    use, skipped = _use_of(contraction, plan, met)
    branch = branch if use is not None else None
    if geometry is None:
        outputs = weight.shape[-1]
    else:
        outputs = weight.shape[1] * geometry.groups if geometry.transposed else weight.shape[0]
    return LayerUse(
        key,
        number,
        max(1, weight.numel() // max(1, outputs)),
        outputs,
        reads,
        branch is not None,
        branch.norms if branch is not None else (),
        "" if use is None else followed_by(plan.graph, use),
        1 if geometry is None else geometry.groups,
        use,
        skipped,
    )


def followed_by(graph: NeuronGraph, use: Use) -> str:
    """The BatchNorm that alone reads what a layer makes, "" if there is none."""
    readers = graph.flow.readers(use.node)
    if len(readers) != 1 or not readers[0].moves_only:
        return ""
    node = graph.flow.nodes[readers[0].target]
    means = [name for name in node.tensors if graph.tensors[name].kind == "mean"]
    return means[0] if means and node.op in BATCH_NORMS else ""


def _use_of(contraction: Contraction, plan: FusionPlan, met: Mapping[UseKey, Contraction]) -> tuple[Use | None, str]:
    """The tracer's word on a contraction, or why it is left out."""
    if contraction.skipped:
        return None, contraction.skipped
    if contraction.weight.is_complex():
        return None, "its weights are complex"
    name, nth = contraction.key
    graph = plan.graph
    if any(u.tensor == name and u.input is None for u in graph.uses):
        return None, "tied to an embedding"
    same = [c for (other, _), c in met.items() if other == name and _region(c) == _region(contraction)]
    if len(same) > 1:
        return None, f"used {len(same)} times in one run"
    use = graph.use(name, nth)
    if use is None or use.input is None:
        return None, "the tracer did not see this use"
    dims = len(contraction.input.shape)
    if len(use.output) != dims:
        return None, f"the tracer saw an output of {len(use.output)} dimensions, the run has {dims}"
    for d, layout in enumerate(use.output):
        moved = sizes_along(layout).keys() & plan.maps.keys()
        if moved and d != 1:
            return None, f"neurons of {min(moved)} lie along its rows"
    return use, ""


def _region(contraction: Contraction) -> tuple[int, int]:
    return int(contraction.weight.storage_offset()), contraction.weight.numel()


def check_patterns(model: nn.Module, patterns: Sequence[str], option: str) -> None:
    """Refuse patterns that fit nothing.

    Raises:
        OptionError: with the parameters there are.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise OptionError(f"{option}: no parameter is called {pattern!r}; {closest(pattern, names[:30])}")
