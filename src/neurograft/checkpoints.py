"""Checkpoint files: read with clear errors, loaded into a network by name, written atomically."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neurograft.errors import CheckpointError, closest

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
PROVENANCE = "neurograft"


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or of a `.pt` file that holds nothing but tensors.

    A `.pt` file is read with `weights_only=True`, so it cannot run code; a state dict under the key `state_dict` or
    `model` is found there.

    Args:
        path: ends in `.safetensors`, `.pt`, `.pth`, `.bin` or `.ckpt`.

    Raises:
        CheckpointError: if the file is missing, truncated, of another kind, or holds something else than tensors.

    Example:
        >>> read_checkpoint(Path("nowhere.safetensors"))
        Traceback (most recent call last):
        neurograft.errors.CheckpointError: nowhere.safetensors: no such file
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLED:
        return _read_pickled(path)
    raise CheckpointError(f"{path}: a checkpoint must end in .safetensors, {', '.join(PICKLED)}")


def load_into(model: nn.Module, path: Path) -> nn.Module:
    """Put a checkpoint's tensors into `model`, which takes on their dtypes, and return it.

    Raises:
        CheckpointError: as `read_checkpoint`, and if a tensor is missing, extra or of another shape.
    """
    state = read_checkpoint(path)
    own = model.state_dict(keep_vars=True)
    for name, tensor in own.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{type(model).__name__} keeps {name!r}, which is no tensor; it cannot be loaded")
    aliases = {id(own[name]): tensor for name, tensor in state.items() if name in own}
    full = {name: state[name] if name in state else aliases.get(id(tensor)) for name, tensor in own.items()}
    missing = [name for name, tensor in full.items() if tensor is None]
    extra = [name for name in state if name not in own]
    if missing or extra:
        raise CheckpointError(_misfit(path, type(model).__name__, missing, extra))
    for name, tensor in own.items():
        found = state.get(name, tensor)
        if found.shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(found.shape)}, but {type(model).__name__} expects "
                f"{tuple(tensor.shape)}; make the factory build the network this checkpoint was saved from"
            )
        tensor.data = tensor.data.to(found.dtype)
    model.load_state_dict(full)
    return model


def write_checkpoint(model: nn.Module, path: Path, provenance: Mapping[str, Any]) -> None:
    """Write a network as safetensors, completely or not at all.

    The bytes go to a temporary file beside `path`, are flushed to the disk and renamed. A tied tensor is written once.
    `provenance` goes into the file's metadata as JSON, under the key `neurograft`.

    Raises:
        CheckpointError: if the folder cannot be written to or the disk is full; no file is left behind then.
    """
    from safetensors.torch import save_file

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(_once(model), part, metadata={"format": "pt", PROVENANCE: json.dumps(provenance, sort_keys=True)})
        _order_metadata(part)
        _flush(part)
        part.replace(path)
        _flush(path.parent)
    except Exception as error:
        raise CheckpointError(f"{path} could not be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def provenance_of(path: Path) -> dict[str, Any] | None:
    """What `write_checkpoint` recorded in a safetensors file, None if it is not from there.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            recorded = (file.metadata() or {}).get(PROVENANCE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file: {error}") from error
    return None if recorded is None else dict(json.loads(recorded))


def sha256(path: Path) -> str:
    """The SHA-256 hash of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file, perhaps truncated: {error}") from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"{path} cannot be read as tensors only (it may be truncated, or hold more than a state dict; "
            f"save model.state_dict() instead): {reason}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor")
    return dict(content)


def _misfit(path: Path, model: str, missing: list[str], extra: list[str]) -> str:
    parts = []
    if missing:
        parts.append(f"lacks {_first(missing)} that {model} has")
    if extra:
        parts.append(f"holds {_first(extra)} that {model} does not have")
    hint = f"; {closest(extra[0], missing)}" if missing and extra and len(missing) <= 10 else ""
    return f"{path} {' and '.join(parts)}{hint}"


def _first(names: list[str]) -> str:
    return f"{names[0]!r}" + (f" and {len(names) - 1} more tensors" if len(names) > 1 else "")


def _once(model: nn.Module) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach().cpu().contiguous().clone()
    return tensors


def _order_metadata(path: Path) -> None:
    """Sort the file's metadata, which safetensors writes in a random order: the same network gives the same bytes."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def _flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
