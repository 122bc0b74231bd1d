"""How good a network is on labelled batches."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isnan, nan
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from neurograft.errors import InputError
from neurograft.evaluating.ensemble import Ensemble
from neurograft.inputs import (
    Batches,
    call_on_batch,
    check_batches,
    check_model,
    device_of,
    first_tensor,
    key_note,
    split_labels,
    stored_values,
    to_device,
)
from neurograft.preserve_state import forked_random_state, keeps_random_state, preserve_state

Metric: TypeAlias = Callable[[Any, Any], Tensor]
IGNORED_LABEL = -100
BINS = 15


@dataclass(frozen=True, slots=True)
class Scores:
    """What `evaluate` measured; nan where there was nothing to measure.

    Attributes:
        accuracy: the share of samples whose largest output is their label, 0 to 1.
        loss: the mean loss per sample: cross-entropy in nats, or what `loss=` gives.
        calibration_error: the expected calibration error over 15 bins of confidence, 0 to 1.
        samples: how many labels were looked at.
        seconds: how long it took.
        metric: the mean of `metric=` over the samples.
    """

    accuracy: float
    loss: float
    calibration_error: float
    samples: int
    seconds: float
    metric: float = nan

    @property
    def rank(self) -> tuple[float, float]:
        """What "better" means when validation chooses: accuracy first, where there is one, then the loss.

        Example:
            >>> Scores(0.9, 0.5, nan, 100, 0.1).rank > Scores(0.9, 0.6, nan, 100, 0.1).rank
            True
        """
        return 0.0 if isnan(self.accuracy) else self.accuracy, -self.loss


@keeps_random_state
def evaluate(model: nn.Module, batches: Batches, *, loss: Metric | None = None, metric: Metric | None = None) -> Scores:
    """Measure a network on labelled batches, in eval mode, and leave it exactly as it was.

    Labels that are class indices, of the outputs' shape without the classes, give accuracy, cross-entropy and the
    expected calibration error `Σ_b n_b/n · |accuracy_b − confidence_b|` over 15 equal bins b of confidence; the label
    -100 is left out. Classes are counted by the last dimension of the outputs or, as in segmentation, by the second.

    Args:
        model: the network; an `Ensemble` is one too (a majority vote has no probabilities: its loss and calibration
            error are nan).
        batches: a re-iterable of `(inputs, labels)`, or of mappings with a `labels` key.
        loss: `loss(outputs, labels)`, a mean over the batch, instead of the cross-entropy.
        metric: `metric(outputs, labels)`, a mean over the batch; gives `Scores.metric`.

    Raises:
        InputError: for batches that are empty, have no labels, hold NaN or can be read only once; for outputs
            that are NaN; for labels that are no classes when neither `loss` nor `metric` is given.

    Example:
        >>> logits = torch.tensor([[0.0, 5.0]] * 4)
        >>> scores = evaluate(nn.Identity(), [(logits, torch.tensor([1, 1, 1, 0]))])
        >>> scores.accuracy, scores.samples, round(scores.calibration_error, 3)
        (0.75, 4, 0.243)

    Source of the calibration error: Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    check_batches(batches)
    started = time.perf_counter()
    return tally(model, batches, loss=loss, metric=metric).scores(time.perf_counter() - started)


def tally(model: nn.Module, batches: Batches, *, loss: Metric | None = None, metric: Metric | None = None) -> "Tally":
    """The sums that the scores are made of, over these batches; several processes can add theirs.

    Raises:
        InputError: as `evaluate`, but not for no batches at all.
    """
    check_model(model)
    device = device_of(model)
    sums = Tally(model, loss, metric)
    with preserve_state(model), forked_random_state(batches=batches), torch.no_grad():
        for number, batch in enumerate(batches):
            where = f"batch {number}"
            inputs, labels = _pair(batch, where)
            sums.add(call_on_batch(model, to_device(inputs, device), where), to_device(labels, device), where)
    return sums


def labelled(batches: Batches) -> Iterator[tuple[Any, Any]]:
    """Take labelled batches apart, one by one, refusing those that cannot be right.

    Raises:
        InputError: if there is no batch, a batch has no samples or no labels, or its inputs hold NaN.
    """
    number = -1
    for number, batch in enumerate(batches):
        yield _pair(batch, f"batch {number}")
    if number < 0:
        raise InputError("batches are empty: nothing to look at")


def _pair(batch: Any, where: str) -> tuple[Any, Any]:
    inputs, labels = split_labels(batch)
    if labels is None:
        raise InputError(f"{where} has no labels; batches must be (inputs, labels) pairs{key_note(inputs)}")
    check_inputs(inputs, where)
    return inputs, labels


def check_inputs(inputs: Any, where: str) -> None:
    """Refuse inputs without samples and inputs with NaN.

    Raises:
        InputError: if a tensor of `inputs` has no elements or holds NaN; `where` begins the message.
    """
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor):
            if leaf.numel() == 0:
                raise InputError(f"{where} holds no samples: one of its tensors has shape {tuple(leaf.shape)}")
            if bool(stored_values(leaf).isnan().any()):
                raise InputError(f"{where} holds NaN in its inputs; clean the data first")


def class_logits(outputs: Tensor, labels: Any) -> Tensor | None:
    """The outputs with the classes moved to the last dimension, None if `labels` are no class indices for them.

    Example:
        >>> class_logits(torch.zeros(2, 10, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)).shape
        torch.Size([2, 4, 4, 10])
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        return None
    if outputs.dim() < 2 or labels.dim() != outputs.dim() - 1:
        return None
    if labels.shape == outputs.shape[:-1]:
        return outputs
    if labels.shape == outputs.shape[:1] + outputs.shape[2:]:
        return outputs.movedim(1, -1)
    return None


def check_classes(labels: Tensor, classes: int, where: str) -> None:
    """Refuse labels that name no class.

    Raises:
        InputError: if a label is not in 0 … classes-1 (-100 apart); `where` begins the message.
    """
    counted = labels[labels != IGNORED_LABEL]
    if counted.numel() and (int(counted.min()) < 0 or int(counted.max()) >= classes):
        raise InputError(
            f"{where} has labels from {int(counted.min())} to {int(counted.max())}, "
            f"but the outputs have {classes} classes"
        )


class Tally:
    """Sums over the batches, in float64."""

    def __init__(self, model: nn.Module, loss: Metric | None, metric: Metric | None) -> None:
        self.loss, self.metric = loss, metric
        self.vote = model.vote if isinstance(model, Ensemble) else "average"
        self.batches = self.samples = self.classified = 0
        self.losses = self.metrics = self.correct = 0.0
        self.bins = torch.zeros(2, BINS, dtype=torch.float64)  # correct, summed confidence

    def add(self, outputs: Any, labels: Any, where: str) -> None:
        """Add a batch."""
        self.batches += 1
        output = first_tensor(outputs)
        if bool(output.isnan().any()):
            raise InputError(f"{where}: the network's outputs hold NaN; check its weights")
        logits = class_logits(output, labels)
        if logits is None and self.loss is None and self.metric is None:
            raise InputError(
                f"{where}: outputs of shape {tuple(output.shape)} and labels {_described(labels)} are no "
                "classification; pass loss= or metric="
            )
        count = len(output) if output.dim() else 1
        if logits is not None:
            check_classes(labels, logits.shape[-1], where)
            count = self._classify(logits, labels)
        if self.loss is not None:
            self.losses += float(self.loss(outputs, labels)) * count
        if self.metric is not None:
            self.metrics += float(self.metric(outputs, labels)) * count
        self.samples += count

    def _classify(self, logits: Tensor, labels: Tensor) -> int:
        counted = labels != IGNORED_LABEL
        logits, labels = logits[counted], labels[counted].long()
        right = (logits.argmax(-1) == labels).double().cpu()
        self.correct += float(right.sum())
        self.classified += len(labels)
        if self.vote == "majority":
            return len(labels)
        if self.vote == "probabilities":
            logits = logits.clamp_min(torch.finfo(torch.float32).tiny).log()
        if self.loss is None:
            self.losses += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
        confidence = logits.double().softmax(-1).amax(-1).cpu()
        bins = (confidence * BINS).long().clamp(max=BINS - 1)
        self.bins.index_add_(1, bins, torch.stack([right, confidence]))
        return len(labels)

    def sums(self) -> Tensor:
        """All of it in one row of float64, to be added to others'."""
        counts = [self.batches, self.samples, self.classified, self.losses, self.metrics, self.correct]
        return torch.cat([torch.tensor(counts, dtype=torch.float64), self.bins.flatten()])

    def set_sums(self, sums: Tensor) -> None:
        """Go on from other sums."""
        self.batches, self.samples, self.classified = (int(count) for count in sums[:3])
        self.losses, self.metrics, self.correct = sums[3:6].tolist()
        self.bins = sums[6:].reshape(self.bins.shape)

    def scores(self, seconds: float) -> Scores:
        """What the sums come to.

        Raises:
            InputError: if there was nothing to look at.
        """
        if self.batches == 0:
            raise InputError("batches are empty: nothing to look at")
        if self.samples == 0:
            raise InputError(f"every label is {IGNORED_LABEL}: nothing to look at")
        likely = bool(self.classified) and self.vote != "majority"
        return Scores(
            accuracy=self.correct / self.classified if self.classified else nan,
            loss=self.losses / self.samples if likely or self.loss is not None else nan,
            calibration_error=self._calibration_error() if likely else nan,
            samples=self.samples,
            seconds=seconds,
            metric=self.metrics / self.samples if self.metric is not None else nan,
        )

    def _calibration_error(self) -> float:
        right, confidence = self.bins
        return float((right - confidence).abs().sum() / self.classified)


def _described(labels: Any) -> str:
    return f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
