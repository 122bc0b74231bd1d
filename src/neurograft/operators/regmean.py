"""RegMean: the linear layer that gives what every member's layer gives on that member's inputs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurograft.inputs import Batches, call_on_batch, device_of, split_labels, to_device
from neurograft.least_squares import ridge_change
from neurograft.operators.block import Block
from neurograft.operators.operator import Operator, weighted_sum
from neurograft.operators.settings import EachSetting, Range, Setting, per_member, shared
from neurograft.preserve_state import preserve_state

RIDGE = 1e-6  # towards the mean, where inputs never vary


@dataclass(frozen=True, kw_only=True)
class RegMean(Operator):
    """W_fused = (Σ_m w_m W_m G_m) (Σ_m w_m G_m)⁻¹ for linear layers and convolutions; everything else is averaged.

    It minimises Σ_m w_m |X_m W_fusedᵀ − X_m W_mᵀ|², where X_m are the inputs of the layer in member m, G_m = X_mᵀ X_m.
    Off-diagonal entries of G_m are multiplied by α. A ridge of 10⁻⁶ holds directions without inputs at the mean.
    `nn.Linear` and `nn.Conv1d`, `2d`, `3d` are seen; weights that are used in other ways are averaged.

    Attributes:
        weights: one number per member; default the members' weights.
        alpha: α.

    Raises:
        OptionError: values out of range, or no calibration batches.

    Source: Jin et al. 2023, arXiv:2212.09849, section 3.
    """

    name: ClassVar[str] = "regmean"
    whole: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True

    weights: EachSetting | None = per_member(None)
    alpha: Setting = shared(0.9, Range(0, 1))

    def combine(self, block: Block) -> Tensor:
        """The regression of what members compute."""
        given = block.values(self.weights, 1.0)
        weights = [weight / sum(given) for weight in given]
        mean = weighted_sum(block.members, weights)
        if not block.statistics:
            return mean
        alpha = block.value(self.alpha, 0.9)
        groups, inputs = block.statistics[0].shape[:2]
        grams = [w * _shrunk(gram.to(mean.device), alpha) for w, gram in zip(weights, block.statistics, strict=True)]
        changes = [(member - mean).double().reshape(groups, -1, inputs).mT for member in block.members]
        cross = torch.stack([gram @ change for gram, change in zip(grams, changes, strict=True)]).sum(0)
        found = ridge_change(torch.stack(grams).sum(0), cross, RIDGE)
        assert found is not None  # a positive ridge on a sum of Gram matrices
        return mean + found.mT.reshape(mean.shape).to(mean)

    def measured(self, networks: Sequence[nn.Module], batches: Batches, _seed: int) -> list[Mapping[str, Tensor]]:
        """The Gram matrices of what every layer of every network reads, by the name of the layer's weight."""
        return [gram_matrices(network, batches) for network in networks]


def _shrunk(gram: Tensor, alpha: float) -> Tensor:
    """α G + (1 − α) diag(G)."""
    return alpha * gram + (1 - alpha) * torch.diag_embed(gram.diagonal(dim1=1, dim2=2))


def gram_matrices(network: nn.Module, batches: Batches) -> dict[str, Tensor]:
    """XᵀX / rows of the inputs of every linear layer and convolution, by the name of its weight.

    Returns:
        For each weight a tensor of shape `(groups, inputs, inputs)`, float64.

    Example:
        >>> gram_matrices(nn.Sequential(nn.Linear(2, 3)), [torch.tensor([[1.0, 2.0]])])["0.weight"]
        tensor([[[1., 2.],
                 [2., 4.]]], dtype=torch.float64)
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def seen(name: str, module: nn.Module, x: Tensor) -> None:
        rows = input_rows(module, x.detach()).double()
        sums[name] = sums.get(name, 0) + rows.mT @ rows
        counts[name] = counts.get(name, 0) + rows.shape[1]

    with preserve_state(network), torch.no_grad(), _watched(network, seen):
        network.eval()
        for number, batch in enumerate(batches):
            inputs = to_device(split_labels(batch)[0], device_of(network))
            call_on_batch(network, inputs, f"batches[{number}]")
    return {name: total / counts[name] for name, total in sums.items()}


def input_rows(module: nn.Module, x: Tensor) -> Tensor:
    """What one output of a layer reads, for every sample and position; shape `(groups, rows, inputs)`."""
    if isinstance(module, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    dims = len(module.kernel_size)
    x = x if x.dim() == dims + 2 else x[None]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    for d, (size, step, gap) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        # windows of the kernel's extent, of which every gap-th entry is read
        padded = padded.unfold(2 + d, gap * (size - 1) + 1, step)[..., ::gap]
    batch, channels = padded.shape[:2]
    positions = padded.shape[2 : 2 + dims]
    split = padded.reshape(batch, module.groups, channels // module.groups, *padded.shape[2:])
    order = (1, 0, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims))
    return split.permute(order).reshape(module.groups, batch * positions.numel(), -1)


@contextmanager
def _watched(network: nn.Module, seen: Any) -> Iterator[None]:
    """Call `seen(name, module, input)` for every layer whose weight is a parameter, before it runs."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    own = {id(parameter): name for name, parameter in network.named_parameters()}
    layers = [layer for layer in network.modules() if isinstance(layer, kinds) and id(layer.weight) in own]
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: seen(own[id(layer.weight)], layer, inputs[0]))
        for layer in layers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
