"""The tensors of a network by name: what is fused of it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from neurograft.errors import PlanError
from neurograft.inputs import check_model, is_sparse
from neurograft.members.parametrised import effective_originals
from neurograft.preserve_state import check_copied

State = Mapping[str, Tensor]

OLD_HOOKS = ("weight_norm", "spectral_norm", "prune")


def check_writable(model: nn.Module) -> None:
    """Refuse networks in which a tensor that is written is not what acts.

    Raises:
        PlanError: names the module, and says what to do.
    """
    for path, module in model.named_modules():
        place = path or type(model).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise PlanError(
                f"{place} is scripted or traced by torch.jit, and copies of it keep its weights: fuse the networks "
                "before they are scripted, and script the result"
            )
        for name, value in vars(module).items():
            if isinstance(value, torch.ScriptObject):
                raise PlanError(
                    f"{place} holds its weights packed ({name}, a {type(value).__name__}), where they cannot be read "
                    "or written: fuse the networks before they are quantised, and quantise the result"
                )
        for hook in module._forward_pre_hooks.values():
            _check_hook(hook, f"{path}." if path else "", module)
    check_copied(model)


def _check_hook(hook: object, prefix: str, module: nn.Module) -> None:
    kind = type(hook).__module__.removeprefix("torch.nn.utils.")
    if kind in OLD_HOOKS:
        weight = prefix + str(getattr(hook, "name", getattr(hook, "_tensor_name", "weight")))
        instead = "" if kind == "prune" else f"use torch.nn.utils.parametrizations.{kind}, or "
        off = "prune.remove" if kind == "prune" else f"remove_{kind}"
        raise PlanError(
            f"{weight} is computed by a hook of torch.nn.utils.{kind}, so that its parts do not fuse into the weight "
            f"that acts; {instead}take the hook off with torch.nn.utils.{off}"
        )
    own = [*module._parameters, *module._buffers]
    for name, value in vars(module).items():
        parts = [part for part in own if part.startswith(f"{name}_")]
        if isinstance(value, Tensor) and len(parts) > 1:
            raise PlanError(
                f"{prefix}{name} is computed by a hook ({getattr(hook, '__name__', type(hook).__name__)}) of "
                f"{' and '.join(prefix + part for part in parts)}, so that these do not fuse into the weight that "
                "acts; make it a parametrisation (torch.nn.utils.parametrize), or take the hook off and keep the weight"
            )


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and dense persistent buffer once, by name, detached and sharing the model's memory.

    Of a parametrised weight the originals are those that `right_inverse` gives for the weight that acts.

    Raises:
        InputError: a parameter that has no shape yet, or is sparse.
        PlanError: what is written to these tensors would not act, or not alone: scripted modules, packed weights,
            functions that call the network they were made in, weights that a hook computes of several parts.
    """
    check_model(model)
    check_writable(model)
    persistent = set(model.state_dict(keep_vars=True))
    state = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=True)}
    for name, buffer in model.named_buffers(remove_duplicate=True):
        if name in persistent and not is_sparse(buffer):  # nothing of a sparse buffer can be moved or averaged
            state[name] = buffer.detach()
    return state | effective_originals(model)
