"""Train a network further on labelled batches."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurograft.errors import InputError
from neurograft.evaluating.evaluation import IGNORED_LABEL, Measure, check_classes, class_logits
from neurograft.inputs import Batches, call_on_batch, first_tensor
from neurograft.training.loop import Course, Epoch, OptimizerMaker, train


def finetune(
    model: nn.Module,
    batches: Batches,
    *,
    epochs: int = 10,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    optimizer: OptimizerMaker | None = None,
    loss: Measure | None = None,
    validation: Batches | None = None,
    patience: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> nn.Module:
    """Train a copy of the network on labelled batches; the network itself stays as it is.

    The defaults are the papers' stochastic gradient descent. With `validation` the best epoch is given back (highest
    accuracy, of equals the lowest loss; the network as it came counts as epoch 0), otherwise the last one.

    Args:
        model: the network; submodules in eval mode inside a network in training mode stay in eval mode.
        batches: a re-iterable of `(inputs, labels)`; a shuffling DataLoader shuffles the same way for the same seed.
        epochs: passes over the batches.
        lr: step size.
        momentum: share of the last step that is repeated.
        weight_decay: L2 penalty.
        optimizer: makes another optimizer from the parameters, instead of the four settings above it names.
        loss: `loss(outputs, labels)`, a mean over the batch, instead of the cross-entropy.
        validation: labelled batches that choose the epoch.
        patience: stop after so many epochs without a better validation score.
        seed: of everything random inside; the caller's random state is not touched.
        device: where to train; the result comes back on the network's own device.
        progress: show a bar where there is a terminal.
        on_epoch: called with an `Epoch` after each pass and once before the first; `history.append` keeps them.

    Raises:
        InputError: for batches that are empty, unlabelled, one-shot or hold NaN.
        OptionError: for settings out of range.
        TrainingDiverged: if the loss becomes NaN or infinite.

    Example:
        >>> x = torch.tensor([[-1.0], [1.0]])
        >>> batches, history = [(x, torch.tensor([0, 1]))], []
        >>> tuned = finetune(nn.Linear(1, 2), batches, lr=1.0, validation=batches, on_epoch=history.append)
        >>> history[-1].number, history[-1].validation.accuracy
        (10, 1.0)

    Source of the defaults: Öz et al. 2024, arXiv:2502.06849, section 4.
    """
    course = Course(
        epochs=epochs,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        optimizer=optimizer,
        validation=validation,
        validation_loss=loss,
        patience=patience,
        seed=seed,
        device=device,
        progress=progress,
        on_epoch=on_epoch,
    )

    def batch_loss(trained: nn.Module, inputs: Any, labels: Any, where: str) -> Tensor:
        return label_loss(call_on_batch(trained, inputs, where), labels, loss, where)

    return train(model, batches, batch_loss, course)


def label_loss(outputs: Any, labels: Any, loss: Measure | None, where: str) -> Tensor:
    """The mean loss of a batch against its labels: `loss`, or the cross-entropy if it is None.

    Raises:
        InputError: if there are no labels, or they are no classes and `loss` is None; `where` begins the message.
    """
    if labels is None:
        raise InputError(f"{where} has no labels; batches must be (inputs, labels) pairs")
    if loss is not None:
        return loss(outputs, labels)
    answer = first_tensor(outputs)
    logits = class_logits(answer, labels)
    if logits is None:
        raise InputError(
            f"{where}: outputs of shape {tuple(answer.shape)} and these labels are no classification; pass loss="
        )
    check_classes(labels, logits.shape[-1], where)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long(), ignore_index=IGNORED_LABEL)
