"""Train a student towards its teachers' outputs."""

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurograft.errors import InputError, OptionError
from neurograft.evaluating.ensemble import Ensemble
from neurograft.inputs import Batches, check_model, first_tensor
from neurograft.preserve_state import keeps_random_state
from neurograft.training.finetuning import label_loss
from neurograft.training.loop import Forward, fit
from neurograft.training.settings import TrainingSettings, takes_settings


@keeps_random_state
@takes_settings
def distill(
    student: nn.Module,
    teachers: Sequence[nn.Module] | nn.Module,
    batches: Batches,
    *,
    temperature: float = 2.0,
    soft: float = 1.0,
    hard: float = 0.0,
    dim: int = -1,
    **settings: Unpack[TrainingSettings],
) -> nn.Module:
    """Train a copy of the student to give the teachers' mean output; the student itself stays as it is.

    With s the student's logits and t the mean of the teachers', both of shape `(batch, classes)`, the loss is

        soft · T² · KL(softmax(t/T) ‖ softmax(s/T))  +  hard · loss(s, labels)

    Args:
        student: the network to train, such as a fused one.
        teachers: the members, or one network (an `Ensemble` too); they run in eval mode and come back as they were.
        batches: a re-iterable of inputs, with or without labels; with `hard` above 0 labels are needed.
        temperature: T, how much the teachers' probabilities are flattened.
        soft: weight of the teachers' outputs.
        hard: weight of the labels.
        dim: the dimension of the outputs that counts the classes.
        **settings: see `TrainingSettings`.

    Raises:
        InputError: for batches that are empty, one-shot or hold NaN, or outputs of different shapes.
        OptionError: for settings that do not exist or are out of range.
        TrainingDiverged: if the loss becomes NaN or infinite.
        CheckpointError: if `checkpoint` is of another training, or cannot be read or written.

    Example:
        >>> teacher, student = nn.Linear(1, 2), nn.Linear(1, 2)
        >>> x = torch.tensor([[-1.0], [1.0]])
        >>> taught = distill(student, [teacher], [x], lr=0.5, epochs=200)
        >>> torch.allclose(taught(x).softmax(-1), teacher(x).softmax(-1), atol=1e-3)
        True

    Source: Hinton, Vinyals & Dean 2015, arXiv:1503.02531, section 2.
    """
    check_model(student, "student")
    if temperature <= 0:
        raise OptionError(f"temperature={temperature!r}: must be above 0")
    if soft < 0 or hard < 0 or soft + hard <= 0:
        raise OptionError(f"soft={soft!r} and hard={hard!r} must be 0 or more and not both 0")
    teacher = teachers if isinstance(teachers, nn.Module) else Ensemble(teachers)
    loss = settings.get("loss")

    def batch_loss(forwards: Sequence[Forward], inputs: Any, labels: Any, where: str) -> Tensor:
        student_forward, teacher_forward = forwards
        with torch.no_grad():
            wanted = first_tensor(teacher_forward(inputs, where))
        outputs = student_forward(inputs, where)
        total = soft * soft_loss(first_tensor(outputs), wanted, temperature, dim=dim)
        return total + hard * label_loss(outputs, labels, loss, where) if hard > 0 else total

    task = {"task": "teachers", "temperature": temperature, "soft": soft, "hard": hard, "dim": dim}
    return fit(student, batches, batch_loss, settings, beside=[teacher], task=task)


def soft_loss(logits: Tensor, wanted: Tensor, temperature: float, *, dim: int = -1) -> Tensor:
    """The mean of `T² · KL(softmax(wanted/T) ‖ softmax(logits/T))` over the samples.

    Args:
        logits: the student's, shape `(batch, classes)` (or any, with `dim` counting the classes).
        wanted: the teacher's, of the same shape.
        temperature: T.
        dim: the dimension that counts the classes.

    Raises:
        InputError: if the shapes differ.

    Example:
        >>> z = torch.tensor([[0.0, 1.0]])
        >>> float(soft_loss(z, z + 3, 2.0))
        0.0
    """
    if logits.shape != wanted.shape:
        raise InputError(f"the student gives {tuple(logits.shape)} but its teachers {tuple(wanted.shape)}")
    ours = (logits / temperature).log_softmax(dim)
    theirs = (wanted / temperature).log_softmax(dim)
    return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim).mean()
