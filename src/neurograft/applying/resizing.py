"""Keeping a module's declared sizes (`out_features`, `groups`, …) true when its tensors change width."""

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from neurograft.applying.declarations import Declaration, declare_integers
from neurograft.axes.layout import layout_size, part_size
from neurograft.errors import ResizeError
from neurograft.inputs import device_of, to_device
from neurograft.tracing.graph import NeuronGraph
from neurograft.tracing.tracer import trace

Leading: TypeAlias = Callable[[int], int]
"""Turns a declared number of groups of the module's weight into the number it has now."""


ORIGINALS = ("original1", "original")  # weight norm's direction, and the one original of other parametrisations


def declare_sizes(model: nn.Module, old: NeuronGraph, new: NeuronGraph) -> list[Declaration]:
    """Set the declared sizes of every module of `model`, whose tensors already have the shapes of `new`, in place.

    Returns:
        The integers that modules and configurations outside torch declared, and what became of them.

    Raises:
        ResizeError: a size that cannot be kept true, by module path.
    """
    if all(group.size == new[group.name].size for group in old.groups):
        return []
    for path, module in model.named_modules():
        for kind, declare in DECLARERS.items():
            if isinstance(module, kind):
                declare(module, partial(_leading, _weight_name(path, old), old, new))
                break
    return declare_integers(model, old, new, tuple(DECLARERS))


def check_runs(model: nn.Module, example_inputs: Any, sizes: Mapping[str, int]) -> None:
    """Trace a network whose widths were changed, so that a size nobody could keep true is found here.

    Args:
        model: the network at its new widths; it is run once per example input.
        example_inputs: what it takes.
        sizes: how many neurons the groups that were moved must have now.

    Raises:
        ResizeError: the network does not run, or uses its neurons otherwise than before (a head count that is stale).
    """
    try:
        found = trace(model, to_device(example_inputs, device_of(model)), verify=False).by_name
    except Exception as error:
        raise ResizeError(
            f"the network does not run at its new widths ({error}); its forward takes sizes from elsewhere than its "
            "modules and their declared integers; keep the members' width, or name its parameters in fixed=[...]"
        ) from error
    # a group of one neuron has no axis of its own, and the others beside it are then named otherwise
    unnamed = {_axis_of(name) for name, size in sizes.items() if size == 1}
    for name, size in sizes.items():
        if _axis_of(name) not in unnamed and name in found and found[name].size != size:
            raise ResizeError(
                f"group {name} has {size} neurons now, but the network runs as if it had {found[name].size}: its "
                "forward takes sizes from elsewhere than its modules and their declared integers; keep the width there"
            )


def _axis_of(group: str) -> str:
    """The tensor and dimension in a group's name."""
    tensor, _, place = group.rpartition(":")
    return f"{tensor}:{place.partition('.')[0]}"


def _linear(module: nn.Linear, _leading: Leading) -> None:
    module.out_features, module.in_features = module.weight.shape


def _conv(module: _ConvNd, leading: Leading) -> None:
    groups = leading(module.groups)
    first, second = module.weight.shape[0], module.weight.shape[1] * groups
    module.groups = groups
    module.out_channels, module.in_channels = first, second
    if isinstance(module, _ConvTransposeNd):
        module.out_channels, module.in_channels = second, first


def _batch_norm(module: _NormBase, _leading: Leading) -> None:
    for tensor in (module.weight, module.running_mean):
        if isinstance(tensor, Tensor):
            module.num_features = tensor.shape[0]


def _layer_norm(module: nn.LayerNorm | nn.RMSNorm, _leading: Leading) -> None:
    if module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)


def _group_norm(module: nn.GroupNorm, leading: Leading) -> None:
    if module.weight is None:
        raise ResizeError("a GroupNorm without weights does not show how its channels lie; give it affine=True")
    module.num_groups = leading(module.num_groups)
    module.num_channels = module.weight.shape[0]


def _embedding(module: nn.Embedding, _leading: Leading) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


def _prelu(module: nn.PReLU, _leading: Leading) -> None:
    module.num_parameters = module.weight.numel()


def _weight_name(path: str, graph: NeuronGraph) -> str:
    """The name of a module's weight; of a parametrised one, of the original that has its shape."""
    prefix = f"{path}." if path else ""
    names = [f"{prefix}{suffix}" for suffix in ("weight", *(f"parametrizations.weight.{o}" for o in ORIGINALS))]
    return next((name for name in names if name in graph.tensors), names[0])


def _leading(tensor: str, old: NeuronGraph, new: NeuronGraph, count: int) -> int:
    """How many groups a grouped convolution or norm has now: the leading factors of dimension 0 that made `count`."""
    if count == 1 or tensor not in old.tensors:
        return count
    before, after = old.tensors[tensor].layouts[0], new.tensors[tensor].layouts[0]
    found = 0
    for own, fresh in zip(before, after, strict=True):
        # a segment of a concatenation holds its share of the groups: its leading factors down to channels per group
        channels = layout_size(before) // count
        left: list[int] = []
        right: list[int] = []
        for a, b in zip(own, fresh, strict=True):
            if prod(left) * channels >= prod(part_size(part) for part in own):
                break
            left.append(part_size(a))
            right.append(part_size(b))
        if prod(left) * channels != prod(part_size(part) for part in own):
            raise ResizeError(
                f"{tensor}: its {count} groups cut through its neurons, so it cannot be given another width"
            )
        found += prod(right)
    return found


DECLARERS: Mapping[type, Callable[..., None]] = {
    nn.Linear: _linear,
    _ConvNd: _conv,
    _NormBase: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.Embedding: _embedding,
    nn.PReLU: _prelu,
}
"""How each kind of module declares its sizes; the first match counts."""
