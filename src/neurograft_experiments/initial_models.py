"""How a trial makes the network it measures: fused, recovered, combined, pruned, continued."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from neurograft.applying.combining import combine
from neurograft.applying.pruning import prune
from neurograft.evaluating.ensemble import Ensemble
from neurograft.fusing import Fusion
from neurograft.inputs import first_tensor
from neurograft.member_statistics.collecting import statistics as ng_statistics
from neurograft.member_statistics.drawing import drawn_batches
from neurograft.member_statistics.statistics import Statistics
from neurograft.members.members import Members
from neurograft.methods import METHODS
from neurograft.training.sequences import fuse_in_sequence
from neurograft_experiments.data import Images, Split
from neurograft_experiments.rows import looks_at_images
from neurograft_experiments.trial_cache import InitialModel, TrialCache, example_of, rank
from neurograft_experiments.trials import JSON, Tick
from neurograft_experiments.tunings import finetuned
from neurograft_experiments.unlabelled import unlabelled


@dataclass(frozen=True, eq=False)
class Ingredients:
    """What a start is made of.

    Attributes:
        settings: of the trial.
        images: the trial's data.
        parts: the images that each member was trained on, where the trial's settings have them.
        members: the trained networks.
        records: of each member, what training it gave.
        cache: of this process.
        tick: called once per epoch of training.
    """

    settings: JSON
    images: Images
    parts: Sequence[Split]
    members: Sequence[nn.Module]
    records: Sequence[Mapping[str, Any]]
    cache: TrialCache
    tick: Tick

    @property
    def unlabelled(self) -> Sequence[Tensor]:
        """The calibration inputs."""
        if self.settings.get("inputs") == "statistics" or self.settings["start"].get("statistics") == "inputs":
            return list(map(first_tensor, drawn_batches(self.statistics, samples=self.settings["calibration"])))
        return unlabelled(self.settings, self.images, self.cache)

    @property
    def statistics(self) -> Sequence[Statistics]:
        """What each member brings of its own images."""

        def collect() -> Sequence[Statistics]:
            return [ng_statistics(own, part.batches()) for own, part in zip(self.members, self.parts, strict=True)]

        return self.cache.keep("statistics", {"members": self.settings["members"]}, collect)

    @property
    def best(self) -> int:
        """The member that validation prefers."""
        return max(range(len(self.records)), key=lambda m: rank(self.records[m]["validation"]))


def make_start(of: Ingredients) -> InitialModel:
    """The trial's start, recovered without training if the trial has a recovery; the tunings of one start share it."""
    settings, start = of.settings, of.settings["start"]
    shared = {name: settings[name] for name in ("data", "network", "members", "start")}
    inputs = {name: settings.get(name) for name in ("calibration", "inputs")}
    if looks_at_images(start["method"], start.get("options", {})):
        shared |= inputs
    made = of.cache.keep("starts", shared, lambda: _made(of, start))
    recovery = settings["recovery"]
    if recovery == "none":
        return made

    def recover() -> InitialModel:
        assert made.fusion is not None
        started = time.perf_counter()
        if recovery == "data_free":
            fusion = made.fusion.repair()
        else:
            fusion = made.fusion.recovered(recovery, of.unlabelled)
        return InitialModel(fusion.model, fusion, made.fuse, time.perf_counter() - started)

    own = {**shared, **inputs, "recovery": recovery}
    return of.cache.keep("starts", own, recover)


def _made(of: Ingredients, start: JSON) -> InitialModel:
    started = time.perf_counter()
    own = _OWN.get(start["method"])
    if own is not None:
        return InitialModel(own(of, start), None, time.perf_counter() - started)
    fusion = _kept_member(of, start) if start["method"] == "keep" else _fused(of, start)
    return InitialModel(fusion.model, fusion, time.perf_counter() - started)


def _fused(of: Ingredients, start: JSON) -> Fusion:
    options: JSON = dict(start.get("options", {}))
    mixing = start.get("mixing")
    weights: Sequence[float] | None = None
    if mixing is not None and "fraction" in METHODS[start["method"]].option_names():
        options["fraction"] = mixing
    elif mixing is not None:
        weights = (1 - mixing, mixing)
    if start.get("weights") == "samples":
        weights = [len(part) for part in of.parts]
    images = of.unlabelled if looks_at_images(start["method"], options) else None
    brought = of.statistics if start.get("statistics") else None
    members = Members(of.members, example_of(of.images), weights=weights, calibration=images, statistics=brought)
    return Fusion.of(members, start["method"], seed=start["seed"], **options)


def _kept_member(of: Ingredients, start: JSON) -> Fusion:
    """All neurons from one member, though all count the same in what the outputs should be."""
    k = len(of.members)
    chosen = of.best if start["member"] == "best" else start["member"]
    quota = [float(number == chosen) for number in range(k)]
    return Fusion.of(Members(of.members, example_of(of.images), weights=[1 / k] * k), "transplant", quota=quota)


def _continued(of: Ingredients, start: JSON) -> nn.Module:
    # a trial that reads one member only has only that one
    return of.members[of.best if start.get("member", "best") == "best" or len(of.members) == 1 else start["member"]]


def _pruned(of: Ingredients, start: JSON) -> nn.Module:
    return prune(_continued(of, start), example_of(of.images), **start.get("options", {}))


def _combined(of: Ingredients, start: JSON) -> nn.Module:
    mixing = start.get("mixing")
    return combine(of.members, example_of(of.images), None if mixing is None else (1 - mixing, mixing))


def _ensemble(of: Ingredients, start: JSON) -> nn.Module:
    if start.get("mixing") is not None:
        return _combined(of, start)
    brought = of.statistics if start.get("statistics") else None
    return Ensemble(of.members, statistics=brought, **start.get("options", {}))


def _in_sequence(of: Ingredients, start: JSON) -> nn.Module:
    def tune(network: nn.Module) -> nn.Module:
        augment = of.settings["data"]["augment"]
        settings = {**start["tune"], "epochs": start["tune_epochs"], "augment": augment}
        return finetuned(network, settings, of.images, seed=start["seed"], tick=of.tick).network

    tuning = tune if "tune" in start["steps"] else None
    options = start.get("options", {})
    return fuse_in_sequence(of.members, example_of(of.images), start["steps"], tuning, seed=start["seed"], **options)


def _untrained(of: Ingredients, start: JSON) -> nn.Module:
    return of.cache.untrained({**of.settings["network"], **start.get("options", {})}, of.images, start["seed"])


_OWN: dict[str, Callable[[Ingredients, JSON], nn.Module]] = {
    "continue": _continued,
    "prune": _pruned,
    "combine": _combined,
    "ensemble": _ensemble,
    "pooled": _continued,
    "sequence": _in_sequence,
    "untrained": _untrained,
}
