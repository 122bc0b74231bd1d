"""A training's file: how far it is, so that it goes on where it was stopped and ends with the same result."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from neurograft.checkpoints.atomic import whole
from neurograft.errors import CheckpointError
from neurograft.inputs import Batches
from neurograft.training.learning_rates import factor_of
from neurograft.training.settings import Settings

FORMAT = "neurograft training 1"


def identity_of(
    network: nn.Module, batches: Batches, settings: Settings, processes: int, task: Mapping[str, object]
) -> dict[str, str]:
    """What two trainings must have in common to be one: name and value of everything that decides the result.

    Functions (`loss`, `optimizer`) count by their names and batches by their number: what they do cannot be compared.

    Args:
        network: as it came.
        batches: what it is trained on.
        settings: how.
        processes: how many train together.
        task: what else decides the loss of a batch, such as the temperature.
    """
    epochs, schedule = settings["epochs"], settings["schedule"]
    factor = factor_of(schedule, epochs)
    found: dict[str, object] = {
        **task,
        "network": fingerprint(network),
        **{name: settings[name] for name in ("epochs", "lr", "momentum", "weight_decay", "precision")},
        "schedule": schedule if isinstance(schedule, str) else [factor(done) for done in range(epochs)],
        **{name: settings[name] for name in ("patience", "seed")},
        **{name: _name(settings[name]) for name in ("optimizer", "loss")},
        "batches": _count(batches),
        "validation": None if settings["validation"] is None else _count(settings["validation"]),
        "processes": processes,
    }
    return {name: str(value) for name, value in found.items()}


def fingerprint(*models: nn.Module) -> str:
    """A hash of the names, dtypes, shapes and values of all tensors."""
    digest = hashlib.sha256()
    for model in models:
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def read(path: Path, identity: Mapping[str, str]) -> dict[str, Any] | None:
    """What `write` wrote last, None if there is no such file.

    Raises:
        CheckpointError: if the file holds something else, or another training: says what differs.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: checkpoint= names a file")
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as a training: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of a training; name another file, or delete it")
    other = found["identity"]
    differing = [name for name in {**identity, **other} if identity.get(name) != other.get(name)]
    if differing:
        told = ", ".join(f"{name} was {other.get(name, 'not set')} and is {identity.get(name)}" for name in differing)
        raise CheckpointError(f"{path} is of another training: {told}; name another file, or delete it to start anew")
    content: dict[str, Any] = found["content"]
    return content


def write(path: Path, identity: Mapping[str, str], content: Mapping[str, Any]) -> None:
    """Replace the file in one step: whenever the process is killed, there is all of it or all of the one before.

    Args:
        path: its folder is made if it is not there.
        identity: whose it is.
        content: tensors, numbers, strings, and lists and dicts of them.

    Raises:
        CheckpointError: if the disk is full or may not be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as part:
            torch.save({"format": FORMAT, "identity": dict(identity), "content": dict(content)}, part)
    except (OSError, RuntimeError) as error:  # PyTorch's own writer raises RuntimeError where a disk is full
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(f"{path} could not be written: {reason}") from error


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, those that are not saved with the state included."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they are now."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def put_back(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the model's tensors the values that `copied` kept."""
    with torch.no_grad():
        for name, tensor in tensors_of(model).items():
            tensor.copy_(tensors[name])


def _name(function: Any) -> str | None:
    return None if function is None else getattr(function, "__qualname__", type(function).__qualname__)


def _count(batches: Any) -> str:
    return f"{len(batches)} batches" if hasattr(batches, "__len__") else "batches"
