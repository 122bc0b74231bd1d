"""Multi-SLERP: a weighted mean of directions by one step in a tangent space."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from neurograft.errors import BadWeights
from neurograft.operators.block import Block
from neurograft.operators.operator import Operator, weighted_sum
from neurograft.operators.settings import EachSetting, per_member
from neurograft.operators.spherical import SMALLEST


@dataclass(frozen=True, kw_only=True)
class MultiSlerp(Operator):
    """The weighted mean of directions on the sphere, as long as the members are in the mean, for any number of members.

    With unit vectors u_m, their normalised mean μ and the tangents v_m = u_m − <u_m, μ> μ, v = Σ_m w_m v_m:
    W_fused = (Σ_m w_m |W_m|) (cos|v| μ + sin|v| v/|v|). With an ancestor all of this is done to the task vectors. It is
    one step from μ, where `Karcher` goes on until nothing moves.

    Attributes:
        weights: one number per member; default the members' weights.
        normalize: whether the weights of each tensor are made to sum to 1.

    Raises:
        BadWeights: when it is applied, more than two members whose weighted directions cancel out.

    Source: mergekit 0.1 (Goddard et al. 2024, arXiv:2403.13257), method `multislerp`.
    """

    name: ClassVar[str] = "multi_slerp"
    whole: ClassVar[bool] = True
    takes_base: ClassVar[bool] = True

    weights: EachSetting | None = per_member(None)
    normalize: bool = True

    def combine(self, block: Block) -> Tensor:
        """A step from the mean direction towards the members."""
        vectors = list(block.members) if block.base is None else block.changes
        weights = block.values(self.weights, 1.0)
        total = sum(weights) if self.normalize else 1.0
        weights = tuple(weight / total for weight in weights)
        found = self._between(block.name, vectors, weights)
        return found if block.base is None else block.base + found

    def _between(self, name: str, vectors: list[Tensor], weights: tuple[float, ...]) -> Tensor:
        lengths = [vector.norm() for vector in vectors]
        units = [v / n.clamp_min(SMALLEST) for v, n in zip(vectors, lengths, strict=True)]
        mean = weighted_sum(units, weights)
        if float(mean.norm()) < SMALLEST:
            if len(vectors) > 2 and any(map(float, lengths)):
                raise BadWeights(f"{name}: the members' directions cancel out with the weights {list(weights)}")
            return weighted_sum(vectors, weights)
        mean = mean / mean.norm()
        tangent = weighted_sum([unit - (unit * mean).sum() * mean for unit in units], weights)
        angle = tangent.norm()
        length = torch.stack([n * w for n, w in zip(lengths, weights, strict=True)]).sum()
        # sin(x)/x is 1 at 0
        found: Tensor = length * (angle.cos() * mean + torch.sinc(angle / torch.pi) * tangent)
        return found
