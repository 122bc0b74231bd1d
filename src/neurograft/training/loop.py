"""The one training loop: fine-tuning and distilling differ only in the loss of a batch."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from neurograft.errors import InputError, OptionError, TrainingDiverged
from neurograft.evaluating.evaluation import Measure, Scores, check_inputs, evaluate
from neurograft.inputs import Batches, check_batches, check_model, device_of, split_labels, to_device
from neurograft.untouched import forked_random_state

OptimizerMaker: TypeAlias = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
BatchLoss: TypeAlias = Callable[[nn.Module, Any, Any, str], Tensor]


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one pass over the batches did.

    Attributes:
        number: 0 for the network as it came, before any step, then 1, 2, …
        train_loss: the mean loss over the pass, in the mode the network trains in; nan for epoch 0.
        validation: the scores on the validation batches, None without any.
        seconds: how long the pass and its validation took.
    """

    number: int
    train_loss: float
    validation: Scores | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How to train: what `finetune` and `distill` have in common."""

    epochs: int
    lr: float
    momentum: float
    weight_decay: float
    optimizer: OptimizerMaker | None
    validation: Batches | None
    validation_loss: Measure | None
    patience: int | None
    seed: int
    device: torch.device | str | None
    progress: bool
    on_epoch: Callable[[Epoch], None] | None

    def check(self) -> None:
        """Refuse settings that cannot be meant.

        Raises:
            OptionError: names the setting, its value and what it may be.
        """
        _require(isinstance(self.epochs, int) and self.epochs >= 0, "epochs", self.epochs, "an integer, 0 or more")
        _require(0 < self.lr < math.inf, "lr", self.lr, "a number above 0")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "at least 0 and below 1")
        _require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "0 or more")
        _require(self.patience is None or self.patience >= 1, "patience", self.patience, "None or at least 1 epoch")
        if self.patience is not None and self.validation is None:
            raise OptionError("patience stops on the validation score: pass validation= too")


def train(model: nn.Module, batches: Batches, batch_loss: BatchLoss, course: Course) -> nn.Module:
    """A trained copy of the model: stochastic gradient descent on `batch_loss(model, inputs, labels, where)`.

    With validation batches the best epoch is given back (highest accuracy, of equals the lowest loss; epoch 0, the
    network as it came, included), otherwise the last one.

    Raises:
        InputError: for batches that are empty or can be read only once, or a model without trainable parameters.
        OptionError: for settings out of range.
        TrainingDiverged: if the loss becomes NaN or infinite.
    """
    check_model(model)
    course.check()
    check_batches(batches)
    if course.validation is not None:
        check_batches(course.validation, name="validation")
    trained = copy.deepcopy(model)
    home = device_of(trained)
    device = torch.device(course.device) if course.device is not None else home
    trained.to(device)
    parameters = [p for p in trained.parameters() if p.requires_grad]
    if not parameters:
        raise InputError(f"{type(model).__name__} has no parameter with requires_grad=True: nothing to train")
    modes = {module: module.training for module in trained.modules()}
    if not trained.training:
        trained.train()
    with forked_random_state(trained, batches=batches, seed=course.seed):
        best = _epochs(trained, parameters, batches, batch_loss, course)
    _restore(trained, best)
    for module, mode in modes.items():
        module.training = mode
    for parameter in trained.parameters():
        parameter.grad = None
    return trained.to(home)


def _epochs(
    model: nn.Module, parameters: list[nn.Parameter], batches: Batches, batch_loss: BatchLoss, course: Course
) -> dict[str, Tensor] | None:
    """Run the epochs and give the tensors of the best one, None for the last."""
    optimizer = (
        course.optimizer(parameters)
        if course.optimizer is not None
        else torch.optim.SGD(parameters, lr=course.lr, momentum=course.momentum, weight_decay=course.weight_decay)
    )
    best: dict[str, Tensor] | None = None
    best_score, since_best = (-math.inf, -math.inf), 0
    with _bar(course, batches) as advance:
        for number in range(course.epochs + 1):
            started = time.perf_counter()
            loss = math.nan
            if number > 0:
                loss = _one_pass(model, optimizer, batches, batch_loss, f"epoch {number}", advance)
            scores = _validate(model, course)
            if course.on_epoch is not None:
                course.on_epoch(Epoch(number, loss, scores, time.perf_counter() - started))
            if scores is None:
                continue
            if (score := _rank(scores)) > best_score:
                best, best_score, since_best = _snapshot(model), score, 0
            else:
                since_best += 1
            if course.patience is not None and since_best >= course.patience:
                break
    return best


def _one_pass(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    batch_loss: BatchLoss,
    where: str,
    advance: Callable[[], None],
) -> float:
    device = device_of(model)
    total, count = 0.0, 0
    for number, batch in enumerate(batches):
        inputs, labels = split_labels(batch)
        place = f"{where}, batch {number}"
        check_inputs(inputs, place)
        loss = batch_loss(model, to_device(inputs, device), to_device(labels, device), place)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingDiverged(f"{place}: the loss is {value}; lower lr, or check the network for huge weights")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total, count = total + value, count + 1
        advance()
    if count == 0:
        raise InputError("batches are empty: nothing to train on")
    return total / count


def _validate(model: nn.Module, course: Course) -> Scores | None:
    if course.validation is None:
        return None
    return evaluate(model, course.validation, loss=course.validation_loss)


def _rank(scores: Scores) -> tuple[float, float]:
    """Higher is better: accuracy first where there is one, then the loss."""
    return (scores.accuracy if not math.isnan(scores.accuracy) else 0.0, -scores.loss)


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in _tensors(model)}


def _restore(model: nn.Module, tensors: dict[str, Tensor] | None) -> None:
    if tensors is not None:
        with torch.no_grad():
            for name, tensor in _tensors(model):
                tensor.copy_(tensors[name])


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@contextmanager
def _bar(course: Course, batches: Batches) -> Iterator[Callable[[], None]]:
    """A progress bar on the terminal's error stream; nothing where there is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not (course.progress and console.is_terminal and course.epochs):
        yield lambda: None
        return
    steps = len(batches) if isinstance(batches, Sized) else None
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("training", total=None if steps is None else steps * course.epochs)
        yield lambda: bar.advance(task)


def _require(met: bool, name: str, value: object, allowed: str) -> None:
    if not met:
        raise OptionError(f"{name}={value!r}: must be {allowed}")
