"""The honest comparison: every way to one network, on the same budget, beside members, ensemble and "continue"."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from neurograft.applying.application import apply
from neurograft.calibrating.refit import refit
from neurograft.calibrating.report import RecoveryReport, recovery_report
from neurograft.evaluating.ensemble import Ensemble
from neurograft.evaluating.evaluation import Scores, evaluate
from neurograft.experimenting.data import Images
from neurograft.planning.plan import FusionPlan
from neurograft.planning.planner import plan
from neurograft.training.distilling import distill
from neurograft.training.finetuning import finetune
from neurograft.training.loop import Epoch

Recovery: TypeAlias = Literal["none", "refit", "finetune", "distill"]
Tick: TypeAlias = Callable[[str], None]
BEST, ENSEMBLE, CONTINUE = "best member", "ensemble", "continue the best member"


@dataclass(frozen=True, slots=True)
class Budget:
    """How long and how fast members are trained and starts recovered: the same for every row.

    Attributes:
        members: how many networks are trained, with seeds seed, seed+1, …
        member_epochs: epochs of each member.
        recovery_epochs: epochs of fine-tuning, and of distilling.
        member_lr: step size for the members.
        recovery_lr: step size for fine-tuning and distilling.
        batch: samples per step.
        seed: of the first member and of every recovery.
    """

    members: int = 4
    member_epochs: int = 30
    recovery_epochs: int = 20
    member_lr: float = 0.02
    recovery_lr: float = 0.03
    batch: int = 32
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row: a network, how it was recovered, and what it scores.

    Attributes:
        row: "member 0", …, "best member", "ensemble", "continue the best member", or the name of a method.
        recovery: what was done with it.
        curve: validation accuracy before the first and after each epoch of recovery.
        epoch: the epoch that validation chose, 0 for none.
        validation: scores of the chosen network on the validation images.
        test: its scores on the test images, read once.
        seconds: for making (training, fusing) and recovering it.
    """

    row: str
    recovery: Recovery
    curve: tuple[float, ...]
    epoch: int
    validation: Scores
    test: Scores
    seconds: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """All rows for one kind of network, what they were made of, and what refitting each method's network did."""

    outcomes: tuple[Outcome, ...]
    members: tuple[nn.Module, ...]
    plans: dict[str, FusionPlan]
    fused: dict[str, nn.Module]
    reports: dict[str, RecoveryReport]

    def find(self, row: str, recovery: Recovery) -> Outcome | None:
        """The outcome of one row and recovery, None where there is none."""
        return next((o for o in self.outcomes if (o.row, o.recovery) == (row, recovery)), None)


def compare(
    make: Callable[[], nn.Module], images: Images, budget: Budget, *, methods: Sequence[str], tick: Tick
) -> Comparison:
    """Train members, fuse them by every method, recover every start alike, and measure all of it.

    Args:
        make: builds one untrained network; called under the member's seed.
        images: train on one part, choose on the second, read the third once.
        budget: the same for every row.
        methods: names of fusion methods.
        tick: called with what is being done once per epoch.
    """
    lab = _Lab(images, budget, tick)
    trained = [lab.train(make, number) for number in range(budget.members)]
    members = tuple(network for network, _ in trained)
    outcomes = [
        lab.measure(f"member {number}", network, seconds=seconds) for number, (network, seconds) in enumerate(trained)
    ]
    best = max(range(len(members)), key=lambda number: rank(outcomes[number].validation))
    outcomes.append(lab.measure(BEST, members[best], seconds=trained[best][1]))
    outcomes.append(lab.measure(ENSEMBLE, Ensemble(members), seconds=sum(seconds for _, seconds in trained)))
    starts: dict[str, tuple[nn.Module, float]] = {CONTINUE: (members[best], 0.0)}
    plans, reports, calibration = {}, {}, images.train.batches()
    for method in methods:
        started = time.perf_counter()
        plans[method] = plan(members, images.train.examples(), method, calibration=calibration, seed=budget.seed)
        starts[method] = apply(plans[method], members), time.perf_counter() - started
    for row, (network, seconds) in starts.items():
        if row in plans:
            outcomes.append(lab.measure(row, network, seconds=seconds))
            refitted = time.perf_counter()
            better = refit(network, plans[row], members, calibration, seed=budget.seed)
            seconds_refit = seconds + time.perf_counter() - refitted
            outcomes.append(lab.measure(row, better, recovery="refit", seconds=seconds_refit))
            report = recovery_report(better)
            assert report is not None
            reports[row] = report
        outcomes.append(lab.recover(row, network, "finetune", members, seconds))
        outcomes.append(lab.recover(row, network, "distill", members, seconds))
    fused = {method: starts[method][0] for method in plans}
    return Comparison(tuple(outcomes), members, plans, fused, reports)


def rank(scores: Scores) -> tuple[float, float]:
    """What "better" means when validation chooses: accuracy, then loss."""
    return scores.accuracy, -scores.loss


@dataclass(frozen=True, eq=False)
class _Lab:
    images: Images
    budget: Budget
    tick: Tick

    def train(self, make: Callable[[], nn.Module], number: int) -> tuple[nn.Module, float]:
        started = time.perf_counter()
        seed = self.budget.seed + number
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = make()
        label = f"training member {number + 1} of {self.budget.members}"
        trained = finetune(
            network,
            self.images.train.batches(self.budget.batch, shuffle=True),
            epochs=self.budget.member_epochs,
            lr=self.budget.member_lr,
            validation=self.images.validation.batches(),
            seed=seed,
            progress=False,
            on_epoch=lambda epoch: self.tick(label) if epoch.number else None,
        )
        return trained.eval(), time.perf_counter() - started

    def measure(self, row: str, network: nn.Module, *, seconds: float, recovery: Recovery = "none") -> Outcome:
        validation = evaluate(network, self.images.validation.batches())
        test = evaluate(network, self.images.test.batches())
        return Outcome(row, recovery, (validation.accuracy,), 0, validation, test, seconds)

    def recover(
        self, row: str, network: nn.Module, recovery: Recovery, members: Sequence[nn.Module], seconds: float
    ) -> Outcome:
        started = time.perf_counter()
        history: list[Epoch] = []
        label = f"{'fine-tuning' if recovery == 'finetune' else 'distilling'} {row}"

        def on_epoch(epoch: Epoch) -> None:
            history.append(epoch)
            if epoch.number:
                self.tick(label)

        batches = self.images.train.batches(self.budget.batch, shuffle=True)
        settings: dict[str, Any] = {
            "epochs": self.budget.recovery_epochs,
            "lr": self.budget.recovery_lr,
            "validation": self.images.validation.batches(),
            "seed": self.budget.seed,
            "progress": False,
            "on_epoch": on_epoch,
        }
        if recovery == "finetune":
            recovered = finetune(network, batches, **settings)
        else:
            recovered = distill(network, members, batches, **settings)
        curve = tuple(epoch.validation.accuracy for epoch in history if epoch.validation is not None)
        scores = [epoch.validation for epoch in history if epoch.validation is not None]
        chosen = max(range(len(scores)), key=lambda number: rank(scores[number]))
        test = evaluate(recovered, self.images.test.batches())
        spent = seconds + time.perf_counter() - started
        return Outcome(row, recovery, curve, chosen, scores[chosen], test, spent)


def noise(accuracy: float, samples: int) -> float:
    """Two standard errors of the difference of two accuracies near `accuracy`, each on `samples` samples.

    Example:
        >>> round(noise(0.95, 1000), 4)
        0.0195
    """
    return 2 * math.sqrt(2 * accuracy * (1 - accuracy) / samples)
