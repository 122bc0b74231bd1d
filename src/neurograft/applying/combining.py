"""`combine`: one wide network that holds all members side by side and outputs their average."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neurograft.applying.application import assemble
from neurograft.applying.declarations import Declaration
from neurograft.applying.segmented import SegmentedNorm, norm_axis
from neurograft.applying.side_by_side import broken_average
from neurograft.axes.layout import Layout
from neurograft.axes.maps import NeuronMap
from neurograft.axes.mixing import axis_pairs
from neurograft.errors import PlanError, ResizeError
from neurograft.inputs import Inputs, call
from neurograft.members.checks import check_fixed_widths
from neurograft.members.graphs import check_unreached
from neurograft.members.members import Members
from neurograft.operators.owned import Owned
from neurograft.plans.plan import FusionPlan
from neurograft.preserve_state import keeps_random_state, preserve_state, seed_all
from neurograft.tracing.graph import NeuronGraph
from neurograft.tracing.labelling import pinned_outputs
from neurograft.tracing.proof import examples_of
from neurograft.tracing.reasons import FixedReason


@keeps_random_state
def combine(
    models: Sequence[nn.Module],
    example_inputs: Inputs,
    weights: Sequence[float] | None = None,
    *,
    graph: NeuronGraph | None = None,
    fixed: str | Sequence[str] = (),
) -> nn.Module:
    """Build one wide network whose output is the members' weighted average, Σ_m w_m f_m(x).

    Every free group holds all members' neurons one after the other, weights between members are zero, and the
    layers that make outputs are scaled by w_m. Norms over neurons normalise every member's segment by itself
    (GroupNorm with k times the groups; LayerNorm and RMSNorm as `SegmentedNorm`). The result is an ordinary
    module of the members' class that can be trained, and pruned: `prune(combine(models), ...)` to the members'
    size is `fuse(models, method="transplant")`.

    Args:
        models: at least two networks of one class.
        example_inputs: what the networks take.
        weights: one number per member, normalised to sum to 1; default equal.
        graph: the graph of `models[0]` if it was traced before.
        fixed: fnmatch patterns of parameters whose neurons stay where they are.

    Raises:
        BadWeights: a member holds NaN or infinity.
        PlanError: the average cannot be exact, with the group that prevents it: a fixed group is made and read
            inside the network, or the output is not reached through linear ops.
        ResizeError: the module's forward takes its sizes from somewhere that cannot be kept true.

    Example:
        >>> nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double() for _ in "ab"]
        >>> x = torch.randn(3, 4, dtype=torch.double)
        >>> wide = combine(nets, x)
        >>> wide[0].out_features
        16
        >>> torch.allclose(wide(x), (nets[0](x) + nets[1](x)) / 2)
        True

    Source: Öz et al. 2024, arXiv:2502.06849, section 3, for the concatenation; docs/design.md, "One formula".
    """
    members = Members(models, example_inputs, weights=weights, graph=graph, fixed=fixed)
    members.check_numbers()
    check_fixed_widths(members.graphs)
    plan = combined_plan(members.graphs, members.weights_or())
    check_unreached(members.graph, plan.maps, members.fixed)
    _check_kept_apart(members)
    wide, declared = assemble(plan, members)
    segment_norms(wide, models, plan, example_inputs)
    _check_average(wide, models, plan.weights, example_inputs, declared, members.graph)
    return wide


def combined_plan(graphs: Sequence[NeuronGraph], weights: tuple[float, ...]) -> FusionPlan:
    """The plan that keeps all neurons of all members, member 0's first."""
    maps = {}
    for group in graphs[0].outermost:
        sizes = [graph[group.name].size for graph in graphs]
        starts = [sum(sizes[:m]) for m in range(len(sizes))]
        maps[group.name] = tuple(
            NeuronMap.selection(torch.arange(start, start + n), torch.arange(n), sum(sizes), n)
            for start, n in zip(starts, sizes, strict=True)
        )
    return FusionPlan("combine", tuple(graphs), maps, weights, Owned())


def segment_norms(wide: nn.Module, models: Sequence[nn.Module], plan: FusionPlan, inputs: Inputs) -> None:
    """Replace every norm that reduces over a moved group by one that works per member, in place."""
    found: dict[str, tuple[dict[str, str], dict[str, int]]] = {}
    for path, module in wide.named_modules():
        own = {name: f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)}
        if _is_joint_norm(module) and own and all(tensor in plan.graph.tensors for tensor in own.values()):
            facing = {name: _moved_dim(plan, tensor) for name, tensor in own.items()}
            if None not in facing.values():
                found[path] = own, {name: dim for name, dim in facing.items() if dim is not None}
    shapes = _input_shapes(models[0], list(found), inputs)
    for path, (own, dims) in found.items():
        module = wide.get_submodule(path)
        name, dim = next(iter(dims.items()))
        layouts = [graph.tensors[own[name]].layouts[dim] for graph in plan.graphs]
        fused = plan.graph.tensors[own[name]].layouts[dim]
        positions = [member_positions(layout, fused, plan, m) for m, layout in enumerate(layouts)]
        axis = norm_axis(models[0].get_submodule(path), shapes[path], dim, path) if path in shapes else -1
        norms = [model.get_submodule(path) for model in models]
        replaced = SegmentedNorm(norms, dict(module.named_parameters(recurse=False)), dims, axis, positions)
        parent, _, leaf = path.rpartition(".")
        setattr(wide.get_submodule(parent), leaf, replaced.train(module.training))


def member_positions(layout: Layout, fused: Layout, plan: FusionPlan, m: int) -> Tensor:
    """Where member m's positions of an axis lie in the combined one, int64."""
    return axis_pairs(layout, fused, {name: maps[m].merge for name, maps in plan.maps.items()}).target


def _moved_dim(plan: FusionPlan, tensor: str) -> int | None:
    """The one dimension of a norm's parameter that holds a moved group."""
    dims = [d for d, roles in enumerate(plan.graph.tensors[tensor].roles) if any(group in plan.maps for group in roles)]
    return dims[0] if len(dims) == 1 else None


def _input_shapes(model: nn.Module, paths: Sequence[str], inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """The shape of the first input of each named module when the network runs."""
    shapes: dict[str, tuple[int, ...]] = {}

    def keep(path: str, arguments: tuple[Any, ...]) -> None:
        if arguments and isinstance(arguments[0], Tensor):
            shapes[path] = tuple(arguments[0].shape)

    hooks = [
        model.get_submodule(path).register_forward_pre_hook(lambda _, arguments, path=path: keep(path, arguments))
        for path in paths
    ]
    try:
        with preserve_state(model), torch.no_grad():
            for example in examples_of(inputs):
                call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def joined_norms(model: nn.Module) -> nn.Module:
    """Replace every `SegmentedNorm` of `model` by one ordinary norm over all its neurons, in place."""
    for path, module in list(model.named_modules()):
        if isinstance(module, SegmentedNorm):
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.plain())
    return model


def _is_joint_norm(module: nn.Module) -> bool:
    """LayerNorm, RMSNorm, whatever calls itself so, and GroupNorm of one group; others work per channel or group."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups == 1
    return isinstance(module, (nn.LayerNorm, nn.RMSNorm)) or type(module).__name__.endswith(("LayerNorm", "RMSNorm"))


_CHOOSES = "which would choose among all members' units at once"


def _check_kept_apart(members: Members) -> None:
    """Refuse networks whose members would meet inside: only inputs and linear outputs may be shared.

    Raises:
        PlanError: with the first op or group in the way.
    """
    graph = members.graph
    found = next(
        (f"{g.name} is chosen from by {g.ranked_by[0]}, {_CHOOSES}" for g in graph.outermost if g.ranked_by), ""
    )
    if not found:
        found = broken_average(members.networks[0], members.example_inputs, graph, members.states, _norms(members))
    if found:
        raise PlanError(
            f"the members cannot run side by side, they would meet inside: {found}; its output is not reached through "
            f"linear ops alone, and only inputs and linear outputs may be shared{_contracted(graph)}{_fixed(graph)}"
        )


def _contracted(graph: NeuronGraph) -> str:
    joint = [f"{g.name} ({', '.join(g.bilinear)})" for g in graph.outermost if g.bilinear]
    return f"; contracted over: {'; '.join(joint[:3])}" if joint else ""


def _fixed(graph: NeuronGraph) -> str:
    fixed = dict.fromkeys(g.why for g in graph if g.reason is FixedReason.ASKED)
    return f"; groups are fixed as {', '.join(fixed)}" if fixed else ""


def _norms(members: Members) -> set[str]:
    """Paths of norms that will work on every member's segment by itself."""
    return {path for path, module in members.networks[0].named_modules() if _is_joint_norm(module)}


def _check_average(
    wide: nn.Module,
    models: Sequence[nn.Module],
    weights: Sequence[float],
    inputs: Any,
    declared: Sequence[Declaration],
    graph: NeuronGraph,
) -> None:
    """Run the wide network once: it must give the members' average on the example inputs.

    Some networks multiply by a power of a width they declare (T5's head by d_model^-1/2); if the average is missed,
    each declared name is tried at its old value, which is then the one that keeps the function.
    """
    expected: list[Tensor] = []
    for model, weight in zip(models, weights, strict=True):
        outputs = _numbers(model, inputs, graph)
        sums = expected or [torch.zeros_like(y) for y in outputs]
        expected = [total + weight * y for total, y in zip(sums, outputs, strict=True)]
    try:
        far = _distance(_numbers(wide, inputs, graph), expected)
    except Exception as error:
        raise ResizeError(
            f"the combined network does not run ({error}); its forward takes sizes from elsewhere than its modules"
        ) from error
    if far is None or any(_exact_with_old(name, declared, wide, inputs, expected, graph) for name in _names(declared)):
        return
    raise PlanError(
        f"the combined network {far} from the members' average: its output is not reached through linear ops alone, or "
        "an op works on all members' neurons at once" + _contracted(graph)
    )


def _names(declared: Sequence[Declaration]) -> list[str]:
    return list(dict.fromkeys(d.name for d in declared))


def _exact_with_old(
    name: str,
    declared: Sequence[Declaration],
    wide: nn.Module,
    inputs: Any,
    expected: Sequence[Tensor],
    graph: NeuronGraph,
) -> bool:
    """Whether the old value of one declared name makes the average exact; if so it stays."""
    holders = [d for d in declared if d.name == name]
    for d in holders:
        setattr(d.holder, name, d.old)
    try:
        if _distance(_numbers(wide, inputs, graph), expected) is None:
            return True
    except Exception:  # the old value does not even run: it is needed at its new one
        pass
    for d in holders:
        setattr(d.holder, name, d.new)
    return False


def _distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> str | None:
    """How far outputs are from what they should be, in words; None within rounding."""
    for i, (mine, theirs) in enumerate(zip(found, expected, strict=False)):
        if mine.shape != theirs.shape:
            return f"gives output {i} the shape {tuple(mine.shape)}, far"
        scale = theirs.abs().max().clamp_min(torch.finfo(theirs.dtype).tiny)
        away = float((mine - theirs).abs().max() / scale)
        if not away <= min(max(1e4 * torch.finfo(theirs.dtype).eps, 1e-6), 0.05):
            return f"gives output {i} {away:.1e} away"
    return None


def _numbers(model: nn.Module, inputs: Any, graph: NeuronGraph) -> list[Tensor]:
    """What the network outputs on all examples: the real numbers among the outputs that count, as for `trace`.

    Raises:
        PlanError: there are none, so that nothing could be compared.
    """
    with preserve_state(model), torch.no_grad():
        seed_all(0)  # networks that draw while they run draw the same
        returned = [call(model, example) for example in examples_of(inputs)]
    found = [x for one in returned for _, x in pinned_outputs(one, graph.outputs or None) if x.is_floating_point()]
    if not found:
        raise PlanError(f"{type(model).__name__} returns no tensor of real numbers, so its members have no average")
    return found
