"""A network again with other tensors."""

from torch import Tensor, nn

from neurograft.preserve_state import copy_of


def rebuild(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """A copy of `model` with other tensors: the copy never holds the old weights, and ties stay tied."""
    memo: dict[int, object] = {}
    written: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=True):
        kind = type(parameter)
        new = kind(state[name]) if kind is not nn.Parameter else nn.Parameter(state[name], requires_grad=False)
        memo[id(parameter)] = written[name] = new.requires_grad_(parameter.requires_grad)
    persistent = set(model.state_dict(keep_vars=True))
    for name, buffer in model.named_buffers(remove_duplicate=True):
        if name in persistent and name in state:
            memo[id(buffer)] = written[name] = state[name]
    made = copy_of(model, memo)
    own = {**dict(made.named_parameters()), **dict(made.named_buffers())}
    for name, tensor in written.items():
        if own[name] is not tensor:  # a class that copies itself has made its own
            own[name].data = tensor.data
    return made
