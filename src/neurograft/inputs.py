"""What a model takes: example inputs, and batches of them with or without labels."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from neurograft.errors import InputError, NeurograftError

Inputs: TypeAlias = Tensor | tuple[Any, ...] | Mapping[str, Any]
Batches: TypeAlias = Iterable[Any]
Calibration: TypeAlias = Batches | Literal["noise"]
"""Batches that methods and recovery look at, or "noise" for inputs drawn at random."""


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


def call_on_batch(model: nn.Module, inputs: Inputs, where: str) -> Any:
    """Call `model` with the inputs of a batch.

    Raises:
        InputError: if the network cannot take them; `where` begins the message.
    """
    try:
        return call(model, inputs)
    except (NeurograftError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"{where}: {type(model).__name__} cannot take it: {type(error).__name__}: {error}{pair_note(inputs)}"
        ) from error


def pair_note(inputs: Inputs) -> str:
    """A message about a batch that a network cannot take: two inputs may have been read as inputs and labels."""
    if not isinstance(inputs, Tensor):
        return ""
    return "; a pair is read as (inputs, labels); write ((x, c), labels) or a dict for a network of several inputs"


def check_model(model: object, name: str = "model") -> None:
    """Refuse what is no network, and one whose parameters have no shape yet or do not lie densely in memory.

    Raises:
        InputError: with what it is, and what to do.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} is a {type(model).__name__}, not a torch.nn.Module")
    for path, module in model.named_modules():
        for key, x in (*module._parameters.items(), *module._buffers.items()):
            full = f"{path}.{key}" if path else key
            if is_lazy(x):
                raise InputError(
                    f"{full} of {name} has no shape yet: its module is lazy and has not run; call the network once on "
                    "an example input before"
                )
            if key in module._parameters and x is not None and x.layout != torch.strided:
                raise InputError(
                    f"{full} of {name} is a parameter of layout {x.layout}: its rows and columns cannot be moved; make "
                    "it dense (x.to_dense()) before"
                )


def to_device(inputs: Any, device: torch.device | str) -> Any:
    """The same nested inputs with every tensor on `device`, and such that autograd can use it."""

    def moved(x: Tensor) -> Tensor:
        # a tensor made in inference mode can be read but not remembered for a backward pass
        return x.to(device).clone() if x.is_inference() and not torch.is_inference_mode_enabled() else x.to(device)

    return pytree.tree_map_only(Tensor, moved, inputs)


def is_sparse(x: Tensor) -> bool:
    """Whether a tensor holds only some of its entries."""
    return x.layout != torch.strided


def stored_values(x: Tensor) -> Tensor:
    """The entries that a tensor holds: all of a dense one, those that are not left out of a sparse one."""
    if x.layout == torch.sparse_coo:
        return x.coalesce().values()
    return x.values() if is_sparse(x) else x


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

    A pair is `(inputs, labels)`; a mapping with a `labels` key gives its labels too; any other batch is inputs
    alone. Several inputs without labels are a tuple in a tuple, `((x, c),)`, or a dict.

    Example:
        >>> split_labels(((1, 2), 3)), split_labels(((1, 2),)), split_labels({"x": 1, "labels": 3})
        (((1, 2), 3), ((1, 2), None), ({'x': 1}, 3))
    """
    if isinstance(batch, Mapping) and "labels" in batch:
        return {key: value for key, value in batch.items() if key != "labels"}, batch["labels"]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return _arguments(batch[0]), batch[1]
    if isinstance(batch, (tuple, list)) and len(batch) == 1 and isinstance(batch[0], (tuple, list)):
        return _arguments(batch[0]), None
    return _arguments(batch), None


def _arguments(inputs: Any) -> Any:
    """Loaders make lists of tuples."""
    return tuple(inputs) if isinstance(inputs, list) else inputs


def first_tensor(outputs: Any) -> Tensor:
    """The logits of a model's output if it names any, else its first tensor.

    Raises:
        InputError: if the output holds no tensor.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if is_dataclass(outputs) and not isinstance(outputs, (type, Mapping)):
        outputs = {field.name: getattr(outputs, field.name) for field in fields(outputs)}
    if isinstance(outputs, Mapping) and isinstance(logits := outputs.get("logits"), Tensor):
        return logits
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            return leaf
    raise InputError(f"the model's output ({type(outputs).__name__}) holds no tensor")
