"""The one training loop: all that trains differs only in the loss of a batch."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from neurograft.errors import CheckpointError, InputError, TrainingDiverged
from neurograft.escaping import named
from neurograft.evaluating.evaluation import check_inputs
from neurograft.inputs import Batches, check_batches, check_model, device_of, split_labels, to_device
from neurograft.preserve_state import (
    copy_of,
    forked_random_state,
    preserve_state,
    random_state,
    seed_all,
    set_random_state,
)
from neurograft.training.curves import bar, tracked
from neurograft.training.learning_rates import factor_of
from neurograft.training.precision import InPrecision, check_precision, scaler_of
from neurograft.training.processes import Processes
from neurograft.training.resuming import (
    check_content,
    check_kept,
    copied,
    fingerprint,
    identity_of,
    put_back,
    read,
    stored_history,
    tensors_of,
    write,
)
from neurograft.training.settings import Epoch as Epoch
from neurograft.training.settings import TrainingSettings, settled

Forward: TypeAlias = Callable[[Any, str], Any]
"""A network, called with the inputs of a batch and the words that begin an error message."""
BatchLoss: TypeAlias = Callable[[Sequence[Forward], Any, Any, str], Tensor]
"""The loss of a batch, from the network and those beside it, the inputs, the labels (None without any) and the words
that begin an error message."""

UNREACHED = 1e-6
"""A mean loss above this is not yet at its end, so that gradients of exactly 0 cannot be right."""


@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    model: nn.Module,
    batches: Batches,
    batch_loss: BatchLoss,
    given: Mapping[str, Any],
    *,
    beside: Sequence[nn.Module] = (),
    task: Mapping[str, object],
) -> nn.Module:
    """A trained copy of the model: gradient descent on `batch_loss(forwards, inputs, labels, where)`.

    With validation batches the best epoch is given back (highest accuracy, of equals the lowest loss; epoch 0, the
    network as it came, included), otherwise the last one.

    Args:
        model: the network; it is only read.
        batches: a re-iterable of batches.
        batch_loss: what a batch costs.
        given: the settings, as `TrainingSettings` has them; missing ones take their defaults.
        beside: networks that `batch_loss` runs: in eval mode and where the training is meanwhile, then as before.
        task: what decides `batch_loss`, to distinguish one training's checkpoint from another's.

    Raises:
        CheckpointError: if the checkpoint is of another training, or cannot be read or written.
        InputError: for batches that are empty or can be read only once, a model without trainable parameters, or a
            first epoch in which every gradient is 0 although the loss is not.
        OptionError: for settings out of range.
        TrainingDiverged: if the loss becomes NaN or infinite.
    """
    check_model(model)
    settings = settled(given)
    check_batches(batches)
    if settings["validation"] is not None:
        check_batches(settings["validation"], name="validation")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"{type(model).__name__} has no parameter with requires_grad=True: nothing to train")
    trained = copy_of(model)
    home = device_of(trained)
    modes = {module: module.training for module in trained.modules()}
    if not trained.training:
        trained.train()
    processes = Processes(settings, home)
    check_precision(settings["precision"], processes.device)
    with ExitStack() as stack:
        stack.enter_context(_placed(beside, processes.device))
        trained.to(processes.device)
        stack.enter_context(forked_random_state(trained, batches=batches, seed=settings["seed"]))
        shared = stack.enter_context(processes.shared(batches))
        run = _TrainingRun(trained, beside, batches, shared, batch_loss, settings, processes)
        if settings["checkpoint"] is not None:
            described = {**task, **{f"network {i} beside": fingerprint(other) for i, other in enumerate(beside)}}
            run.keep(Path(settings["checkpoint"]), identity_of(model, batches, settings, processes.count, described))
        best = run.best_of_all()
    if best is not None:
        put_back(trained, best)
    for module, mode in modes.items():
        module.training = mode
    for parameter in trained.parameters():
        parameter.grad = None
    return trained.to(home)


class _TrainingRun:
    """One training: the network, its optimizer, and how far they are."""

    def __init__(
        self,
        network: nn.Module,
        beside: Sequence[nn.Module],
        batches: Batches,
        shared: Batches,
        batch_loss: BatchLoss,
        settings: TrainingSettings,
        processes: Processes,
    ) -> None:
        self.network, self.batches, self.shared, self.batch_loss = network, batches, shared, batch_loss
        self.settings, self.processes = settings, processes
        networks = [InPrecision(each, settings["precision"], processes.device) for each in (network, *beside)]
        self.forwards = [processes.prepared(networks[0]), *networks[1:]]
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = _optimizer(self.parameters, settings)
        self.scaler = scaler_of(settings["precision"], processes.device)
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] | None = None
        self.best_score, self.since_best = (-math.inf, -math.inf), 0
        self.moved = False  # whether any gradient was not 0
        self.random: Mapping[str, Any] | None = None
        self.save: Callable[[], None] = lambda: None

    def keep(self, path: Path, identity: Mapping[str, str]) -> None:
        """Go on from a checkpoint if there is one, and write it after every epoch."""
        found = self.processes.from_first(lambda: read(path, identity))
        if found is not None:
            self._go_on(found)
        if self.processes.index == 0:
            self.save = lambda: write(path, identity, self._content())

    def best_of_all(self) -> dict[str, Tensor] | None:
        """Run the epochs and give the tensors of the best one, None for the last."""
        patience, done = self.settings["patience"], max(len(self.history) - 1, 0)
        schedule = _schedule(self.optimizer, self.settings, done)
        with ExitStack() as stack:
            first = self.processes.index == 0
            advance = stack.enter_context(bar(self.settings, self.shared, done, first=first))
            track = stack.enter_context(tracked(self.settings, first=first))
            self._start_random_state()  # now that all is imported: some modules draw numbers as they are
            for number in range(len(self.history), self.settings["epochs"] + 1):
                if patience is not None and self.since_best >= patience:
                    break
                self._epoch(number, schedule, advance, track)
                self.save()
        return self.best

    def _epoch(
        self,
        number: int,
        schedule: LRScheduler | None,
        advance: Callable[[], None],
        track: Callable[[Epoch, float], None],
    ) -> None:
        started = time.perf_counter()
        loss, scores, validation = math.nan, None, self.settings["validation"]
        if number > 0:
            self.processes.start_epoch(number)
            loss = self._one_pass(number, advance)
            self.processes.share_buffers(self.network)
            if schedule is not None:
                schedule.step()
        if validation is not None:
            scores = self.processes.evaluate(self.network, validation, self.settings["loss"])
        epoch = Epoch(number, loss, scores, time.perf_counter() - started)
        self.history.append(epoch)
        if scores is not None:
            if (score := scores.rank) > self.best_score:
                self.best, self.best_score, self.since_best = copied(tensors_of(self.network)), score, 0
            else:
                self.since_best += 1
        track(epoch, self.optimizer.param_groups[0]["lr"])
        if self.settings["on_epoch"] is not None:
            self.settings["on_epoch"](epoch)

    def _content(self) -> dict[str, Any]:
        return {
            "network": copied(tensors_of(self.network)),
            "best": self.best,
            "best_score": self.best_score,
            "since_best": self.since_best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": [asdict(epoch) for epoch in self.history],
            "random": random_state(self.processes.gpus, self.batches),
        }

    def _go_on(self, found: Mapping[str, Any]) -> None:
        check_content(found, self._content())
        try:
            history = stored_history(found["history"])
            check_kept(found["optimizer"], self.parameters)
            set_random_state(found["random"], self.batches)  # it is set again when all is imported
            self.optimizer.load_state_dict(found["optimizer"])
            self.scaler.load_state_dict(found["scaler"])
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {named(str(error))}"
            raise CheckpointError(f"the stored training does not fit: {reason}; delete it to start anew") from error
        put_back(self.network, found["network"])
        device = self.processes.device
        self.best = None if found["best"] is None else {name: t.to(device) for name, t in found["best"].items()}
        self.best_score, self.since_best = found["best_score"], found["since_best"]
        for epoch in history:
            self.history.append(epoch)
            if self.settings["on_epoch"] is not None:
                self.settings["on_epoch"](epoch)
        self.random = found["random"]

    def _start_random_state(self) -> None:
        if self.random is not None:
            set_random_state(self.random, self.batches)
        else:
            seed_all(self.settings["seed"], self.processes.gpus)

    def _one_pass(self, epoch: int, advance: Callable[[], None]) -> float:
        device = self.processes.device
        total, count = 0.0, 0
        for number, batch in enumerate(self.shared):
            inputs, labels = split_labels(batch)
            place = f"epoch {epoch}, batch {number}"
            check_inputs(inputs, place)
            loss = self.batch_loss(self.forwards, to_device(inputs, device), to_device(labels, device), place)
            value = self.processes.mean(loss)
            if not math.isfinite(value):
                raise TrainingDiverged(f"{place}: the loss is {value}; lower lr, or check the network for huge weights")
            self.optimizer.zero_grad()
            self.processes.backward(self.scaler.scale(loss))
            self.moved = self.moved or epoch > 1 or any(_moves(parameter.grad) for parameter in self.parameters)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            total, count = total + value, count + 1
            advance()
        if count == 0:
            raise InputError("batches are empty: nothing to train on")
        if not self.moved and total / count > UNREACHED:
            raise InputError(
                f"the gradient of every parameter is 0 in all of epoch {epoch}, at a loss of {total / count:.3g}: "
                "training cannot change the network; check that the loss depends on what the network computes"
            )
        return total / count


def _moves(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.count_nonzero())


def _optimizer(parameters: list[nn.Parameter], settings: TrainingSettings) -> torch.optim.Optimizer:
    if settings["optimizer"] is not None:
        return settings["optimizer"](parameters)
    return torch.optim.SGD(
        parameters, lr=settings["lr"], momentum=settings["momentum"], weight_decay=settings["weight_decay"]
    )


def _schedule(optimizer: torch.optim.Optimizer, settings: TrainingSettings, done: int) -> LRScheduler | None:
    """The schedule after so many epochs; PyTorch finds the first learning rate in the optimizer."""
    if settings["schedule"] == "constant":
        return None
    return LambdaLR(optimizer, factor_of(settings["schedule"], settings["epochs"]), last_epoch=done - 1)


@contextmanager
def _placed(models: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Have networks on a device and in eval mode for a while."""
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(preserve_state(model))
            stack.callback(model.to, device_of(model))
            model.to(device)
        yield
