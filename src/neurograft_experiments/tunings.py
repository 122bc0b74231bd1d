"""How a trial trains a start further: fine-tuned or distilled, learning rate and epoch chosen on validation."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurograft.errors import TrainingDiverged
from neurograft.evaluating.ensemble import Ensemble
from neurograft.inputs import first_tensor
from neurograft.preserve_state import preserve_state
from neurograft.training.distilling import distill, soft_loss
from neurograft.training.finetuning import finetune
from neurograft.training.settings import Epoch
from neurograft_experiments.data import Images, Split
from neurograft_experiments.trial_cache import rank, scores_json
from neurograft_experiments.trials import JSON, Tick

Outputs: TypeAlias = Callable[[nn.Module, Split], Tensor]
LONG = 20
"""Epochs from which on a training's state is written after every epoch."""


@dataclass(frozen=True, eq=False)
class Tuned:
    """A trained network and what validation chose.

    Attributes:
        network: at the chosen epoch.
        lr: the chosen learning rate.
        epoch: the chosen epoch, 0 for the start itself.
        curve: validation accuracy before the first and after each epoch, at the chosen learning rate.
        validation: scores at the chosen epoch.
        seconds: of training at the chosen learning rate.
        search: of training at all learning rates.
        tried: learning rate -> best validation accuracy, None where training diverged.
    """

    network: nn.Module
    lr: float
    epoch: int
    curve: tuple[float, ...]
    validation: JSON
    seconds: float
    search: float
    tried: Mapping[float, float | None]


def outputs_of(teacher: nn.Module, split: Split) -> Tensor:
    """The teacher's outputs for every image, in their order, shape `(samples, classes)`."""
    with preserve_state(teacher), torch.no_grad():
        return torch.cat([first_tensor(teacher(images)) for images, _ in split.batches(512)])


def tuned(
    start: nn.Module,
    settings: JSON,
    images: Images,
    teachers: Sequence[nn.Module],
    *,
    gated: nn.Module | None = None,
    seed: int,
    tick: Tick,
    checkpoint: Path | None = None,
    outputs: Outputs = outputs_of,
) -> Tuned:
    """The start trained at every learning rate of the settings; validation chooses one of the results.

    Args:
        start: the network; it is only read.
        settings: of the tuning.
        images: train on one part, choose on the second.
        teachers: for distilling.
        gated: the ensemble that teaches instead where the settings have `teachers: statistics`.
        seed: of the order of the images.
        tick: called after every epoch.
        checkpoint: a file beside which states of long trainings are kept, from which a killed one goes on.
        outputs: `outputs_of`, or something that remembers what it gave.
    """
    if settings["kind"] == "distill":
        split, train, course = _taught(settings, images, teachers if gated is None else [gated], outputs)
    else:
        split, train, course = images.train, finetune, dict[str, Any]()
    found, tried, files = [], dict[float, float | None](), []
    for lr in settings["lr"]:
        file = None if checkpoint is None else checkpoint.with_stem(f"{checkpoint.stem}-{lr}")
        one = _trained(train, start, {**settings, "lr": [lr]}, images, split, seed, tick, file, **course)
        found.append(one)
        files.append(file)
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
    """The start trained on labels, at one learning rate, on all training images or a part of them."""
    split = images.train if part is None else part
    return _trained(finetune, start, settings, images, split, seed, tick, checkpoint)


def _taught(
    settings: JSON, images: Images, teachers: Sequence[nn.Module], outputs: Outputs
) -> tuple[Split, Callable[..., nn.Module], dict[str, Any]]:
    """Images, training and its options; without augmentation and labels the teachers compute only once."""
    number = settings["teachers"]
    chosen = [teachers[number]] if isinstance(number, int) else list(teachers)
    temperature, soft, hard = (float(settings[name]) for name in ("temperature", "soft", "hard"))
    if hard or settings["augment"]:
        course = {"teachers": chosen, "temperature": temperature, "soft": soft, "hard": hard}
        return images.train, lambda student, batches, **more: distill(student, batches=batches, **more), course

    def loss(given: Any, wanted: Tensor) -> Tensor:
        """Against the teachers' outputs while training, against labels on the validation images."""
        logits = first_tensor(given)
        if wanted.is_floating_point():
            return soft * soft_loss(logits, wanted, temperature)
        return F.cross_entropy(logits, wanted)

    return replace(images.train, labels=outputs(Ensemble(chosen), images.train)), finetune, {"loss": loss}


def _trained(
    train: Callable[..., nn.Module],
    start: nn.Module,
    settings: JSON,
    images: Images,
    split: Split,
    seed: int,
    tick: Tick,
    checkpoint: Path | None,
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
            split.batches(settings["batch"], shuffle=True, augment=settings.get("augment", False)),
            **{name: settings[name] for name in ("epochs", "momentum", "weight_decay", "schedule", "precision")},
            lr=lr,
            validation=images.validation.batches(),
            seed=seed,
            progress=False,
            on_epoch=on_epoch,
            checkpoint=checkpoint if settings["epochs"] >= LONG else None,
            **more,
        )
    except TrainingDiverged:
        network = None
    spent = time.perf_counter() - started
    scores = [epoch.validation for epoch in history if epoch.validation is not None]
    curve = tuple(score.accuracy for score in scores)
    if network is None:  # the start, before the learning rate that was too large
        return Tuned(start, lr, 0, curve, scores_json(scores[0]), spent, spent, {lr: None})
    chosen = max(range(len(scores)), key=lambda number: scores[number].rank)
    best = scores_json(scores[chosen])
    return Tuned(network.eval(), lr, chosen, curve, best, spent, spent, {lr: max(curve)})
