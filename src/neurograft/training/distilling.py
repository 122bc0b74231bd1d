"""Train a student towards its teachers' outputs."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurograft.errors import InputError, OptionError, closest
from neurograft.evaluating.ensemble import Ensemble
from neurograft.inputs import Batches, check_model, first_tensor
from neurograft.preserve_state import keeps_random_state
from neurograft.training.finetuning import label_loss
from neurograft.training.loop import Forward, fit
from neurograft.training.settings import TrainingSettings, takes_settings

Taught: TypeAlias = Literal["logits", "probabilities", "values"]
"""What the teachers' outputs are."""


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
    outputs: Taught | None = None,
    **settings: Unpack[TrainingSettings],
) -> nn.Module:
    """Train a copy of the student to give the teachers' mean output; the student itself stays as it is.

    With s the student's outputs and t the mean of the teachers', both of shape `(batch, classes)`, the loss is

        soft · T² · KL(p ‖ softmax(s/T))  +  hard · loss(s, labels),     p = softmax(t/T)

    for logits. Teachers that return probabilities, as `Ensemble(models, vote="probabilities")` does, have log t in
    place of t: p ∝ t^(1/T). Of networks that return several tensors the first one is taught. For values (regression),
    of any shape, it is

        soft · mean (s − t)²  +  hard · mean (s − labels)²

    where a given `loss=` stands in place of both means, called with the teachers' outputs as labels.

    Args:
        student: the network to train, such as a fused one.
        teachers: the members, or one network (an `Ensemble` too); they run in eval mode and come back as they were.
        batches: a re-iterable of inputs, with or without labels; with `hard` above 0 labels are needed.
        temperature: T, how much the teachers' probabilities are flattened.
        soft: weight of the teachers' outputs.
        hard: weight of the labels.
        dim: the dimension of the outputs that counts the classes.
        outputs: what the teachers return: "logits", "probabilities" or "values". None decides by the first batch: the
            votes of an `Ensemble` are probabilities, a single class is a value, and so are outputs beside labels of
            the same shape that are no probabilities; the rest are logits.
        **settings: see `TrainingSettings`.

    Raises:
        InputError: for batches that are empty, one-shot or hold NaN, outputs of different shapes, probabilities
            below 0, logits of one class, or a first epoch in which no gradient could change the student.
        OptionError: for settings that do not exist or are out of range.
        TrainingDiverged: if the loss becomes NaN or infinite.
        CheckpointError: if `checkpoint` is of another training, or cannot be read or written.

    Example:
        >>> teacher, student = nn.Linear(1, 2), nn.Linear(1, 2)
        >>> x = torch.tensor([[-1.0], [1.0]])
        >>> taught = distill(student, [teacher], [x], lr=0.5, epochs=200)
        >>> torch.allclose(taught(x).softmax(-1), teacher(x).softmax(-1), atol=1e-3)
        True
        >>> teacher, student = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> taught = distill(student, [teacher], [x], lr=0.1, epochs=200)
        >>> torch.allclose(taught(x), teacher(x), atol=1e-3)
        True

    Source: Hinton, Vinyals & Dean 2015, arXiv:1503.02531, section 2.
    """
    check_model(student, "student")
    if temperature <= 0:
        raise OptionError(f"temperature={temperature!r}: must be above 0")
    if soft < 0 or hard < 0 or soft + hard <= 0:
        raise OptionError(f"soft={soft!r} and hard={hard!r} must be 0 or more and not both 0")
    if outputs is not None and outputs not in get_args(Taught):
        raise OptionError(f"unknown outputs {outputs!r}; {closest(str(outputs), get_args(Taught))}")
    teacher = teachers if isinstance(teachers, nn.Module) else Ensemble(teachers)
    loss, known = settings.get("loss"), outputs

    def batch_loss(forwards: Sequence[Forward], inputs: Any, labels: Any, where: str) -> Tensor:
        nonlocal known
        student_forward, teacher_forward = forwards
        with torch.no_grad():
            taught = teacher_forward(inputs, where)
        wanted = first_tensor(taught)
        known = known or _kind_of(teacher, wanted, labels, dim)
        given = student_forward(inputs, where)
        if known == "values":
            return _regression(given, taught, labels, loss or _mean_squares, soft, hard, where)
        wanted = _as_logits(wanted, known, dim, where)
        total = soft * soft_loss(first_tensor(given), wanted, temperature, dim=dim)
        return total + hard * label_loss(given, labels, loss, where) if hard > 0 else total

    task = {"task": "teachers", "temperature": temperature, "soft": soft, "hard": hard, "dim": dim, "outputs": outputs}
    return fit(student, batches, batch_loss, settings, beside=[teacher], task=task)


def _kind_of(teacher: nn.Module, wanted: Tensor, labels: Any, dim: int) -> Taught:
    """What outputs are, if nobody has told."""
    if isinstance(teacher, Ensemble) and teacher.vote in ("probabilities", "majority"):
        return "probabilities"
    if wanted.dim() < 2 or wanted.shape[dim] == 1:
        return "values"
    if not isinstance(labels, Tensor) or not labels.is_floating_point() or labels.shape != wanted.shape:
        return "logits"
    smoothed = bool((labels >= 0).all()) and torch.allclose(labels.sum(dim), labels.new_ones(()), atol=1e-3)
    return "logits" if smoothed else "values"


def _as_logits(wanted: Tensor, known: Taught, dim: int, where: str) -> Tensor:
    """Logits whose softmax are the teachers' probabilities.

    Raises:
        InputError: for probabilities that are below 0, and for a single class, whose probability is always 1.
    """
    if wanted.dim() == 0 or wanted.shape[dim] == 1:
        raise InputError(
            f"{where}: the teachers return {tuple(wanted.shape)}, one class in dimension {dim}, whose probability is 1 "
            'whatever a network computes; pass outputs="values", or dim='
        )
    if known == "logits":
        return wanted
    if bool((wanted < 0).any()):
        raise InputError(f'{where}: the teachers return numbers below 0, no probabilities; pass outputs="logits"')
    return wanted.clamp_min(torch.finfo(torch.float32).tiny).log()


def _regression(
    given: Any, taught: Any, labels: Any, loss: Callable[[Any, Any], Tensor], soft: float, hard: float, where: str
) -> Tensor:
    """The loss of values, beside the teachers' and beside the labels."""
    ours, theirs = first_tensor(given), first_tensor(taught)
    _check_shapes(ours, theirs)
    total = soft * loss(given, theirs)
    if hard <= 0:
        return total
    if loss is _mean_squares and isinstance(labels, Tensor) and labels.shape != ours.shape:
        raise InputError(
            f"{where}: labels of shape {tuple(labels.shape)} beside outputs of shape {tuple(ours.shape)}; pass loss="
        )
    return total + hard * label_loss(given, labels, loss, where)


def _mean_squares(outputs: Any, wanted: Tensor) -> Tensor:
    return F.mse_loss(first_tensor(outputs), wanted)


def _check_shapes(ours: Tensor, theirs: Tensor) -> None:
    if ours.shape != theirs.shape:
        raise InputError(f"the student gives {tuple(ours.shape)} but its teachers {tuple(theirs.shape)}")


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
    _check_shapes(logits, wanted)
    ours = (logits / temperature).log_softmax(dim)
    theirs = (wanted / temperature).log_softmax(dim)
    return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim).mean()
