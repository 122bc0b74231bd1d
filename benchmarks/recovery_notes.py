"""What docs/recovery.md says about its tables: every figure is computed from the rows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from textwrap import fill
from typing import Any

CONTROL = "member 0's neurons"
MERGING = ("average", "permutation", "optimal_transport")
TEST_IMAGES = 10_000
REPAIRED = {"resnet8": ("ResNet20", 12.7, 67.6, 93.5), "vgg11": ("VGG11", 61.3, 88.2, 92.2)}
"""Network -> REPAIR's own published figures: its network, aligned, aligned and repaired, members (arXiv 2211.08403)."""


class Findings:
    """The rows of one network and number of members, averaged over seeds."""

    def __init__(self, title: str, rows: Sequence[Any], count: int, samples: int):
        self.title, self.count, self.samples = title, count, samples
        self.rows = [row for row in rows if row.members == count]
        self.seeds = sorted({row.seed for row in self.rows})
        singles = [r for r in rows if r.members == 1 and r.seed in self.seeds and int(r.method.split()[1]) < count]
        self.singles = singles
        self.best = mean(max(r.accuracy for r in singles if r.seed == seed) for seed in self.seeds)
        self.ensemble = mean(row.accuracy for row in self.rows if row.method == "ensemble")
        self.methods = [m for m in dict.fromkeys(r.method for r in self.rows) if m not in ("ensemble", CONTROL)]

    def __str__(self) -> str:
        return f"{self.title}, {self.count} members"

    def get(self, method: str, recovery: str, samples: int | None = None) -> float | None:
        """The accuracy of one cell, None if it is not there yet."""
        wanted = (0, self.samples) if samples is None else (samples,)
        found = [r.accuracy for r in self.rows if (r.method, r.recovery) == (method, recovery) and r.samples in wanted]
        return mean(found) if found else None

    def share(self, method: str, recovery: str) -> float | None:
        """How much of what the bare network lost against the best member came back, None if it lost nothing."""
        bare, after = self.get(method, "bare"), self.get(method, recovery)
        return None if bare is None or after is None or bare >= self.best else (after - bare) / (self.best - bare)


def noise(accuracy: float) -> float:
    """Two standard errors of the difference of two accuracies on the test images."""
    return 2 * math.sqrt(2 * accuracy * (1 - accuracy) / TEST_IMAGES)


def points(share: float) -> str:
    return f"{100 * share:.1f}"


def notes(findings: Mapping[str, Sequence[Findings]], seconds: Mapping[str, float], where: str) -> str:
    """The last section of the page."""
    every = [f for found in findings.values() for f in found]
    cifar = [f for name, found in findings.items() if name != "mlp" for f in found]
    parts = [
        *_ensemble(findings.get("mlp", ())),
        *_two_thirds(cifar),
        *_control(every),
        *_agreement(every),
        *_batch_norm(findings),
        *_few(every),
        *_repair(every),
        *_cost(seconds, where),
    ]
    return "## What to read from it\n\n" + "\n".join(_wrapped(f"- {part}") for part in parts) + "\n"


def _wrapped(text: str) -> str:
    return fill(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _ensemble(found: Sequence[Findings]) -> Iterator[str]:
    for f in found:
        after = f.get("transplant", "refit")
        if after is not None:
            away = f.ensemble - after
            verdict = "met" if away < 0.0025 else "missed"
            yield (
                f"{f}: transplant + refit is {points(away)} points below the ensemble ({points(after)} against "
                f"{points(f.ensemble)}); the target, 0.2 points, is {verdict}."
            )


def _two_thirds(found: Sequence[Findings]) -> Iterator[str]:
    shares = [(f, m, s) for f in found for m in f.methods if (s := f.share(m, "refit")) is not None]
    missed = [(f, m, s) for f, m, s in shares if s < 2 / 3]
    if not shares:
        return
    head = f"Two thirds of what was lost against the best member come back in {len(shares) - len(missed)} of "
    yield (
        head
        + f"{len(shares)} fusions of CIFAR-10 networks"
        + (": all." if not missed else "; not in " + ", ".join(f"{m} of {f} ({s:.0%})" for f, m, s in missed) + ".")
    )
    for f in dict.fromkeys(f for f, _, _ in missed):
        control = f.get(CONTROL, "refit")
        if control is None:
            continue
        yield (
            f"Why not there ({f}): refit brings a fused network to what its members know, layer by layer, and no "
            f"further. Even with every hidden neuron a member's own, so that no layer is off at all, the control "
            f"reaches {points(control)}; the members have "
            f"{', '.join(points(r.accuracy) for r in f.singles)}, the best of which is the bar. A transplanted network "
            "falls short even of that: it holds a part of every member's neurons, and what the parts that were left "
            "out knew is missing in every layer behind them."
        )


def _control(found: Sequence[Findings]) -> Iterator[str]:
    above = equal = below = 0
    for f in found:
        control = f.get(CONTROL, "refit")
        for method in f.methods:
            after = f.get(method, "refit")
            if control is None or after is None:
                continue
            limit = noise(control)
            above += after > control + limit
            below += after < control - limit
            equal += abs(after - control) <= limit
    if above + equal + below:
        yield (
            f"The control is the honest bar: of {above + equal + below} refitted fusions {above} are above it, {equal} "
            f"equal to it within two standard errors, {below} below. Refit repairs what fusing broke; what fusing adds "
            "over one member's neurons, solved towards the ensemble, is no more than that. Whoever can train should "
            "distil ([how to choose](how-to-choose.md))."
        )


def _agreement(found: Sequence[Findings]) -> Iterator[str]:
    gains = [
        (f, m, after - plain)
        for f in found
        for m in MERGING
        if (after := f.get(m, "refit")) is not None and (plain := f.get(m, "refit to the plain mean")) is not None
    ]
    if not gains:
        return
    f, m, most = max(gains, key=lambda gain: gain[2])
    g, n, least = min(gains, key=lambda gain: gain[2])
    yield (
        "Merged neurons that do not agree are weighted before anything is solved (`agree=True`). Against targets that "
        f"are the plain mean of the members that gives {points(mean(gain for *_, gain in gains))} points on average "
        f"over {len(gains)} fusions: most for {m} of {f} ({points(most)}), least for {n} of {g} ({points(least)}). The "
        "less is aligned, the more it gives: the mean of neurons that have nothing in common is no member's neuron, "
        "and no later layer can make up for that."
    )
    for f in found:
        if f.get("average", "refit") is not None and f.get("average", "refit to the plain mean") is None:
            yield f"{f}: these rows are older than that weighting; their refit is to the plain mean."


def _batch_norm(findings: Mapping[str, Sequence[Findings]]) -> Iterator[str]:
    for name, (theirs, aligned, repaired, best) in REPAIRED.items():
        for f in findings.get(name, ()):
            own, refit = f.share("permutation", "repair"), f.share("permutation", "refit")
            if own is None or refit is None or f.count != 2:
                continue
            published = (repaired - aligned) / (best - aligned)
            verdict = "met" if own >= published - 0.05 else "missed"
            yield (
                f"{f}: permutation + REPAIR wins back {own:.2f} of (best − aligned), refit {refit:.2f}. REPAIR's own "
                f"files have {published:.2f} for {theirs} of full width trained to {best}; the target, at most 0.05 "
                f"below that, is {verdict}. The two are not the same experiment: ours is smaller and trained for "
                "minutes, and a narrow network has fewer neurons to match."
            )


def _few(found: Sequence[Findings]) -> Iterator[str]:
    worse, total = [], 0
    for f in found:
        for method in (*f.methods, CONTROL):
            bare, after = f.get(method, "bare"), f.get(method, "refit", 50)
            if bare is None or after is None:
                continue
            total += 1
            if after < bare - noise(bare):
                worse.append(f"{method} of {f} ({points(bare)} to {points(after)})")
    if worse:
        head = f"With 50 images refit is worse than not refitting in {len(worse)} of {total} rows"
        yield f"{head}: {', '.join(worse)}."
    elif total:
        yield f"With 50 images refit is never worse than not refitting: {total} of {total} rows."


def _repair(found: Sequence[Findings]) -> Iterator[str]:
    worse = [
        f"{m} of {f} ({points(bare)} to {points(after)})"
        for f in found
        for m in f.methods
        if (bare := f.get(m, "bare")) is not None
        and (after := f.get(m, "repair")) is not None
        and after < bare - noise(bare)
    ]
    if worse:
        yield (
            f"REPAIR alone makes some networks worse: {', '.join(worse)}. Where there are no biases the scale alone is "
            "set, and a neuron that lost the inputs it was made for is scaled up with what is wrong in it."
        )


def _cost(seconds: Mapping[str, float], where: str) -> Iterator[str]:
    if seconds:
        each = ", ".join(f"{name} {spent / 60:.1f}" for name, spent in seconds.items())
        yield (
            f"Planning, fusing and recovering all rows took {sum(seconds.values()) / 60:.0f} minutes on the clock "
            f"({where}), in minutes: {each}; training the members and reading the test images come on top. The run is "
            "resumable row by row."
        )
