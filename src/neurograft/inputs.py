"""What a model takes: example inputs, and batches of them with or without labels."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from neurograft.errors import InputError, NeurograftError, OptionError, closest
from neurograft.escaping import named

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
    """What may be wrong with a batch that a network cannot take: a pair, or keys that it does not know."""
    if not isinstance(inputs, Tensor):
        return key_note(inputs)
    return "; a pair is read as (inputs, labels); write ((x, c), labels) or a dict for a network of several inputs"


def key_note(batch: Any) -> str:
    """Which keys a mapping has, and how to name those that count; nothing for another batch."""
    if not isinstance(batch, Mapping):
        return ""
    keys = ", ".join(named(str(key)) for key in batch)
    return f"; its keys are {keys}: neurograft.PreparedBatches(batches, inputs=..., labels=...) picks the right ones"


class PreparedBatches:
    """Batches in the form that networks here take: keys of mappings are picked, or a function changes every batch.

    Everything that takes batches takes this: `(inputs, labels)` where `labels` names a key, inputs alone otherwise. It
    is read as often as what it wraps, and has its length and its generators of random numbers.

    Args:
        batches: a re-iterable, such as a DataLoader or a `datasets` loader whose batches are mappings.
        prepare: `prepare(batch)` returns `(inputs, labels)` or inputs; for units (uint8 images of 0 … 255 to floats of
            0 … 1), normalisation, or another order.
        inputs: the key of the input; or several keys, which become keyword arguments of the network.
        labels: the key of the labels.

    Raises:
        InputError: for batches that can be read only once; while reading, if a batch lacks a key or is no mapping.
        OptionError: for neither or both of `prepare` and `inputs`, or `labels` without `inputs`.

    Example:
        >>> loader = [{"image": torch.zeros(2, 3), "label": torch.tensor([0, 1])}]
        >>> list(PreparedBatches(loader, inputs="image", labels="label"))
        [(tensor([[0., 0., 0.],
                [0., 0., 0.]]), tensor([0, 1]))]
        >>> list(PreparedBatches([torch.tensor([0, 255], dtype=torch.uint8)], lambda batch: batch / 255))
        [tensor([0., 1.])]
    """

    def __init__(
        self,
        batches: Batches,
        prepare: Callable[[Any], Any] | None = None,
        *,
        inputs: str | Sequence[str] | None = None,
        labels: str | None = None,
    ) -> None:
        check_batches(batches)
        if (prepare is None) == (inputs is None):
            raise OptionError("pass either prepare, a function, or inputs, the keys of what the network takes")
        if labels is not None and inputs is None:
            raise OptionError("labels= is a key beside inputs=; prepare returns (inputs, labels) itself")
        self.batches, self.prepare, self.inputs, self.labels = batches, prepare, inputs, labels

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.batches):
            yield self._picked(batch, f"batch {number}") if self.prepare is None else self.prepare(batch)

    def __len__(self) -> int:
        return len(cast("Sized", self.batches))

    def __getattr__(self, name: str) -> Any:
        if name in ("generator", "sampler", "batch_sampler"):  # their random states count where batches are read
            return getattr(self.batches, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def _picked(self, batch: Any, where: str) -> Any:
        if not isinstance(batch, Mapping):
            raise InputError(f"{where} is a {type(batch).__name__}, no mapping with keys; pass prepare= instead")
        several = None if isinstance(self.inputs, str) else tuple(self.inputs or ())
        for key in (*(several or (self.inputs,)), *(() if self.labels is None else (self.labels,))):
            if key not in batch:
                raise InputError(f"{where} has no {key!r}; {closest(str(key), [str(known) for known in batch])}")
        inputs = batch[self.inputs] if several is None else {key: batch[key] for key in several}
        return inputs if self.labels is None else (inputs, batch[self.labels])


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
