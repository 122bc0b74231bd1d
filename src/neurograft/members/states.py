"""The tensors of a network by name: what is fused of it."""

from collections.abc import Mapping

from torch import Tensor, nn

from neurograft.errors import PlanError
from neurograft.inputs import check_model, is_sparse
from neurograft.members.parametrised import effective_originals

State = Mapping[str, Tensor]

OLD_HOOKS = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and dense persistent buffer once, by name, detached and sharing the model's memory.

    Of a parametrised weight the originals are those that `right_inverse` gives for the weight that acts.

    Raises:
        InputError: a parameter that has no shape yet, or is sparse.
        PlanError: a weight is computed by one of torch's old hooks, whose parts do not fuse into the weight that acts.
    """
    check_model(model)
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if type(hook).__module__ in OLD_HOOKS:
                kind = type(hook).__module__.rpartition(".")[2]
                raise PlanError(
                    f"{path}.{getattr(hook, 'name', 'weight')} is computed by a hook of torch.nn.utils.{kind}, so that "
                    f"its parts do not fuse into the weight that acts; use torch.nn.utils.parametrizations.{kind}, or "
                    f"take the hook off with torch.nn.utils.remove_{kind}"
                )
    persistent = set(model.state_dict(keep_vars=True))
    state = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=True)}
    for name, buffer in model.named_buffers(remove_duplicate=True):
        if name in persistent and not is_sparse(buffer):  # nothing of a sparse buffer can be moved or averaged
            state[name] = buffer.detach()
    return state | effective_originals(model)
