"""`repair`: give every neuron of a fused network the members' planned mean and standard deviation (REPAIR)."""

import time
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from neurograft.axes.layout import sizes_along
from neurograft.axes.maps import has_negative
from neurograft.inputs import Batches, device_of, to_device
from neurograft.members.members import Members
from neurograft.plans.check_members import in_form, members_for, state_of_fused
from neurograft.plans.plan import FusionPlan
from neurograft.preserve_state import copy_of, keeps_random_state, preserve_state
from neurograft.recovery.data_free import repair_without_data
from neurograft.recovery.layers import LayerUse, NetworkLayers, survey
from neurograft.recovery.refit import MEMORY, left_out
from neurograft.recovery.report import LayerRecovery, Recovered, RecoveryReport
from neurograft.recovery.rescaling import RescaleFit
from neurograft.recovery.samples import Sampler, Samples, check_finite_output, read_samples
from neurograft.recovery.sequential_solve import Item, SolvePlan, eval_mode, settle
from neurograft.recovery.statistics import NormFit, Statistics
from neurograft.recovery.targets import collect_norms, planned_rows
from neurograft.recovery.watching import Contraction, UseKey, Watcher, run, shown


@keeps_random_state
def repair(
    fused: nn.Module,
    plan: FusionPlan,
    models: Sequence[nn.Module] | Members,
    batches: Batches | None = None,
    *,
    max_memory: int | None = None,
) -> nn.Module:
    """A copy of the fused network whose neurons have the members' mean and standard deviation, layer by layer.

    For a neuron with mean μ and standard deviation σ on the samples, and planned ones μ* = Σ_m c_m A_m μ_m and
    σ* = Σ_m c_m A_m σ_m, the weights are scaled by σ*/σ and the bias becomes (b − μ)·σ*/σ + μ*. A layer in front of
    a BatchNorm keeps its weights: the BatchNorm is re-estimated, which is the same. Layers without a bias get the
    scale only; layers that make the network's outputs, and those whose neurons the plan rotates, stay as they are.
    `Fusion.repair` gives a report of each layer.

    Args:
        fused: what `apply(plan, models)` gave; it stays as it is.
        plan: the plan it was made by.
        models: the members.
        batches: a re-iterable of inputs, with or without labels. None: BatchNorms alone are repaired, from the
            members' running statistics σ_m² and the weights in front of them, σ² = |W|² · Σ_m c_m A_m (σ_m² / |W_m|²).
        max_memory: bytes the activations may take, 2 GiB by default; with less memory the batches become smaller and
            the passes more.

    Raises:
        InputError: batches the networks cannot take, that are empty, one-shot, or give NaN.
        PlanError: the plan does not belong to these networks.

    Example:
        >>> import torch, neurograft as ng
        >>> nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in "ab"]
        >>> x = torch.randn(200, 4)
        >>> plan = ng.plan(nets, x[:1], method="average")
        >>> better = repair(ng.apply(plan, nets), plan, nets, [x])
        >>> spread = (nets[0][0](x).std(0) + nets[1][0](x).std(0)) / 2
        >>> torch.allclose(better[0](x).std(0), spread, rtol=1e-4)
        True

    Source: Jordan et al. 2023, arXiv:2211.08403, section 4.
    """
    return repaired(fused, plan, members_for(plan, models), batches, max_memory=max_memory).model


def repaired(
    fused: nn.Module,
    plan: FusionPlan,
    members: Members,
    batches: Batches | None = None,
    *,
    max_memory: int | None = None,
) -> Recovered:
    """`repair` and its report."""
    started = time.perf_counter()
    result, members = copy_of(fused), in_form(plan, members)
    own = state_of_fused(plan, result, members)
    if batches is None:
        return Recovered(result, repair_without_data(own, plan, members, started))
    samples = read_samples(batches, device_of(fused)).seen_by(fused)
    found = survey(result, plan, samples)
    samples = samples.fitted(found.largest, MEMORY if max_memory is None else max_memory)
    places = [place for place in found.places if _repairable(place, plan)]
    planned = _planned(places, plan, members.networks, samples)
    by_name: dict[UseKey | str, RescaleFit | NormFit] = {p.key: RescaleFit(p, *planned[p.key]) for p in places}
    names = [name for name in found.run if isinstance(name, str)]
    norms = collect_norms(names, plan, members.networks, samples)
    by_name |= {name: NormFit(name, norms.get(name)) for name in names}
    items: list[Item] = [by_name[name] for name in found.run if name in by_name]
    with eval_mode(result):
        passes = settle(SolvePlan(result, plan.graph, samples, Sampler(samples.total, None, 0), list(items)))
    lines = tuple(_line(name, by_name.get(name), found, plan) for name in found.run)
    bare = sum(isinstance(item, RescaleFit) and not item.biased for item in items)
    notes = (f"{bare} layers have no bias and got the scale only",) if bare else ()
    seconds = time.perf_counter() - started
    return Recovered(result, RecoveryReport("repair", lines, samples.total, passes, seconds, notes))


def _repairable(place: LayerUse, plan: FusionPlan) -> bool:
    """Whether a layer makes hidden neurons that no BatchNorm normalises anyway."""
    if place.skipped or place.use is None or place.followed or _turned(place, plan):
        return False
    groups = [plan.graph[group] for group in sizes_along(place.use.output[1])]
    return bool(groups) and any(not group.fixed for group in groups)


def _turned(place: LayerUse, plan: FusionPlan) -> bool:
    """Whether a layer's neurons are rotated or change their signs, so that they have no deviation of their own."""
    assert place.use is not None
    groups = sizes_along(place.use.output[1])
    return any(has_negative(own.merge) for group in groups for own in plan.maps.get(group, ()))


def _line(
    name: UseKey | str, item: RescaleFit | NormFit | None, found: NetworkLayers, plan: FusionPlan
) -> LayerRecovery:
    if isinstance(item, RescaleFit):
        return item.report()
    if isinstance(item, NormFit):
        return LayerRecovery(shown(item.name), "statistics", rows=item.statistics.count, note="re-estimated")
    place = next(place for place in found.places if place.key == name)
    if place.skipped:
        return left_out(place)
    note = f"normalised by {shown(place.followed)}" if place.followed else "makes outputs"
    if not place.followed and place.use is not None and _turned(place, plan):
        note = "its neurons are rotated: they have no deviation of their own"
    return LayerRecovery(place.key[0], "left out", note=note)


def _planned(
    places: Sequence[LayerUse], plan: FusionPlan, models: Sequence[nn.Module], samples: Samples
) -> dict[UseKey, tuple[Tensor, Tensor]]:
    """μ* = Σ_m c_m A_m μ_m and σ* = Σ_m c_m A_m σ_m of every layer."""
    planned: dict[UseKey, tuple[Tensor, Tensor]] = {}
    for m, model in enumerate(models):
        found = {place.key: Statistics() for place in places}
        with preserve_state(model):
            for number, batch in enumerate(samples.batches):
                pool = Watcher(after=partial(_pool, found, f"member {m}, batches[{number}]"))
                where = f"batches[{number}], member {m}"
                run(model, plan.graphs[m], to_device(batch, device_of(model)), pool, what=where)
        for place in places:
            statistics = found[place.key]
            assert statistics.mean is not None
            both = torch.stack([statistics.mean, statistics.variance(unbiased=False).sqrt()])
            mean, deviation = planned_rows(both, place, plan, m)
            if place.key in planned:
                mean, deviation = mean + planned[place.key][0].to(mean), deviation + planned[place.key][1].to(mean)
            planned[place.key] = mean, deviation
    return planned


def _pool(found: Mapping[UseKey, Statistics], who: str, contraction: Contraction, output: Tensor) -> None:
    # add up the statistics of what layers make in one member
    if contraction.key in found:
        check_finite_output(output, contraction.tensor, who)
        found[contraction.key].add(output)
