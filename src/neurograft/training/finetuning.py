"""Train a network further on labelled batches."""

from collections.abc import Sequence
from typing import Any, Unpack

from torch import Tensor, nn
from torch.nn import functional as F

from neurograft.errors import InputError
from neurograft.evaluating.evaluation import IGNORED_LABEL, Metric, check_classes, class_logits
from neurograft.inputs import Batches, first_tensor
from neurograft.preserve_state import keeps_random_state
from neurograft.training.loop import Forward, fit
from neurograft.training.settings import TrainingSettings, takes_settings


@keeps_random_state
@takes_settings
def finetune(model: nn.Module, batches: Batches, **settings: Unpack[TrainingSettings]) -> nn.Module:
    """Train a copy of the network on labelled batches; the network itself stays as it is.

    The defaults are the papers' stochastic gradient descent. With `validation` the best epoch is given back (highest
    accuracy, of equals the lowest loss; the network as it came counts as epoch 0), otherwise the last one.

    Args:
        model: the network; submodules in eval mode inside a network in training mode stay in eval mode.
        batches: a re-iterable of `(inputs, labels)`; a shuffling DataLoader shuffles the same way for the same seed.
        **settings: see `TrainingSettings`.

    Raises:
        InputError: for batches that are empty, unlabelled, one-shot or hold NaN, or a first epoch in which every
            gradient is 0 although the loss is not.
        OptionError: for settings that do not exist or are out of range.
        TrainingDiverged: if the loss becomes NaN or infinite.
        CheckpointError: if `checkpoint` is of another training, or cannot be read or written.

    Example:
        >>> x = torch.tensor([[-1.0], [1.0]])
        >>> batches, history = [(x, torch.tensor([0, 1]))], []
        >>> tuned = finetune(nn.Linear(1, 2), batches, lr=1.0, validation=batches, on_epoch=history.append)
        >>> history[-1].number, history[-1].validation.accuracy
        (10, 1.0)

    Source of the defaults: Öz et al. 2024, arXiv:2502.06849, section 4.
    """
    loss = settings.get("loss")

    def batch_loss(forwards: Sequence[Forward], inputs: Any, labels: Any, where: str) -> Tensor:
        return label_loss(forwards[0](inputs, where), labels, loss, where)

    return fit(model, batches, batch_loss, settings, task={"task": "labels"})


def label_loss(outputs: Any, labels: Any, loss: Metric | None, where: str) -> Tensor:
    """The mean loss of a batch against its labels: `loss`, or the cross-entropy if it is None.

    Raises:
        InputError: if there are no labels, or they are no classes and `loss` is None; `where` begins the message.
    """
    if labels is None:
        raise InputError(f"{where} has no labels; batches must be (inputs, labels) pairs")
    if loss is not None:
        return loss(outputs, labels)
    output = first_tensor(outputs)
    logits = class_logits(output, labels)
    if logits is None:
        raise InputError(
            f"{where}: outputs of shape {tuple(output.shape)} and these labels are no classification; pass loss="
        )
    check_classes(labels, logits.shape[-1], where)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long(), ignore_index=IGNORED_LABEL)
