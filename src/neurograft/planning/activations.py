"""What neurons do on calibration batches: one activation per sample and unit of every group."""

from typing import Literal

from torch import Tensor

from neurograft.errors import InputError
from neurograft.planning.members import Members

When = Literal["pre", "post"]


def member_activations(members: Members, *, when: When, samples: int) -> list[dict[str, Tensor]]:
    """Every member's activations.

    Raises:
        InputError: there are no calibration batches to look at.
    """
    if members.models is None or members.calibration is None:
        raise InputError(f'metric="activations" needs calibration batches ({samples} samples, {when}-activations)')
    raise InputError("activations cannot be watched yet")
