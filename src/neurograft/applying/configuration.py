"""A Hugging Face configuration becomes a network without weights: nothing is fetched, no code of the folder runs."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from neurograft.checkpoints.inside import check_inside
from neurograft.errors import CheckpointError, MissingExtra
from neurograft.escaping import named

LONGEST = 20_000_000  # bytes of a config.json
LARGEST = 1 << 40  # of a whole number in it
MOST_LAYERS = 100_000
DEEPEST = 32  # objects in objects
CALLS = 20  # of PyTorch for each stored tensor; building a network takes at most seven
LAYERS = re.compile("layer|depth|block|stage|stack|repeat|group|expert")
# what may name code on the hub
CHOOSING = re.compile("attn_implementation|experts_implementation|kernel_config|use_kernels")


def network_of(folder: Path, tensors: int) -> nn.Module:
    """The network that config.json names and describes, in eval mode on the meta device.

    Attention is the class's own ("eager"), whatever the configuration names: others may be fetched from the hub.

    Args:
        folder: a model folder.
        tensors: how many the folder's checkpoint holds; a configuration that needs far more is refused.

    Raises:
        CheckpointError: config.json cannot be read, names no class of transformers, or the class cannot be built.
        MissingExtra: transformers is not installed.
    """
    transformers = _transformers()
    content = read_configuration(folder)
    with _offline():
        config = _config(transformers, folder, content)
        names = getattr(config, "architectures", None)
        names = names if isinstance(names, list) else []
        kind = getattr(transformers, str(names[0]), None) if names else None
        if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
            problem = f"names {named(str(names[0]))!r}" if names else "names no architecture"
            raise CheckpointError(
                f"{folder}/config.json {problem}, which transformers {transformers.__version__} does not have"
            )
        try:
            config._attn_implementation = "eager"
            with torch.device("meta"), _Bounded(CALLS * (tensors + 1000)):
                network: nn.Module = kind(config).eval()
                network.tie_weights()  # type: ignore[operator]
        except Exception as error:  # whatever a class does with a configuration that it was not made for
            raise CheckpointError(
                f"{folder}/config.json: {kind.__name__} cannot be built: {_first_line(error)}"
            ) from error
    return network


def read_configuration(folder: Path) -> dict[str, Any]:
    """What config.json holds, without what chooses an implementation of attention or experts.

    Raises:
        CheckpointError: it is no JSON object, not in the folder, or holds what no configuration does.
    """
    path = folder / "config.json"
    check_inside(folder, path)
    try:
        if path.stat().st_size > LONGEST:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a JSON {type(content).__name__}, not an object")
        _check(content, "", 0)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {named(str(error), 200)}") from error
    cleaned: dict[str, Any] = _cleaned(content)
    return cleaned


def _check(value: Any, key: str, depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    for name, inner in value.items() if isinstance(value, dict) else ((key, inner) for inner in value):
        if isinstance(inner, (dict, list)):
            _check(inner, f"{key}.{name}" if isinstance(value, dict) else key, depth + 1)
        elif isinstance(inner, int) and abs(inner) > (MOST_LAYERS if LAYERS.search(f"{key}.{name}") else LARGEST):
            raise ValueError(f"{name!r:.80} is {inner!r:.40}")


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _cleaned(inner) for key, inner in value.items() if not CHOOSING.search(key)}
        return kept | {key: False for key in kept if key == "use_pretrained_backbone"}
    return [_cleaned(inner) for inner in value] if isinstance(value, list) else value


def _config(transformers: Any, folder: Path, content: dict[str, Any]) -> Any:
    with TemporaryDirectory() as place:
        (Path(place) / "config.json").write_text(json.dumps(content), encoding="utf-8")
        try:
            return transformers.AutoConfig.from_pretrained(place, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # whatever a class does with values that it does not expect
            reason = _first_line(error).replace(place, str(folder))
            raise CheckpointError(f"{folder}/config.json cannot be read: {reason}") from error


def _first_line(error: Exception) -> str:
    return named(next(iter(str(error).splitlines()), type(error).__name__), 300)


class _Bounded(TorchFunctionMode):
    """Lets PyTorch be called so many times."""

    def __init__(self, most: int) -> None:
        self._left = most
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._left -= 1
        if self._left < 0:
            raise CheckpointError("it needs far more tensors than there are")
        return func(*args, **(kwargs or {}))


@contextmanager
def _offline() -> Iterator[None]:
    """Nothing is fetched from the hub."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("Hugging Face folders need transformers: pip install 'neurograft[hf]'") from error
    return transformers
