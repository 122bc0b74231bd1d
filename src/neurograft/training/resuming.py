"""A training's file: how far it is, so that it goes on where it was stopped and ends with the same result."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor, nn

from neurograft.checkpoints.atomic import whole
from neurograft.errors import CheckpointError
from neurograft.escaping import named
from neurograft.evaluating.evaluation import Scores
from neurograft.inputs import Batches
from neurograft.training.learning_rates import factor_of
from neurograft.training.settings import Epoch, TrainingSettings

FORMAT = "neurograft training 1"
MOST_TOLD = 12  # differences in one message


def identity_of(
    network: nn.Module, batches: Batches, settings: TrainingSettings, processes: int, task: Mapping[str, object]
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
        CheckpointError: if the file holds something else, or another training; with what differs.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: checkpoint= names a file")
    if not path.exists():
        return None
    try:
        with ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"its record {damaged} is damaged")
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # `zipfile` and `torch.load` raise errors of many kinds for damaged files
        reason = named(next(iter(str(error).splitlines()), type(error).__name__), 300)
        raise CheckpointError(f"{path} cannot be read as a training: {reason}; delete it to start anew") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of a training; name another file, or delete it")
    other = found.get("identity")
    if not isinstance(other, dict) or not isinstance(found.get("content"), dict):
        raise CheckpointError(f"{path} lacks what a training needs; delete it to start anew")
    differing = [name for name in {**identity, **other} if identity.get(name) != other.get(name)]
    if differing:
        was = {name: named(str(other.get(name, "not set"))) for name in differing[:MOST_TOLD]}
        told = ", ".join(f"{named(str(name))} was {value} and is {identity.get(name)}" for name, value in was.items())
        raise CheckpointError(f"{path} is of another training: {told}; name another file, or delete it to start anew")
    content: dict[str, Any] = found["content"]
    return content


def check_content(found: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse stored content that is not built as that of a training which starts: the same keys, kinds and shapes.

    Raises:
        CheckpointError: names the part that differs.
    """
    for name in ("network", "best_score", "since_best", "scaler", "random", "optimizer"):
        _check_alike(found.get(name), now[name], name)
    if found.get("best", ...) is not None:
        _check_alike(found.get("best"), now["network"], "best")


def check_kept(optimizer: Mapping[str, Any], parameters: Sequence[Tensor]) -> None:
    """What an optimizer keeps for a parameter has its shape, or fewer dimensions (a count, a row).

    Raises:
        CheckpointError: a learning rate is none.
        ValueError: something of another shape.
    """
    for group in optimizer["param_groups"]:
        _check_alike(group.get("initial_lr", 0.0), 0.0, "initial_lr")
    for number, kept in optimizer["state"].items():
        shape = parameters[number].shape
        for name, tensor in kept.items():
            if isinstance(tensor, Tensor) and tensor.dim() == len(shape) and tensor.shape != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, its parameter {tuple(shape)}")


def stored_history(stored: Sequence[Mapping[str, Any]]) -> list[Epoch]:
    """The epochs that were kept as dicts.

    Raises:
        CheckpointError: values of other kinds.
        ValueError: epochs that do not follow each other.
    """
    history = []
    for number, kept in enumerate(stored):
        scores = None if kept["validation"] is None else Scores(**kept["validation"])
        epoch = Epoch(**{**kept, "validation": scores})
        _check_alike((epoch.number, epoch.train_loss, epoch.seconds), (number, 0.0, 0.0), "history")
        if epoch.number != number:
            raise ValueError(f"epoch {epoch.number} is stored as number {number}")
        history.append(epoch)
    return history


def _check_alike(found: Any, now: Any, where: str) -> None:
    if isinstance(now, Tensor):
        good = isinstance(found, Tensor) and (found.shape, found.dtype) == (now.shape, now.dtype)
    elif isinstance(now, Mapping):
        good = isinstance(found, Mapping) and found.keys() >= now.keys()
    elif isinstance(now, (list, tuple)):
        good = isinstance(found, type(now)) and len(found) == len(now)
    elif isinstance(now, (int, float)) and not isinstance(now, bool):
        good = isinstance(found, (int, float)) or (found is None and isinstance(now, float))
    else:  # what may be None (a drawn number that is left over) may be a number
        good = type(found) is type(now) or (now is None and isinstance(found, float))
    if not good:
        raise CheckpointError(f"the stored training does not fit: {where} is another; delete it to start anew")
    pairs = now.items() if isinstance(now, Mapping) else enumerate(now) if isinstance(now, (list, tuple)) else ()
    for key, inner in pairs:
        _check_alike(found[key], inner, f"{where}.{key}")


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
