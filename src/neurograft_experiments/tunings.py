"""How a trial trains a start further: fine-tuned or distilled, the step size and the epoch chosen on validation."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurograft.errors import TrainingDiverged
from neurograft.evaluating.ensemble import Ensemble
from neurograft.inputs import first_tensor
from neurograft.preserve_state import preserve_state
from neurograft.training.distilling import distill, soft_loss
from neurograft.training.finetuning import finetune
from neurograft.training.loop import Epoch
from neurograft_experiments.data import Images, Split, TensorBatches
from neurograft_experiments.trial_cache import Tick, rank, scores_json
from neurograft_experiments.trials import JSON

LONG = 20
"""Epochs from which on a training's state is written after every epoch."""


@dataclass(frozen=True, eq=False)
class Tuned:
    """A trained network and what validation chose.

    Attributes:
        network: at the chosen epoch.
        lr: the chosen step size.
        epoch: the chosen epoch, 0 for the start itself.
        curve: validation accuracy before the first and after each epoch, at the chosen step size.
        validation: scores at the chosen epoch.
        seconds: of training at the chosen step size.
        search: of training at all step sizes.
        tried: step size -> best validation accuracy, None where training diverged.
    """

    network: nn.Module
    lr: float
    epoch: int
    curve: tuple[float, ...]
    validation: JSON
    seconds: float
    search: float
    tried: Mapping[float, float | None]


def tuned(
    start: nn.Module,
    settings: JSON,
    images: Images,
    teachers: Sequence[nn.Module],
    *,
    seed: int,
    tick: Tick,
    checkpoint: Path | None = None,
    ask: Callable[[nn.Module, Split], Tensor] | None = None,
) -> Tuned:
    """The start trained at every step size of the settings; validation chooses one of the results.

    Args:
        start: the network; it is only read.
        settings: of the tuning.
        images: train on one part, choose on the second.
        teachers: for distilling.
        seed: of the order of the images.
        tick: called after every epoch.
        checkpoint: a file beside which states of long trainings are kept, from which a killed one goes on.
        ask: `answers_of`, or something that remembers what it gave.
    """
    found: list[Tuned] = []
    tried: dict[float, float | None] = {}
    kind: Callable[..., Tuned] = (
        finetuned if settings["kind"] == "finetune" else _Distiller(teachers, settings, images, ask)
    )
    files = [None if checkpoint is None else checkpoint.with_stem(f"{checkpoint.stem}-{lr}") for lr in settings["lr"]]
    for lr, file in zip(settings["lr"], files, strict=True):
        one = kind(start, {**settings, "lr": [lr]}, images, seed=seed, tick=tick, checkpoint=file)
        found.append(one)
        tried |= one.tried
    for file in files:
        if file is not None:
            file.unlink(missing_ok=True)
    best = max(found, key=lambda one: rank(one.validation))
    return replace(best, search=sum(one.seconds for one in found), tried=tried)


def finetuned(
    start: nn.Module,
    settings: JSON,
    images: Images,
    *,
    seed: int,
    tick: Tick,
    part: Split | None = None,
    checkpoint: Path | None = None,
) -> Tuned:
    """The start trained on labels, at one step size, on all training images or a part of them."""
    batches = _batches(images.train if part is None else part, settings)
    return _trained(finetune, start, batches, settings, images, seed, tick, **_kept(checkpoint, settings))


def _kept(checkpoint: Path | None, settings: JSON) -> dict[str, Any]:
    """Where a training that is long enough to be gone on with keeps its state."""
    if checkpoint is None or settings["epochs"] < LONG:
        return {}
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    return {"checkpoint": checkpoint}


def _batches(split: Split, settings: JSON) -> TensorBatches:
    return split.batches(settings["batch"], shuffle=True, augment=settings.get("augment", False))


class _Distiller:
    """Trains on what the teachers answer; without augmentation and labels they are asked once, not in every step."""

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        settings: JSON,
        images: Images,
        ask: Callable[[nn.Module, Split], Tensor] | None,
    ) -> None:
        chosen = settings["teachers"]
        self.teachers = list(teachers) if chosen == "members" else [teachers[chosen]]
        self.temperature, self.soft = float(settings["temperature"]), float(settings["soft"])
        remembered = settings["hard"] == 0 and not settings["augment"]
        self.answers = (ask or answers_of)(Ensemble(self.teachers), images.train) if remembered else None

    def __call__(
        self, start: nn.Module, settings: JSON, images: Images, *, seed: int, tick: Tick, checkpoint: Path | None
    ) -> Tuned:
        kept = _kept(checkpoint, settings)
        split = images.train if self.answers is None else replace(images.train, labels=self.answers)
        batches = _batches(split, settings)
        if self.answers is not None:
            return _trained(finetune, start, batches, settings, images, seed, tick, loss=self._loss, **kept)

        def taught(student: nn.Module, given: Any, **course: Any) -> nn.Module:
            return distill(
                student,
                self.teachers,
                given,
                temperature=self.temperature,
                soft=self.soft,
                hard=settings["hard"],
                **course,
            )

        return _trained(taught, start, batches, settings, images, seed, tick, **kept)

    def _loss(self, outputs: Any, wanted: Tensor) -> Tensor:
        """Against answers while training, against labels on the validation images."""
        logits = first_tensor(outputs)
        if wanted.is_floating_point():
            return self.soft * soft_loss(logits, wanted, self.temperature)
        return F.cross_entropy(logits, wanted)


def answers_of(teacher: nn.Module, split: Split) -> Tensor:
    """What the teacher says to every image, in their order."""
    with preserve_state(teacher), torch.no_grad():
        return torch.cat([first_tensor(teacher(images)) for images, _ in split.batches(512)])


def _trained(
    train: Callable[..., nn.Module],
    start: nn.Module,
    batches: Any,
    settings: JSON,
    images: Images,
    seed: int,
    tick: Tick,
    **more: Any,
) -> Tuned:
    started = time.perf_counter()
    history: list[Epoch] = []

    def on_epoch(epoch: Epoch) -> None:
        history.append(epoch)
        if epoch.number:
            tick(f"epoch {epoch.number} of {settings['epochs']}")

    lr = settings["lr"][0]
    try:
        network = train(
            start,
            batches,
            epochs=settings["epochs"],
            lr=lr,
            momentum=settings["momentum"],
            weight_decay=settings["weight_decay"],
            schedule=settings["schedule"],
            precision=settings["precision"],
            validation=images.validation.batches(),
            seed=seed,
            progress=False,
            on_epoch=on_epoch,
            **more,
        )
    except TrainingDiverged:
        network = None
    spent = time.perf_counter() - started
    scores = [epoch.validation for epoch in history if epoch.validation is not None]
    curve = tuple(score.accuracy for score in scores)
    if network is None:  # the start, before the step size that was too large
        lost = scores_json(scores[0])
        return Tuned(start, lr, 0, curve, lost, spent, spent, {lr: None})
    chosen = max(range(len(scores)), key=lambda number: scores[number].rank)
    best = scores_json(scores[chosen])
    return Tuned(network.eval(), lr, chosen, curve, best, spent, spent, {lr: max(curve)})
