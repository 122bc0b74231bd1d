"""`refit`: bring every layer of a fused network towards what the members say, in closed form."""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn

from neurograft.calibrating.belonging import check_belongs
from neurograft.calibrating.fitting import Fit
from neurograft.calibrating.report import LayerRecovery, RecoveryReport, remember
from neurograft.calibrating.samples import Sampler, Samples, read_samples
from neurograft.calibrating.settling import Item, Work, eval_mode, settle
from neurograft.calibrating.statistics import NormFit, PlannedNorm, settle_statistics
from neurograft.calibrating.survey import Place, Survey, survey
from neurograft.calibrating.targets import collect_norms, collect_targets
from neurograft.calibrating.watching import Key
from neurograft.errors import OptionError
from neurograft.inputs import Batches, device_of
from neurograft.planning.plan import FusionPlan

MEMORY = 2 << 30
"""Bytes for activations, targets and Gram matrices, where the caller does not say."""

GRAMS = 5
"""Square matrices of its inputs that solving a wide layer holds at once: two folds, their sum, a part and a factor."""


def refit(
    fused: nn.Module,
    plan: FusionPlan,
    models: Sequence[nn.Module],
    batches: Batches,
    *,
    ridge: float | None = None,
    positions: int | None = None,
    layers: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    max_memory: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """A copy of the fused network whose layers give what the members say, from unlabelled samples and no gradient.

    The layers are walked in execution order. For a layer with fused inputs X and planned outputs T (of a kept or
    merged neuron its members' pre-activation c_m A_m z_m, of outputs the members' weighted mean, of a layer that
    writes into a residual stream the planned stream minus the current one)

        min over W of |X Wᵀ − T|² + λ·mean(diag XᵀX)·|W − W₀|²

    is solved, with the bias as one more column, and the next layer reads the new activations. BatchNorms are
    re-estimated as they are passed. `recovery_report(result)` says what happened to every layer.

    Args:
        fused: what `apply(plan, models)` gave; it stays as it is.
        plan: the plan it was made by.
        models: the members.
        batches: a re-iterable of inputs, with or without labels (which are left out).
        ridge: λ, at least 0; None chooses it per layer on held-out samples, and keeps W₀ where nothing is won.
        positions: positions per sample (pixels of an image, tokens) a layer is solved from; None: what is needed.
        layers: fnmatch patterns of the weights to refit.
        exclude: fnmatch patterns of weights to leave as they are.
        max_memory: bytes for activations and targets, 2 GiB by default; less memory takes more passes. A layer whose
            Gram matrices need more than that (about 7,000 inputs in 2 GiB) is left out.
        seed: of the sampled positions.

    Raises:
        InputError: batches the networks cannot take, that are empty, one-shot, or give NaN.
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

    Source: DESIGN, section 5.
    """
    started = time.perf_counter()
    _check_options(ridge, positions, max_memory)
    check_belongs(plan, models, fused)
    samples = read_samples(batches, device_of(fused))
    result = copy.deepcopy(fused)
    memory = MEMORY if max_memory is None else max_memory
    found = _without_huge(survey(result, plan, samples, layers=layers, exclude=exclude), max(memory, MEMORY))
    samples = joined_if_small(samples, found, memory)
    sampler = Sampler(samples.total, positions, seed)
    reports = {place.key: left_out(place) for place in found.places if place.skipped}
    passes = 0
    corrected: set[str] = set()
    with eval_mode(result):
        for names in _chunks(found, sampler, memory):
            places = [place for place in found.places if place.key in names and not place.skipped]
            targets = collect_targets(places, plan, models, samples, sampler)
            fits = [Fit(place, targets.pop(place.key), ridge, _largest_norm(models, place)) for place in places]
            norms = collect_norms([name for name in names if isinstance(name, str)], plan, models, samples)
            passes += settle(Work(result, samples, sampler, _in_order(found, fits, names, norms)))
            reports |= {fit.place.key: fit.report() for fit in fits}
            corrected |= {name for fit in fits if fit.place.stream and fit.changed for name in fit.place.norms}
        passes += settle_statistics(result, samples, corrected)
    unseen = [LayerRecovery(name, "left out", note="no plain product reads it") for name in found.unseen]
    lines = tuple(reports[place.key] for place in found.places) + tuple(unseen)
    return remember(result, RecoveryReport("refit", lines, samples.total, passes, time.perf_counter() - started))


def joined_if_small(samples: Samples, found: Survey, memory: int) -> Samples:
    """All samples as one batch if a few of the network's largest activations fit into the memory."""
    return samples.joined() if 6 * found.largest * samples.total <= memory else samples


def left_out(place: Place) -> LayerRecovery:
    """The line of a layer that is left out."""
    return LayerRecovery(place.key[0], "left out", note=place.skipped)


def _check_options(ridge: float | None, positions: int | None, max_memory: int | None) -> None:
    if ridge is not None and not 0 <= ridge < float("inf"):
        raise OptionError(f"ridge is {ridge}; it is 0 or more, or None to be chosen on held-out samples")
    if positions is not None and positions < 1:
        raise OptionError(f"positions is {positions}; a layer is solved from 1 or more positions per sample")
    if max_memory is not None and max_memory < 1:
        raise OptionError(f"max_memory is {max_memory}; it is a number of bytes, 1 or more")


def _without_huge(found: Survey, memory: int) -> Survey:
    """Leave out layers whose Gram matrices, which cannot be split, do not fit into the memory."""
    places = []
    for place in found.places:
        needed = GRAMS * 8 * (place.inputs + 1) ** 2
        note = f"its Gram matrices need {needed / 2**30:.1f} GiB: raise max_memory" if needed > memory else ""
        places.append(replace(place, stream=False, skipped=note) if note and not place.skipped else place)
    return replace(found, places=tuple(places))


def _chunks(found: Survey, sampler: Sampler, memory: int) -> Iterator[tuple[Key | str, ...]]:
    """Runs of the order whose targets fit into half the memory; at least one layer each."""
    places = {place.key: place for place in found.places}
    chunk: list[Key | str] = []
    used = 0
    for name in found.order:
        place = places.get(name) if isinstance(name, tuple) else None
        cost = 0 if place is None or place.skipped else 4 * max(sampler.wanted(place.inputs), 1) * place.outputs
        if chunk and used and used + cost > memory // 2:
            yield tuple(chunk)
            chunk, used = [], 0
        chunk.append(name)
        used += cost
    yield tuple(chunk)


def _in_order(
    found: Survey, fits: Sequence[Fit], names: Sequence[Key | str], norms: Mapping[str, PlannedNorm]
) -> list[Item]:
    """Fits and norms as the run can settle them; a norm inside a corrected branch keeps the scale it is solved for."""
    inside = {name for place in found.places if place.stream for name in place.norms}
    by_name: dict[Key | str, Item] = {fit.name: fit for fit in fits}
    by_name |= {name: NormFit(name, norms.get(name)) for name in names if isinstance(name, str) and name not in inside}
    return [by_name[name] for name in found.order if name in by_name]


def _largest_norm(models: Sequence[nn.Module], place: Place) -> float:
    """The largest norm this weight has in a member."""
    return max(float(model.get_parameter(place.key[0]).detach().norm()) for model in models)
