"""From a checkpoint to a network in memory."""

from pathlib import Path

from torch import Tensor, nn

from neurograft.checkpoints.reading import open_checkpoint
from neurograft.errors import CheckpointError, closest


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, copied into memory.

    Raises:
        CheckpointError: as `open_checkpoint`.
    """
    return {name: tensor.clone() for name, tensor in open_checkpoint(path).tensors.items()}


def load_into(model: nn.Module, path: Path) -> nn.Module:
    """Put a checkpoint's tensors into `model`, which takes on their dtypes, and return it.

    Raises:
        CheckpointError: as `open_checkpoint`, and if a tensor is missing, extra or of another shape.
    """
    opened = open_checkpoint(path)
    state = opened.tensors
    own = model.state_dict(keep_vars=True)
    for name, tensor in own.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{type(model).__name__} keeps {name!r}, which is no tensor; it cannot be loaded")
    aliases = {id(own[name]): tensor for name, tensor in state.items() if name in own}
    full = {name: state[name] if name in state else aliases.get(id(tensor)) for name, tensor in own.items()}
    check_names(
        path, type(model).__name__, [n for n, t in full.items() if t is None], [n for n in state if n not in own]
    )
    for name, tensor in own.items():
        found = state.get(name, tensor)
        if found.shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(found.shape)}, but {type(model).__name__} expects "
                f"{tuple(tensor.shape)}; make the factory build the network this checkpoint was saved from"
            )
        tensor.data = tensor.data.to(found.dtype)
    model.load_state_dict(full)
    opened.check_unchanged()
    return model


def check_names(path: Path, model: str, missing: list[str], extra: list[str]) -> None:
    """Refuse a checkpoint that lacks tensors of the network, or holds others.

    Raises:
        CheckpointError: names the first of each, and what comes closest.
    """
    parts = []
    if missing:
        parts.append(f"lacks {_first(missing)} that {model} has")
    if extra:
        parts.append(f"holds {_first(extra)} that {model} does not have")
    hint = f"; {closest(extra[0], missing)}" if missing and extra and len(missing) <= 10 else ""
    if parts:
        raise CheckpointError(f"{path} {' and '.join(parts)}{hint}")


def _first(names: list[str]) -> str:
    more = len(names) - 1
    return f"{names[0]!r}" + (f" and {more} more tensor{'s' if more > 1 else ''}" if more else "")
