"""A norm over the neurons of several members that normalises every member's segment by itself."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from neurograft.errors import ResizeError


class SegmentedNorm(nn.Module):
    """Apply one norm per member to its positions of an axis: y[positions_m] = norm_m(x[positions_m]).

    The parameters carry the names of the norm it stands for and cover the whole axis, so it trains and is saved
    like that norm; `plain()` gives back one ordinary norm over all that is left.

    Args:
        members: the members' norms; they are copied, without their parameters.
        parameters: the wide tensors by name; dimension `dims[name]` is the one the members share.
        dims: the dimension of each parameter along which the members lie.
        axis: the axis of the activations, counted from the end (negative).
        positions: each member's positions along that axis, int64; together they cover it once.

    Example:
        >>> norms = [nn.LayerNorm(2, bias=False), nn.LayerNorm(2, bias=False)]
        >>> halves = [torch.tensor([0, 1]), torch.tensor([2, 3])]
        >>> wide = SegmentedNorm(norms, {"weight": torch.ones(4)}, {"weight": 0}, -1, halves)
        >>> wide(torch.tensor([1.0, 3.0, 10.0, 30.0])).round(decimals=3)
        tensor([-1.,  1., -1.,  1.])
    """

    # no single value, and equal to none: nn.TransformerEncoderLayer compares it before it takes its fused path, which
    # would norm all members together
    eps = float("nan")
    _order: Tensor
    _inverse: Tensor

    def __init__(
        self,
        members: Sequence[nn.Module],
        parameters: Mapping[str, Tensor],
        dims: Mapping[str, int],
        axis: int,
        positions: Sequence[Tensor],
    ):
        super().__init__()
        # a tuple hides the templates from state_dict and parameters(); their own tensors are never used
        self._templates = tuple(copy.deepcopy(member).to("meta") for member in members)
        self._dims = dict(dims)
        self.axis = axis
        self.segments = [len(p) for p in positions]
        for name, tensor in parameters.items():
            self.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad))
        order = torch.cat(list(positions)).to(next(iter(parameters.values())).device)
        self._in_order = bool((order == torch.arange(len(order), device=order.device)).all())
        self.register_buffer("_order", order, persistent=False)
        self.register_buffer("_inverse", order.argsort(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each member's positions of axis `self.axis`; shape in = shape out."""
        pieces = self._split(x, self.axis)
        own = {name: self._split(p, self._dims[name]) for name, p in self.named_parameters()}
        normed = [
            functional_call(template, {name: parts[m] for name, parts in own.items()}, (piece,))
            for m, (template, piece) in enumerate(zip(self._templates, pieces, strict=True))
        ]
        joined = torch.cat(normed, self.axis)
        return joined if self._in_order else joined.index_select(self.axis, self._inverse)

    def _split(self, tensor: Tensor, dim: int) -> tuple[Tensor, ...]:
        return torch.split(tensor if self._in_order else tensor.index_select(dim, self._order), self.segments, dim)

    def plain(self) -> nn.Module:
        """One ordinary norm with the same parameters, which normalises all positions together."""
        norm = copy.deepcopy(self._templates[0])
        for name, parameter in self.named_parameters():
            setattr(norm, name, nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad))
        if isinstance(norm, (nn.LayerNorm, nn.RMSNorm)):
            norm.normalized_shape = tuple(self.get_parameter("weight").shape)
        elif isinstance(norm, nn.GroupNorm):
            norm.num_channels = len(self.get_parameter("weight"))
        return norm.train(self.training)

    def extra_repr(self) -> str:
        """What stands in `print(model)`."""
        return f"{type(self._templates[0]).__name__}, segments={tuple(self.segments)}, axis={self.axis}"


def norm_axis(norm: nn.Module, shape: Sequence[int], dim: int, path: str) -> int:
    """The axis of a norm's input that dimension `dim` of its parameters faces, counted from the end.

    It is the axis along which permuting input and parameters permutes the output: norm_{Pw}(P x) = P norm_w(x).

    Args:
        norm: the norm; only read.
        shape: the shape of its input.
        dim: the dimension of its parameters.
        path: its name, for the message.

    Raises:
        ResizeError: no axis, or more than one, behaves so.

    Example:
        >>> norm_axis(nn.LayerNorm(3), (2, 3, 3), 0, "norm")
        -1
    """
    generator = torch.Generator().manual_seed(0)
    probe = copy.deepcopy(norm).to("cpu", torch.float64)
    weights = {
        n: torch.rand(p.shape, generator=generator, dtype=torch.float64) + 0.5 for n, p in probe.named_parameters()
    }
    size = next(iter(weights.values())).shape[dim]
    order = torch.randperm(size, generator=generator)
    while size > 1 and torch.equal(order, torch.arange(size)):
        order = torch.randperm(size, generator=generator)
    moved = {name: w.index_select(dim, order) for name, w in weights.items()}
    x = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        y = functional_call(probe, weights, (x,))
        axes = [
            axis - x.dim()
            for axis in range(x.dim())
            if x.shape[axis] == size
            and torch.allclose(
                functional_call(probe, moved, (x.index_select(axis, order),)), y.index_select(axis, order)
            )
        ]
    if len(axes) != 1:
        raise ResizeError(
            f"{path}: cannot determine which axis of its input {tuple(shape)} it normalises, found {axes}"
        )
    return axes[0]
