"""The classes of symmetry of a group: which matrices, applied to its units, can be undone where they are read."""

from collections.abc import Iterable
from enum import Enum

import torch
from torch import Tensor

from neurograft.axes.maps import Pairs, Plain


class Symmetry(Enum):
    """The largest set of matrices G that an op lets pass: f(Gx) = Gf(x), so that readers can undo G.

    They are ordered by inclusion; the class of a group is the meet over all ops that its units pass.

    Example:
        >>> Symmetry.ORTHOGONAL.meet(Symmetry.SCALED)
        <Symmetry.PERMUTATION: 'permutation'>
        >>> Symmetry.ORTHOGONAL.meet(Symmetry.SIGNED).wider
        (<Symmetry.ORTHOGONAL: 'orthogonal'>,)
    """

    PERMUTATION = "permutation"
    """P: anything that treats all units alike (GELU, SiLU, a softmax over them)."""
    SIGNED = "signed"
    """P·diag(±1): odd functions (tanh, sin)."""
    SCALED = "scaled"
    """P·diag(s), s > 0: ReLU, LeakyReLU, the largest over other axes."""
    FIXING_ONE = "orthogonal fixing 1"
    """O with O·1 = 1: LayerNorm without a scale of its own."""
    ORTHOGONAL = "orthogonal"
    """O: RMSNorm without a scale of its own."""
    LINEAR = "linear"
    """Any invertible M: contractions and additions."""

    def meet(self, other: "Symmetry") -> "Symmetry":
        """The largest class within both."""
        both = _WITHIN[self] & _WITHIN[other]
        return max(both, key=lambda kind: len(_WITHIN[kind]))

    @property
    def wider(self) -> tuple["Symmetry", ...]:
        """The classes next above this one."""
        above = [kind for kind in Symmetry if self in _WITHIN[kind] and kind is not self]
        return tuple(k for k in above if not any(o in _WITHIN[k] and o is not k for o in above))

    @property
    def rotates(self) -> bool:
        """Whether its matrices mix units, which no entry of a scale can follow."""
        return Symmetry.FIXING_ONE in _WITHIN[self]

    @property
    def aligned(self) -> "Symmetry":
        """What is left of the class between members in canonical form, whose units have no scale of their own."""
        return {Symmetry.SCALED: Symmetry.PERMUTATION, Symmetry.LINEAR: Symmetry.ORTHOGONAL}.get(self, self)


_P, _S, _D, _F, _O, _L = Symmetry
_WITHIN: dict[Symmetry, frozenset[Symmetry]] = {
    _P: frozenset({_P}),
    _S: frozenset({_P, _S}),
    _D: frozenset({_P, _D}),
    _F: frozenset({_P, _F}),
    _O: frozenset({_P, _S, _F, _O}),
    _L: frozenset(Symmetry),
}


def meet_of(kinds: Iterable[Symmetry]) -> Symmetry:
    """The largest class within all."""
    found = Symmetry.LINEAR
    for kind in kinds:
        found = found.meet(kind)
    return found


def random_element(kind: Symmetry, size: int, generator: torch.Generator, units: int = 0) -> Plain:
    """A random matrix of a class, float64; with `units` one after the other, shape `(units, size, size)`.

    Linear ones have singular values between 1/2 and 2, so that rounding stays small. Of a class that contains others
    no matrix is one of those.

    Example:
        >>> one = random_element(Symmetry.FIXING_ONE, 3, torch.Generator().manual_seed(0))
        >>> torch.allclose(one.sum(1), torch.ones(3, dtype=torch.double))
        True
    """
    shape = (units, size) if units else (size,)
    if kind in (Symmetry.PERMUTATION, Symmetry.SIGNED, Symmetry.SCALED):
        order = torch.rand(shape, generator=generator).argsort(-1)
        noise = torch.rand(shape, generator=generator, dtype=torch.double)
        weight = None
        if kind is Symmetry.SIGNED:
            noise[..., 0] = 0.0
            weight = torch.where(noise < 0.5, -1.0, 1.0).double()
        elif kind is Symmetry.SCALED:
            weight = 4.0 ** (noise - 0.5)
        return Pairs(torch.arange(size).expand(shape).contiguous(), order, size, size, weight)
    if kind is Symmetry.FIXING_ONE:
        basis = _fixing_basis(size)
        inner = _random_orthogonal(size - 1, generator, units)
        rest = torch.full((size, size), 1 / size, dtype=torch.double)
        turned: Tensor = basis @ inner @ basis.T + rest
        return turned
    first = _random_orthogonal(size, generator, units)
    if kind is Symmetry.ORTHOGONAL:
        return first
    scales = 4.0 ** (torch.rand(shape, generator=generator, dtype=torch.double) - 0.5)
    mixed: Tensor = (first * scales[..., None, :]) @ _random_orthogonal(size, generator, units)
    return mixed


def _random_orthogonal(size: int, generator: torch.Generator, units: int) -> Tensor:
    shape = (units, size, size) if units else (size, size)
    q, r = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.double))
    rotation: Tensor = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return rotation


def _fixing_basis(size: int) -> Tensor:
    # an orthonormal basis of all that is at right angles to 1, shape (size, size - 1)
    start = torch.eye(size, dtype=torch.double)
    start[:, 0] = 1
    q, _ = torch.linalg.qr(start)
    rest: Tensor = q[:, 1:]
    return rest


def nearest_orthogonal(cross: Tensor, kind: Symmetry = Symmetry.ORTHOGONAL) -> Tensor:
    """The rotation O that maximises Σ_ij O_ij cross_ij, the best map of one set of vectors onto another (Procrustes).

    Args:
        cross: products, shape `(..., fused, member)`.
        kind: `ORTHOGONAL`, or `FIXING_ONE` for O·1 = 1, where the direction of 1 is left out of both.

    Returns:
        float64, of the same shape.

    Example:
        >>> nearest_orthogonal(torch.tensor([[0.0, 2.0], [-1.0, 0.0]]))
        tensor([[ 0.,  1.],
                [-1.,  0.]], dtype=torch.float64)

    Source: Schönemann 1966, A generalized solution of the orthogonal Procrustes problem.
    """
    cross = cross.double()
    if kind is Symmetry.FIXING_ONE:
        size = cross.shape[-1]
        cross = cross - cross.mean(-1, keepdim=True)
        cross = cross - cross.mean(-2, keepdim=True)
        largest = torch.linalg.matrix_norm(cross).clamp_min(1.0)
        cross = cross + largest[..., None, None] / size
    u, _, vh = torch.linalg.svd(cross)
    rotation: Tensor = u @ vh
    return rotation


__all__ = ["Symmetry", "meet_of", "nearest_orthogonal", "random_element"]
