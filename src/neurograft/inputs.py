"""What a model takes: example inputs, and batches of them with or without labels."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from neurograft.errors import InputError

Inputs: TypeAlias = Tensor | tuple[Any, ...] | Mapping[str, Any]
Batches: TypeAlias = Iterable[Any]


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Call `model` with a tensor, a tuple of positional arguments or a dict of keyword arguments.

    Raises:
        InputError: if `inputs` is none of the three.
    """
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple):
        return model(*inputs)
    raise InputError(
        f"inputs must be a tensor, a tuple of arguments or a dict of keyword arguments, not {type(inputs).__name__}"
    )


def to_device(inputs: Any, device: torch.device | str) -> Any:
    """The same nested inputs with every tensor on `device`."""
    return pytree.tree_map_only(Tensor, lambda x: x.to(device), inputs)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer, the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def check_batches(batches: Any, *, name: str = "batches") -> None:
    """Refuse what cannot be read more than once.

    Raises:
        InputError: for a generator, an iterator, a tensor, or something that cannot be iterated over.
    """
    if isinstance(batches, Iterator):
        raise InputError(
            f"{name} is a one-shot {type(batches).__name__}: it would be empty the second time; "
            "pass a list or a DataLoader"
        )
    if isinstance(batches, (Tensor, str, Mapping)) or (
        not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__")
    ):
        raise InputError(f"{name} must be a re-iterable of inputs (a list, a DataLoader), not {type(batches).__name__}")


def split_labels(batch: Any) -> tuple[Inputs, Any | None]:
    """Take a batch apart into (inputs, labels); labels are None if the batch has none.

    `(inputs, labels)` is a pair whose second half is a tensor of integers or a pair whose first half is a tuple
    or a dict; a mapping with a `labels` key gives its labels too. Any other batch is inputs alone.
    """
    if isinstance(batch, Mapping) and "labels" in batch:
        return {key: value for key, value in batch.items() if key != "labels"}, batch["labels"]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, list):
        return tuple(batch), None
    return batch, None


def first_tensor(outputs: Any) -> Tensor:
    """The logits of a model's output if it names any, else its first tensor.

    Raises:
        InputError: if the output holds no tensor.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping) and isinstance(logits := outputs.get("logits"), Tensor):
        return logits
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            return leaf
    raise InputError(f"the model's output ({type(outputs).__name__}) holds no tensor")
