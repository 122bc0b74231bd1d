"""Two networks on the same samples: how much of the difference between their accuracies may be chance."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neurograft.errors import InputError
from neurograft.evaluating.evaluation import IGNORED_LABEL, class_logits, labelled
from neurograft.inputs import Batches, call_on_batch, check_batches, device_of, first_tensor, to_device
from neurograft.preserve_state import forked_random_state, preserve_state


@dataclass(frozen=True, slots=True)
class Gap:
    """How far one accuracy is above another on the same samples.

    Attributes:
        points: the difference, -1 to 1.
        noise: two standard errors of it.
    """

    points: float
    noise: float

    @property
    def sign(self) -> int:
        """1 above, -1 below, 0 not distinguishable."""
        return 0 if not abs(self.points) > self.noise else 1 if self.points > 0 else -1


def correct_predictions(model: nn.Module, batches: Batches) -> Tensor:
    """Which samples a network classifies rightly, in eval mode; bool, in the order of the batches.

    Raises:
        InputError: for batches that `evaluate` refuses, or labels that are no classes.

    Example:
        >>> correct_predictions(nn.Identity(), [(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([1, 0]))])
        tensor([ True, False])
    """
    check_batches(batches)
    device, found = device_of(model), []
    with preserve_state(model), forked_random_state(batches=batches), torch.no_grad():
        for number, (inputs, labels) in enumerate(labelled(batches)):
            output = first_tensor(call_on_batch(model, to_device(inputs, device), f"batch {number}"))
            logits = class_logits(output, labels)
            if logits is None:
                raise InputError(f"batch {number}: its labels are no classes of outputs of shape {tuple(output.shape)}")
            counted = labels != IGNORED_LABEL
            found.append((logits.argmax(-1).cpu() == labels.cpu())[counted.cpu()].flatten())
    return torch.cat(found)


def gap(one: Tensor, other: Tensor) -> Gap:
    """The difference of two accuracies from the outputs for the same samples.

    With b the samples that only the first gets right, c those that only the second does, of n samples,

        points = (b − c) / n,    noise = 2 · √(b + c − (b − c)² / n) / n

    Samples that both get right or both get wrong do not count in the difference, so networks that mostly agree are
    distinguished on far fewer samples than two separate test sets would need.

    Example:
        >>> right = torch.tensor([True] * 90 + [False] * 10)
        >>> better = torch.tensor([True] * 94 + [False] * 6)
        >>> gap(better, right)
        Gap(points=0.04, noise=0.039...)

    Source: McNemar 1947, Psychometrika 12 (the variance of the difference of two paired proportions).
    """
    n = len(one)
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    difference = only_one - only_other
    return Gap(difference / n, 2 * math.sqrt(max(0.0, only_one + only_other - difference**2 / n)) / n)
