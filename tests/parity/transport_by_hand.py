"""Fusion by optimal transport as published, once more and without the library: NumPy and POT alone.

Source: Singh & Jaggi 2020, arXiv:1910.05653, sections 4 and 5.
"""

from collections.abc import Sequence

import numpy as np
import ot
from numpy.typing import NDArray

Layers = Sequence[NDArray[np.float64]]


def transported(member: Layers, reference: Layers) -> list[NDArray[np.float64]]:
    """A member's layers with its neurons moved to the reference's, for a chain of layers without biases.

    Layer l has shape (outputs, inputs, ...). Its inputs are those of the layer before, already moved; the cost of
    moving neuron i to neuron j is the distance of their incoming weights; T is the exact plan between uniform
    marginals, and T·diag(1/β) moves both what makes the neurons and what reads them. The outputs stay where they are.
    """
    moved, inputs = [], np.eye(member[0].shape[1])
    for depth, (own, other) in enumerate(zip(member, reference, strict=True)):
        aligned = np.einsum("oi...,ij->oj...", own, inputs)
        if depth == len(member) - 1:
            return [*moved, aligned]
        flat = [layer.reshape(len(layer), -1) for layer in (aligned, other)]
        cost = np.linalg.norm(flat[0][:, None] - flat[1][None], axis=2)
        inputs = ot.emd(ot.unif(len(own)), ot.unif(len(other)), cost) * len(other)
        moved.append(np.einsum("oj...,on->nj...", aligned, inputs))
    return moved


def fused(members: Sequence[Layers], reference: int) -> list[NDArray[np.float64]]:
    """The mean of all members' layers, each moved to the reference's neurons."""
    everybody = [m if i == reference else transported(m, members[reference]) for i, m in enumerate(members)]
    return [np.mean(layers, axis=0) for layers in zip(*everybody, strict=True)]
