"""Shapes of images, and what every network checks about them and about its widths."""

from collections.abc import Sequence
from typing import TypeAlias

from neurograft.errors import OptionError

Shape: TypeAlias = tuple[int, int, int]
"""Channels, height and width of an image."""


def scaled(widths: Sequence[int], share: float) -> tuple[int, ...]:
    """Widths times `share`, each rounded and at least 1.

    Raises:
        OptionError: if `share` is not above 0.

    Example:
        >>> scaled((64, 128), 0.25)
        (16, 32)
    """
    if not share > 0:
        raise OptionError(f"share is a factor on every width, above 0, got {share!r}")
    return tuple(max(1, round(width * share)) for width in widths)


def check_side(network: str, shape: Shape, smallest: int) -> None:
    """Refuse images that a network's convolutions and poolings would shrink to nothing.

    Raises:
        OptionError: with both sizes.
    """
    if min(shape[1:]) < smallest:
        raise OptionError(
            f"{network} takes images of at least {smallest} x {smallest} pixels, got {shape[1]} x {shape[2]}"
        )
