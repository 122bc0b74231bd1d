"""The search: all starts at once, then trained a little, and the best of them further, within the budget."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, cast

from torch import nn

from neurograft.advising.recipes import BEST_MEMBER, WORDS, Candidate, Recipe, Starts
from neurograft.errors import NeurograftError, TrainingDiverged
from neurograft.evaluating.evaluation import evaluate
from neurograft.fusing import Fusion
from neurograft.inputs import Batches, Inputs
from neurograft.members.members import Members
from neurograft.training.distilling import distill
from neurograft.training.finetuning import finetune
from neurograft.training.loop import Epoch

StageProgress: TypeAlias = Callable[[str], None]
TrainingKind: TypeAlias = Literal["finetune", "distill"]
KEPT = 3
"""Of so many candidates one is trained on."""


@dataclass(frozen=True, eq=False)
class Race:
    """What all candidates have in common.

    Attributes:
        members: the trained networks.
        best: the number of the one that validation prefers.
        train: labelled batches.
        validation: labelled batches that choose.
        temperature: of distilling.
        seed: of every training.
        device: where to train, None for where the members are.
        progress: called with what is being done.
    """

    members: Sequence[nn.Module]
    best: int
    train: Batches
    validation: Batches
    temperature: float
    seed: int
    device: str | None
    progress: StageProgress

    def starts(
        self, example: Inputs, methods: Sequence[str], recoveries: Sequence[str], calibration: Batches
    ) -> Starts:
        """The best member, and every method with every recovery; the reason of each that cannot fuse these members."""
        found = [self._measured(Recipe(BEST_MEMBER), self.members[self.best], 0.0)]
        refused: dict[str, str] = {}
        try:
            members = Members(self.members, example, calibration=calibration)
        except NeurograftError as error:
            return Starts(tuple(found), dict.fromkeys(methods, str(error)))
        for method in methods:
            self.progress(f"fusing by {method}")
            began = time.perf_counter()
            try:
                fusion = Fusion.of(members, method, seed=self.seed)
                seconds = time.perf_counter() - began
                for recovery in recoveries:
                    began = time.perf_counter()
                    how = None if recovery == "none" else cast(Any, recovery)
                    network = fusion.recovered(how).model
                    spent = seconds + time.perf_counter() - began
                    found.append(self._measured(Recipe(method, recovery), network, spent))
            except NeurograftError as error:
                refused[method] = str(error)
        return Starts(tuple(found), refused)

    def _measured(self, recipe: Recipe, network: nn.Module, seconds: float) -> Candidate:
        scores = evaluate(network, self.validation)
        return Candidate(recipe, network, scores, (scores.accuracy,), seconds=seconds)

    def train_further(self, candidate: Candidate, epochs: int) -> Candidate:
        """The candidate trained until it has seen so many epochs, from the best network it has been so far."""
        more = epochs - candidate.epochs
        if more <= 0 or candidate.diverged:
            return candidate
        recipe, history = candidate.recipe, list[Epoch]()
        assert recipe.lr is not None
        self.progress(f"{recipe.name}: epochs {candidate.epochs + 1} to {epochs}")
        settings: dict[str, Any] = {
            "epochs": more,
            "lr": recipe.lr,
            "validation": self.validation,
            "seed": self.seed + candidate.epochs,  # a new order of the samples in every round
            "device": self.device,
            "progress": False,
            "on_epoch": history.append,
        }
        began = time.perf_counter()
        try:
            if recipe.tuning == "finetune":
                network = finetune(candidate.network, self.train, **settings)
            else:
                network = distill(candidate.network, self.members, self.train, temperature=self.temperature, **settings)
        except TrainingDiverged:
            spent = candidate.seconds + time.perf_counter() - began
            return replace(candidate, diverged=True, seconds=spent)
        scores = [epoch.validation for epoch in history if epoch.validation is not None]
        chosen = max(range(len(scores)), key=lambda number: scores[number].rank)
        return replace(
            candidate,
            network=network.eval(),
            validation=scores[chosen],
            curve=candidate.curve + tuple(score.accuracy for score in scores[1:]),
            epochs=epochs,
            epoch=candidate.epochs + chosen if chosen else candidate.epoch,
            seconds=candidate.seconds + time.perf_counter() - began,
        )


def rounds_of(epochs: int) -> tuple[int, ...]:
    """After how many epochs candidates are sorted out: a ninth, a third and all of the budget.

    Example:
        >>> rounds_of(20), rounds_of(3), rounds_of(0)
        ((3, 7, 20), (1, 3), ())
    """
    steps = (math.ceil(epochs / KEPT**2), math.ceil(epochs / KEPT), epochs)
    return tuple(dict.fromkeys(step for step in steps if step > 0))


def epochs_in_all(candidates: int, rivals: int, epochs: int) -> int:
    """Epochs that the whole search trains.

    Example:
        >>> epochs_in_all(9, 2, 9)  # 11 for 1 epoch, then 3 + 2 for 2 more, then 1 + 2 for 6 more
        39
    """
    total, before, left = 0, 0, candidates
    for step in rounds_of(epochs):
        total += (left + rivals) * (step - before)
        before, left = step, math.ceil(left / KEPT)
    return total


def affordable(seconds: float, seconds_per_epoch: float, candidates: int, rivals: int) -> int:
    """The largest budget of epochs whose whole search fits into so many seconds, 1 at least.

    Example:
        >>> affordable(39.0, 1.0, 9, 2)
        9
    """
    epochs = 1
    while epochs_in_all(candidates, rivals, epochs + 1) * seconds_per_epoch <= seconds and epochs < 10000:
        epochs += 1
    return epochs


def halving(race: Race, candidates: Sequence[Candidate], rivals: Sequence[Candidate], epochs: int) -> list[Candidate]:
    """Train all for a ninth of the budget, the best third of the candidates for a third, a third of those for all.

    Rivals stay in until the end, but of their learning rates only the best.

    Returns:
        Everything that was trained, as far as it came; what was trained longest first.
    """
    left, kept = list(candidates), list(rivals)
    out: list[Candidate] = []
    for number, step in enumerate(rounds_of(epochs)):
        if number:
            left, lost = _best(left, math.ceil(len(left) / KEPT))
            out += lost
            kept, lost = _one_per_tuning(kept)
            out += lost
        left = [race.train_further(candidate, step) for candidate in left]
        kept = [race.train_further(candidate, step) for candidate in kept]
    return sorted([*left, *kept, *out], key=lambda c: (-c.epochs, *(-value for value in c.rank)))


def _best(candidates: Sequence[Candidate], count: int) -> tuple[list[Candidate], list[Candidate]]:
    ordered = sorted(candidates, key=lambda c: (not c.diverged, *c.rank), reverse=True)
    return ordered[:count], ordered[count:]


def _one_per_tuning(rivals: Sequence[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    kept: list[Candidate] = []
    lost: list[Candidate] = []
    for tuning in WORDS:
        best, rest = _best([rival for rival in rivals if rival.recipe.tuning == tuning], 1)
        kept += best
        lost += rest
    return kept, lost
