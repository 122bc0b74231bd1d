"""A norm over the neurons of several members that normalises every member's segment by itself."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


class SegmentedNorm(nn.Module):
    """Apply one norm per segment of an axis: y = concat_m norm_m(x_m).

    The parameters carry the names of the norm it stands for and cover the whole axis, so it trains and is saved
    like that norm; `plain()` gives back one ordinary norm over all that is left.

    Args:
        members: the members' norms, one per segment; they are copied, without their parameters.
        parameters: the wide tensors by name; dimension `dims[name]` holds the segments one after the other.
        axis: the axis of the activations, counted from the end (negative).
        segments: positions per member along that axis.

    Example:
        >>> norms = [nn.LayerNorm(2, bias=False), nn.LayerNorm(2, bias=False)]
        >>> wide = SegmentedNorm(norms, {"weight": torch.ones(4)}, {"weight": 0}, -1, [2, 2])
        >>> wide(torch.tensor([1.0, 3.0, 10.0, 30.0])).round(decimals=3)
        tensor([-1.,  1., -1.,  1.])
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        parameters: dict[str, Tensor],
        dims: dict[str, int],
        axis: int,
        segments: Sequence[int],
    ):
        super().__init__()
        # a tuple hides the templates from state_dict and parameters(); their own tensors are never used
        self._templates = tuple(copy.deepcopy(member).to("meta") for member in members)
        self._dims = dict(dims)
        self.axis = axis
        self.segments = list(segments)
        for name, tensor in parameters.items():
            self.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each segment of axis `self.axis`; shape in = shape out."""
        pieces = torch.split(x, self.segments, self.axis)
        own = {name: torch.split(p, self.segments, self._dims[name]) for name, p in self.named_parameters()}
        normed = [
            functional_call(template, {name: parts[m] for name, parts in own.items()}, (piece,))
            for m, (template, piece) in enumerate(zip(self._templates, pieces, strict=True))
        ]
        return torch.cat(normed, self.axis)

    def plain(self) -> nn.Module:
        """One ordinary norm with the same parameters, which normalises all segments together."""
        norm = copy.deepcopy(self._templates[0])
        for name, parameter in self.named_parameters():
            setattr(norm, name, nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad))
        if isinstance(norm, (nn.LayerNorm, nn.RMSNorm)):
            sizes = list(norm.normalized_shape)
            sizes[self.axis] = sum(self.segments)
            norm.normalized_shape = tuple(sizes)
        return norm.train(self.training)

    def extra_repr(self) -> str:
        """What stands in `print(model)`."""
        return f"{type(self._templates[0]).__name__}, segments={self.segments}, axis={self.axis}"
