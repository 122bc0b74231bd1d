"""`refit`: bring every layer of a fused network towards what the members compute, in closed form."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite

from torch import nn

from neurograft.applying.application import assemble, is_applied
from neurograft.errors import OptionError
from neurograft.evaluating.ensemble import Ensemble
from neurograft.inputs import Batches, device_of
from neurograft.members.members import Members
from neurograft.options import check_seed, patterns_of
from neurograft.plans.check_members import in_form, members_for, state_of_fused
from neurograft.plans.plan import FusionPlan
from neurograft.preserve_state import copy_of, keeps_random_state
from neurograft.recovery.agreement import Agreement, agreement, merges
from neurograft.recovery.fitting import BLOCK, Fit
from neurograft.recovery.holdout import HoldOut, held_out
from neurograft.recovery.layers import LayerUse, NetworkLayers, survey
from neurograft.recovery.output_layer import fit_output_layer
from neurograft.recovery.report import LayerRecovery, Recovered, RecoveryReport
from neurograft.recovery.samples import ACTIVATIONS, Groups, Sampler, Samples, read_samples
from neurograft.recovery.sequential_solve import Item, SolvePlan, eval_mode, settle
from neurograft.recovery.statistics import NormFit, PlannedNorm, settle_statistics
from neurograft.recovery.targets import collect_norms, collect_targets
from neurograft.recovery.watching import UseKey

MEMORY = 2 << 30
"""Bytes for activations, targets and matrices, where the caller sets no limit."""

LEAST = 64 << 20
"""Bytes that a layer's matrices, and measuring how far members agree, may take however low the limit is."""


@keeps_random_state
def refit(
    fused: nn.Module,
    plan: FusionPlan,
    models: Sequence[nn.Module] | Members,
    batches: Batches,
    *,
    ridge: float | None = None,
    positions: int | None = None,
    layers: str | Sequence[str] = ("*",),
    exclude: str | Sequence[str] = (),
    agree: bool = True,
    target: Ensemble | None = None,
    max_memory: int | None = None,
    groups: Groups | None = None,
    seed: int = 0,
) -> nn.Module:
    """A copy of the fused network whose layers compute what the members do, from unlabelled samples and no gradient.

    The layers are walked in execution order. For a layer with fused inputs X and planned outputs T (of a kept or
    merged neuron its members' pre-activation c_m A_m z_m, of outputs the members' weighted mean, of a layer that
    writes into a residual stream the planned stream minus the current one)

        min over W of |X Wᵀ − T|² + λ·mean(diag XᵀX)·|W − W₀|²

    is solved, with the bias as one more column, and the next layer reads the new activations. BatchNorms are
    re-estimated as they are passed. A few samples are held out of all that: if the refitted network's outputs are not
    nearer to the members' mean output on them than those of the fused one, nothing is changed.
    `Fusion.refit` gives a report of every layer too.

    Args:
        fused: what `apply(plan, models)` gave; it stays as it is.
        plan: the plan it was made by.
        models: the members.
        batches: a re-iterable of inputs, with or without labels (which are left out).
        ridge: λ, at least 0, for every layer and from all samples, whatever comes of it; None chooses it per layer
            by cross-validation, keeps W₀ where nothing is won, and holds out one sample in five, at most 100, to judge.
        positions: positions per sample (pixels of an image, tokens) a layer is solved from; None: what is needed.
        layers: fnmatch patterns of the weights to refit.
        exclude: fnmatch patterns of weights to leave as they are.
        agree: weight merged neurons by how far the members agree on them before anything is solved, ω_m ∝ w_m ·
            max(r_m, 0)² with r_m the correlation with one member's: the mean of neurons that have nothing in common is
            no member's neuron. Where the plan selects neurons, or only some layers are asked for, there is nothing to
            weight; False keeps the plan's own weights everywhere.
        target: an ensemble of the members that weights them, by `weights`, `statistics` or `vote="energy"`: outputs are
            brought towards what it returns, and the held-out samples judge by that; None for the plan's weights. With
            `vote="probabilities"`, for classifiers, the outputs are refitted by the plan's weights, and then the layer
            that makes them is solved on cross-entropy towards the ensemble's probabilities.
        max_memory: bytes for what is computed, beside the samples, copies of the network (and what the allocator keeps
            of freed blocks: a few per cent have been seen at 1 GiB); 2 GiB by default. With
            less memory the batches become smaller and the passes more. The matrices a layer is solved with cannot be
            split (540 MB for 4,608 inputs and 512 outputs): a layer that needs more than three quarters of
            `max_memory` for them, and more than 48 MiB, is left out.
        groups: one integer per sample, in the order of the batches, for samples that are not independent (the frames of
            one video, the atoms of one molecule, the pictures of one patient): samples of one group are held out
            together, to judge and to choose λ, as errors on new groups are what counts then. Where samples lie along
            the second dimension (time first), a layer's rows are not divided by sample, and groups only judge.
        seed: of the sampled positions.

    Raises:
        InputError: batches the networks cannot take, that are empty, one-shot, or give NaN; groups that do not fit.
        PlanError: the plan does not belong to these networks.
        OptionError: an option outside its range.

    Example:
        >>> import torch, neurograft as ng
        >>> nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in "ab"]
        >>> x = torch.randn(200, 4)
        >>> plan = ng.plan(nets, x[:1])
        >>> fused = ng.apply(plan, nets)
        >>> better = refit(fused, plan, nets, [x])
        >>> mean = (nets[0](x) + nets[1](x)) / 2
        >>> bool((better(x) - mean).norm() < (fused(x) - mean).norm())
        True

    Source: docs/design.md, "What refit means".
    """
    return refitted(
        fused,
        plan,
        members_for(plan, models),
        batches,
        ridge=ridge,
        positions=positions,
        layers=layers,
        exclude=exclude,
        agree=agree,
        target=target,
        max_memory=max_memory,
        groups=groups,
        seed=seed,
    ).model


def refitted(
    fused: nn.Module,
    plan: FusionPlan,
    members: Members,
    batches: Batches,
    *,
    applied: bool = False,
    ridge: float | None = None,
    positions: int | None = None,
    layers: str | Sequence[str] = ("*",),
    exclude: str | Sequence[str] = (),
    agree: bool = True,
    target: Ensemble | None = None,
    max_memory: int | None = None,
    groups: Groups | None = None,
    seed: int = 0,
) -> Recovered:
    """`refit` and its report; `applied` means that the network is known to be what the plan makes of the members.

    Weighting by agreement starts from the members anew, so it is for networks that are still what the plan makes; where
    that is not known, they are compared.
    """
    started = time.perf_counter()
    _check_options(ridge, positions, max_memory)
    _check_target(target, len(members))
    classes = target if target is not None and target.vote == "probabilities" else None
    target = target if classes is None else None
    check_seed(seed)
    layers, exclude = patterns_of(layers, "layers"), patterns_of(exclude, "exclude")
    members = in_form(plan, members)
    own = state_of_fused(plan, fused, members)
    samples = read_samples(batches, device_of(fused)).seen_by(fused).grouped(groups)
    total, memory = samples.total, MEMORY if max_memory is None else max_memory
    samples, judges = held_out(samples) if ridge is None else (samples, None)
    result = copy_of(fused)
    found = _affordable(survey(result, plan, samples, layers=layers, exclude=exclude), memory)
    room = _room(found, memory)
    judges = None if judges is None else judges.fitted(found.largest, room)
    notes: tuple[str, ...] = ()
    everywhere = agree and layers == ("*",) and not exclude
    if everywhere and merges(plan) and (applied or is_applied(own, plan, members)):
        parts = samples.cut(room // (ACTIVATIONS * max(1, found.largest)))
        agreed = agreement(plan, members, parts, judges=judges, memory=max(room, LEAST))
        if agreed is not None:
            plan, result, notes = agreed.plan, assemble(agreed.plan, members)[0], (_shares(agreed),)
    samples = samples.fitted(found.largest, room)
    report = _Refit(plan, members.networks, Sampler(samples.total, positions, seed), ridge, room, target).run(
        result, samples, found
    )
    report = replace(report, samples=total, notes=notes)
    kept = False
    if judges is not None:
        judge = HoldOut.of(judges, plan, members.networks, target)
        report = replace(report, held_out=judges.total, before=judge.error(fused), after=judge.error(result))
        if isfinite(report.before) and not report.after <= report.before:
            kept, result, report = True, copy_of(fused), _unchanged(report, time.perf_counter() - started)
        if classes is not None:
            fit = fit_output_layer(result, plan, found.places, samples, judges, classes)
            report = report if fit is None else replace(report, notes=(*report.notes, str(fit)))
            kept = kept and fit is None
    if kept:
        return Recovered(result, report)
    return Recovered(result, replace(report, seconds=time.perf_counter() - started), plan)


@dataclass(frozen=True, eq=False)
class _Refit:
    """What stays the same while the layers are walked."""

    plan: FusionPlan
    models: Sequence[nn.Module]
    sampler: Sampler
    ridge: float | None
    room: int
    target: Ensemble | None

    def run(self, model: nn.Module, samples: Samples, found: NetworkLayers) -> RecoveryReport:
        """Refit a copy of ours in place."""
        reports = {place.key: left_out(place) for place in found.places if place.skipped}
        passes = 0
        corrected: set[str] = set()
        with eval_mode(model):
            for names in _chunks(found, self.sampler, self.room):
                fits, norms = self.targets(found, names, samples)
                items = _in_order(found, fits, names, norms)
                passes += settle(SolvePlan(model, self.plan.graph, samples, self.sampler, items))
                reports |= {fit.place.key: fit.report() for fit in fits}
                corrected |= {name for fit in fits if fit.place.stream and fit.changed for name in fit.place.norms}
            passes += settle_statistics(model, self.plan.graph, samples, corrected)
        unseen = [LayerRecovery(name, "left out", note="no plain product reads it") for name in found.unseen]
        lines = tuple(reports[place.key] for place in found.places) + tuple(unseen)
        return RecoveryReport("refit", lines, samples.total, passes, 0.0)

    def targets(
        self, found: NetworkLayers, names: Sequence[UseKey | str], samples: Samples
    ) -> tuple[list[Fit], dict[str, PlannedNorm]]:
        """What the members compute in some layers and BatchNorms."""
        places = [place for place in found.places if place.key in names and not place.skipped]
        targets = collect_targets(places, self.plan, self.models, samples, self.sampler, self.target)
        block = min(BLOCK, self.room // 8)
        fits = [Fit(p, targets.pop(p.key), self.ridge, _largest_norm(self.models, p), block) for p in places]
        norms = [name for name in names if isinstance(name, str)]
        return fits, collect_norms(norms, self.plan, self.models, samples)


def _shares(found: Agreement) -> str:
    shares = ", ".join(f"member {m} {share:.0%}" for m, share in enumerate(found.shares))
    return f"merged neurons were weighted by how far they agree with member {found.reference}'s: {shares} on average"


def _unchanged(report: RecoveryReport, seconds: float) -> RecoveryReport:
    """The report where the fused network was nearer to the members on the held-out samples, so that it is kept."""
    note = (
        f"nothing was changed: on {report.held_out} held-out samples the refitted outputs were farther from the "
        f"members' mean ({report.after:.3g} of its size) than the fused ones ({report.before:.3g}); pass more samples"
    )
    kept = tuple(replace(layer, after=layer.before, ridge=inf, norm=1.0) for layer in report.layers)
    return replace(report, layers=kept, after=report.before, notes=(*report.notes, note), seconds=seconds)


def left_out(place: LayerUse) -> LayerRecovery:
    """The line of a layer that is left out."""
    return LayerRecovery(place.key[0], "left out", note=place.skipped)


def _check_options(ridge: float | None, positions: int | None, max_memory: int | None) -> None:
    if ridge is not None and not 0 <= ridge < float("inf"):
        raise OptionError(f"ridge is {ridge}; it is 0 or more, or None to be chosen on held-out samples")
    if positions is not None and positions < 1:
        raise OptionError(f"positions is {positions}; a layer is solved from 1 or more positions per sample")
    if max_memory is not None and max_memory < 1:
        raise OptionError(f"max_memory is {max_memory}; it is a number of bytes, 1 or more")


def _check_target(target: object, members: int) -> None:
    if target is None:
        return
    if not isinstance(target, Ensemble) or len(target.members) != members or target.vote == "majority":
        raise OptionError(
            f"target is a {type(target).__name__}; it is an Ensemble of the {members} members, with any vote but "
            "majority"
        )


def _affordable(found: NetworkLayers, memory: int) -> NetworkLayers:
    """Leave out layers whose matrices, which cannot be split, do not fit into three quarters of the memory."""
    places = []
    for place in found.places:
        needed = place.matrices
        huge = not place.skipped and needed > max(memory, LEAST) * 3 // 4
        note = f"the matrices it is solved with need {needed / 2**30:.1f} GiB: raise max_memory"
        places.append(replace(place, stream=False, skipped=note) if huge else place)
    return replace(found, places=tuple(places))


def _room(found: NetworkLayers, memory: int) -> int:
    """Bytes that the widest layer's matrices leave for activations, and as many for targets; ops keep an eighth."""
    widest = max((place.matrices for place in found.places if not place.skipped), default=0)
    return max(memory - memory // 8 - widest, memory // 4) // 2


def _chunks(found: NetworkLayers, sampler: Sampler, room: int) -> Iterator[tuple[UseKey | str, ...]]:
    """Runs of the order whose targets fit into the room; at least one layer each."""
    places = {place.key: place for place in found.places}
    chunk: list[UseKey | str] = []
    used = 0
    for name in found.order:
        place = places.get(name) if isinstance(name, tuple) else None
        cost = 0 if place is None or place.skipped else 4 * max(sampler.wanted(place.inputs), 1) * place.outputs
        if chunk and used and used + cost > room:
            yield tuple(chunk)
            chunk, used = [], 0
        chunk.append(name)
        used += cost
    yield tuple(chunk)


def _in_order(
    found: NetworkLayers, fits: Sequence[Fit], names: Sequence[UseKey | str], norms: Mapping[str, PlannedNorm]
) -> list[Item]:
    """Fits and norms as the run can settle them; a norm inside a corrected branch keeps the scale it is solved for."""
    inside = {name for place in found.places if place.stream for name in place.norms}
    by_name: dict[UseKey | str, Item] = {fit.name: fit for fit in fits}
    by_name |= {name: NormFit(name, norms.get(name)) for name in names if isinstance(name, str) and name not in inside}
    return [by_name[name] for name in found.order if name in by_name]


def _largest_norm(models: Sequence[nn.Module], place: LayerUse) -> float:
    """The largest norm this weight has in a member."""
    return max(float(model.get_parameter(place.key[0]).detach().norm()) for model in models)
