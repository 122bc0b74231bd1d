"""Parametrised weights (weight norm, spectral norm, …): the weight that acts is what is fused, not its parts."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from neurograft.preserve_state import preserve_state


def effective_originals(model: nn.Module) -> dict[str, Tensor]:
    """The originals that `right_inverse` gives for the weights that act, by parameter name.

    Weight norm w = g·v/|v| gives g = |w| and v = w. Parametrisations without a right inverse are left out.

    Example:
        >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 1, bias=False))
        >>> found = effective_originals(layer)["parametrizations.weight.original1"]
        >>> torch.equal(found, layer.weight)
        True
    """
    if not any(parametrize.is_parametrized(module) for module in model.modules()):
        return {}
    found = {}
    with preserve_state(model), torch.no_grad():
        for path, module, name in _parametrised(model):
            weight = getattr(module, name)
            originals = _originals(module, name, weight)
            for suffix, tensor in originals.items():
                found[f"{path}parametrizations.{name}.{suffix}"] = tensor.detach().clone()
    return found


def write_back(model: nn.Module) -> None:
    """Make every parametrised weight act as its original of the same shape, through `right_inverse`, in place."""
    with torch.no_grad():
        for _, module, name in _parametrised(model):
            weight = getattr(module, name)
            acting = [t for _, t in _steps(module, name).named_parameters() if t.shape == weight.shape]
            if acting and _originals(module, name, weight):
                setattr(module, name, acting[-1].detach().clone())


def _parametrised(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for name, _ in module.get_submodule("parametrizations").named_children():
                yield (f"{path}." if path else ""), module, name


def _steps(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule(f"parametrizations.{name}")


def _originals(module: nn.Module, name: str, weight: Tensor) -> dict[str, Tensor]:
    """What `right_inverse` makes of the weight, by the originals' names; empty where there is none."""
    value: Tensor | list[Tensor] | tuple[Tensor, ...] = weight
    for parametrisation in reversed(list(_steps(module, name).children())):
        inverse = getattr(parametrisation, "right_inverse", None)
        if not callable(inverse):
            return {}
        value = inverse(value)
    if isinstance(value, Tensor):
        return {"original": value}
    return {f"original{i}": tensor for i, tensor in enumerate(value)}
