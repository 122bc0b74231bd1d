"""What every layer should compute according to the members, at the sampled positions."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from neurograft.axes.layout import Layout, layout_size, sizes_along
from neurograft.axes.mixing import mix_along, unit_positions
from neurograft.evaluating.ensemble import Ensemble
from neurograft.inputs import Inputs, device_of, to_device
from neurograft.plans.plan import FusionPlan
from neurograft.preserve_state import preserve_state
from neurograft.recovery.layers import LayerUse
from neurograft.recovery.residual_branches import Addition, BranchPaths
from neurograft.recovery.samples import Sampler, Samples, check_finite_output, output_rows, rows_shape
from neurograft.recovery.statistics import PlannedNorm, read_statistics, running_statistics
from neurograft.recovery.watching import Contraction, Stop, UseKey, Watcher, run
from neurograft.tracing.graph import FixedReason, Group, NeuronGraph

Targets = dict[UseKey, list[Tensor]]
"""A layer's key -> per batch the planned rows, shape `(samples · positions, outputs)`."""


def collect_targets(
    places: Sequence[LayerUse],
    plan: FusionPlan,
    models: Sequence[nn.Module],
    samples: Samples,
    sampler: Sampler,
    target: Ensemble | None = None,
) -> Targets:
    """Run every member once and mix what its layers compute as the plan has it: T = Σ_m c_m A_m z_m.

    For a layer that writes into a residual stream, z is the stream right after the addition. With a target, what makes
    outputs is weighted by what the members count there, sample by sample, c_m(x).

    Raises:
        InputError: a member cannot take the samples, or gives NaN.
    """
    targets: Targets = {place.key: [] for place in places}
    makes_outputs = any(output_positions(place, plan.graph) is not None for place in places)
    shares = [] if target is None or not makes_outputs else [shares_on(target, batch) for batch in samples.batches]
    for m, model in enumerate(models):
        device = device_of(model)
        with preserve_state(model):
            for number, batch in enumerate(samples.batches):
                listener = _Listener(model, m, places, plan, targets, sampler, number, samples.counts[number])
                if shares:
                    listener.shares = shares[number][m]
                watcher = Watcher(after=listener.after, about=listener.trails.about, done=listener.trails.done)
                run(model, plan.graphs[m], to_device(batch, device), watcher, what=f"batches[{number}], member {m}")
    return targets


def shares_on(target: Ensemble, batch: Inputs) -> Tensor:
    """What every member counts in the ensemble on a batch, shape `(members, samples or 1, classes or 1)`."""
    with preserve_state(target), torch.no_grad():
        moved = to_device(batch, device_of(target))
        if isinstance(moved, Tensor):
            return target.shares(moved)
        return target.shares(**moved) if isinstance(moved, Mapping) else target.shares(*moved)


def output_positions(place: LayerUse, graph: NeuronGraph) -> Tensor | None:
    """Which positions of what a layer makes are outputs of the network; None if none is."""
    if place.use is None:
        return None
    layout = place.use.output[1]
    found = [unit_positions(layout, g).flatten() for g in sizes_along(layout) if is_output(graph[g])]
    return torch.cat(found) if found else None


def is_output(group: Group) -> bool:
    """Whether the network returns these neurons."""
    return group.reason is FixedReason.OUTPUT


def collect_norms(
    names: Sequence[str], plan: FusionPlan, models: Sequence[nn.Module], samples: Samples
) -> dict[str, PlannedNorm]:
    """What the members' BatchNorms read and hold, mixed as the plan has it; those that the plan lacks are left out."""
    planned: dict[str, PlannedNorm] = {}
    names = [name for name in names if name in plan.graph.tensors]
    for m, model in enumerate(models) if names else ():
        with preserve_state(model):
            found = read_statistics(model, plan.graphs[m], samples, names, f", member {m}")
            for name, (norm, statistics) in found.items():
                assert statistics.mean is not None
                read = statistics.mean, statistics.variance(unbiased=False).sqrt()
                rows = planned_buffer(torch.stack([*read, *running_statistics(norm)]), name, plan, m)
                part = PlannedNorm(*rows)
                planned[name] = planned[name] + part if name in planned else part
    return planned


def planned_buffer(rows: Tensor, tensor: str, plan: FusionPlan, member: int) -> Tensor:
    """One member's part of statistics that lie like the buffer, shape `(statistics, channels)`."""
    own, fused = plan.graphs[member].tensors[tensor].layouts[0], plan.graph.tensors[tensor].layouts[0]
    return planned_part(rows, own, fused, tensor, plan, member)


def planned_part(rows: Tensor, own: Layout, fused: Layout, tensor: str, plan: FusionPlan, member: int) -> Tensor:
    """One member's part of what lies like an output, c_m A_m z_m.

    c_m is 1 where moved neurons have one owner, and the member's weight elsewhere, also on the same axis (a layer that
    makes outputs beside neurons).

    Args:
        rows: the member's values, shape `(rows, positions)`.
        own: how its neurons lie along the positions.
        fused: how the fused ones will lie.
        tensor: the tensor that makes them, for its weights.
        plan: the fusion plan.
        member: which member.

    Returns:
        Shape `(rows, fused positions)`.
    """
    groups = sizes_along(own)
    mixings = {group: plan.maps[group][member].merge for group in groups if group in plan.maps}
    if mixings and layout_size(own) == rows.shape[1]:
        rows = mix_along(rows, 1, own, fused, mixings)
    weight = plan.weight(tensor, member)
    moved = [group for group in groups if group in plan.joint]
    if not moved:
        return rows * weight if weight != 1 else rows
    c = torch.full((layout_size(fused),), weight, dtype=rows.dtype)
    for group in moved:
        c[unit_positions(fused, group)] = 1
    return rows if bool((c == 1).all()) else rows * c.to(rows.device)


def planned_rows(rows: Tensor, place: LayerUse, plan: FusionPlan, member: int) -> Tensor:
    """One member's part of the planned rows, c_m A_m z_m; `(rows, member's outputs)` becomes `(rows, outputs)`."""
    assert place.use is not None
    use = plan.graphs[member].use(*place.key)
    assert use is not None
    own: Layout = use.output[1]
    fused: Layout = place.use.output[1]
    return planned_part(rows, own, fused, use.tensor, plan, member)


class _Listener:
    """Takes the rows of every wanted layer of one member in one batch."""

    def __init__(
        self,
        model: nn.Module,
        member: int,
        places: Sequence[LayerUse],
        plan: FusionPlan,
        targets: Targets,
        sampler: Sampler,
        batch: int,
        samples: int,
    ) -> None:
        self.trails = BranchPaths(model, {place.key for place in places if place.stream}, self.adding)
        self.member, self.plan, self.targets, self.sampler = member, plan, targets, sampler
        self.batch, self.samples = batch, samples
        self.wanted = {place.key: place for place in places}
        self.shares: Tensor | None = None

    def after(self, contraction: Contraction, output: Tensor) -> None:
        place = self.wanted.get(contraction.key)
        if place is not None and not place.stream:
            self.take(place, output)
        self.trails.start(contraction, output)

    def adding(self, addition: Addition) -> None:
        place = self.wanted.get(addition.key)
        if place is not None and place.stream:
            self.take(place, addition.trail.back(addition.branch + addition.other))
            self.trails.drop(place.key)

    def take(self, place: LayerUse, output: Tensor) -> None:
        check_finite_output(output, place.key[0], f"member {self.member}, batches[{self.batch}]")
        n, available = rows_shape(output, self.samples)
        chosen = self.sampler.choose(place.number, self.batch, n, available, place.inputs)
        rows = output_rows(output, chosen, self.samples)
        outputs = None if self.shares is None else output_positions(place, self.plan.graph)
        if self.shares is None or outputs is None:
            rows = planned_rows(rows, place, self.plan, self.member)
        else:
            rows = self.weighted(rows, outputs, place, chosen.shape[1])
        rows = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
        kept = self.targets[place.key]
        if len(kept) == self.batch:
            kept.append(rows)
        else:
            kept[self.batch] = kept[self.batch] + rows.to(kept[self.batch].device)
        self.finish(place)

    def weighted(self, rows: Tensor, outputs: Tensor, place: LayerUse, positions: int) -> Tensor:
        """The planned rows, of which those positions that are outputs count what the member counts in each sample."""
        assert self.shares is not None
        shares = self.shares.to(rows)
        planned = planned_rows(rows, place, self.plan, self.member)
        made = rows[:, outputs]
        if shares.shape[1] > 1:  # where weights differ by class, a shift of all logits must not count
            made = made - made.mean(1, keepdim=True)
        if len(shares) > 1:
            shares = shares.repeat_interleave(positions, 0)
        planned = planned.clone()
        planned[:, outputs] = made * shares
        return planned

    def finish(self, place: LayerUse) -> None:
        """Cross a layer off; end the run with the last one."""
        del self.wanted[place.key]
        if not self.wanted:
            raise Stop
