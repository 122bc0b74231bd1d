"""`Statistics`: what a member brings of its own data, and the file it lies in."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from neurograft.checkpoints.header import CODES, DTYPES
from neurograft.checkpoints.reading import open_checkpoint
from neurograft.checkpoints.writing import write_tensors
from neurograft.errors import CheckpointError, InputError, MembersDiffer
from neurograft.escaping import named
from neurograft.inputs import Inputs
from neurograft.member_statistics.input_moments import InputMoments, IntegerInput, RealInput
from neurograft.member_statistics.random_features import SEED

Structure: TypeAlias = Literal["tensor", "arguments", "keywords"]
KEY = "neurograft-statistics"
VERSION = 1
KINDS: Mapping[str, type[RealInput] | type[IntegerInput]] = {"real": RealInput, "integer": IntegerInput}


@dataclass(frozen=True, eq=False, slots=True)
class FeatureMoments:
    """Moments of the fixed random features of the inputs, `random_features`.

    Attributes:
        mean: shape `(features,)`.
        covariance: shape `(features, features)`.
        noise: the deviation of the noise in every entry of the covariance, 0 without.
    """

    mean: Tensor
    covariance: Tensor
    noise: float = 0.0


@dataclass(frozen=True, eq=False, slots=True)
class Statistics:
    """What a member brings instead of its data; `neurograft.statistics` makes it.

    Attributes:
        samples: how many samples it was made from; with noise not exactly.
        structure: whether the network takes one tensor, several arguments, or keyword arguments.
        inputs: name of every input -> its moments or counts; inputs without names are called "0", "1", …
        features: moments of fixed random features, by which an `Ensemble` sees whose data an input resembles.
        noise: (epsilon, delta) of the noise they hold, None without.

    Example:
        >>> import tempfile, neurograft as ng
        >>> from torch import nn
        >>> own = ng.statistics(nn.Linear(2, 3), [torch.randn(100, 2)])
        >>> own
        Statistics(100 samples of 2 real numbers)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     own.save(Path(folder) / "own.safetensors")
        ...     Statistics.load(Path(folder) / "own.safetensors").samples
        100
    """

    samples: int
    structure: Structure
    inputs: Mapping[str, InputMoments]
    features: FeatureMoments
    noise: tuple[float, float] | None = None

    def save(self, path: str | Path) -> None:
        """Write them as one safetensors file, completely or not at all.

        Raises:
            CheckpointError: it cannot be written.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{path}: a file of statistics ends in .safetensors")
        tensors = {"features.mean": self.features.mean, "features.covariance": self.features.covariance}
        described = []
        for number, (name, moments) in enumerate(self.inputs.items()):
            kind = "real" if isinstance(moments, RealInput) else "integer"
            described.append({"name": name, "kind": kind, "shape": moments.shape, "dtype": CODES[moments.dtype]})
            tensors |= {f"inputs.{number}.{part}": getattr(moments, part) for part in moments.TENSORS}
        content = {
            "version": VERSION,
            "samples": self.samples,
            "structure": self.structure,
            "inputs": described,
            "feature_seed": SEED,
            "feature_noise": self.features.noise,
            "noise": self.noise,
        }
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_tensors(tensors, path, {KEY: json.dumps(content, separators=(",", ":"))})

    @classmethod
    def load(cls, path: str | Path) -> "Statistics":
        """Read what `save` wrote; nothing in the file is trusted.

        Raises:
            CheckpointError: the file is damaged, holds something else, or numbers that cannot be right.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{path}: a file of statistics ends in .safetensors")
        opened = open_checkpoint(path)
        if KEY not in opened.metadata:
            raise CheckpointError(f"{path} holds no statistics; make them with `neurograft statistics`")
        try:
            return _decoded(json.loads(opened.metadata[KEY]), {n: t.clone() for n, t in opened.tensors.items()})
        except CheckpointError:
            raise
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be read as statistics: {named(str(error), 200)}") from error

    def tensors_of(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """The inputs that these statistics are of, in their order, among a network's arguments.

        Raises:
            InputError: if one is missing or has another shape per sample than the statistics.
        """
        given = {**{str(number): value for number, value in enumerate(args)}, **kwargs}
        found = []
        for name, moments in self.inputs.items():
            tensor = given.get(name)
            if not isinstance(tensor, Tensor) or not moments.fits(tensor):
                what = f"shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
                raise InputError(f"input {name} is {what}; the statistics are of {moments.described()} per sample")
            found.append(tensor)
        return found

    def arranged(self, tensors: Sequence[Tensor]) -> Inputs:
        """The inputs as the network takes them."""
        if self.structure == "tensor":
            return tensors[0]
        return tuple(tensors) if self.structure == "arguments" else dict(zip(self.inputs, tensors, strict=True))

    def __repr__(self) -> str:
        what = ", ".join(moments.described() for moments in self.inputs.values())
        noise = "" if self.noise is None else f", noise ({self.noise[0]:g}, {self.noise[1]:g})"
        return f"Statistics({self.samples} samples of {what}{noise})"


def check_statistics(statistics: Sequence[Statistics], members: int) -> tuple[Statistics, ...]:
    """Refuse statistics that are not one per member, or not of the same inputs.

    Raises:
        InputError: something else than statistics.
        MembersDiffer: their number or their inputs.
    """
    found = tuple(statistics)
    for m, own in enumerate(found):
        if not isinstance(own, Statistics):
            raise InputError(f"statistics[{m}] is a {type(own).__name__}; pass what `neurograft.statistics` gave")
    if len(found) != members:
        raise MembersDiffer(f"{len(found)} statistics for {members} members; every member brings its own")
    for m, own in enumerate(found[1:], 1):
        if own.structure != found[0].structure or not _alike(own.inputs, found[0].inputs):
            raise MembersDiffer(f"statistics[{m}] are of other inputs than statistics[0]: {own}, {found[0]}")
    return found


def _alike(one: Mapping[str, InputMoments], other: Mapping[str, InputMoments]) -> bool:
    return list(one) == list(other) and all(
        type(a) is type(b) and (a.shape == b.shape or isinstance(a, IntegerInput))
        for a, b in zip(one.values(), other.values(), strict=True)
    )


def _decoded(content: Any, tensors: Mapping[str, Tensor]) -> Statistics:
    if content["version"] != VERSION or content["feature_seed"] != SEED:
        raise ValueError(f"it is of version {content['version']}; this neurograft reads {VERSION}")
    inputs: dict[str, InputMoments] = {}
    for number, described in enumerate(content["inputs"]):
        name, shape = described["name"], tuple(described["shape"])
        if not isinstance(name, str) or name in inputs or not all(type(n) is int and n > 0 for n in shape):
            raise ValueError(f"input {number} has no name or shape")
        kind = KINDS[described["kind"]]
        parts = {part: tensors[f"inputs.{number}.{part}"] for part in kind.TENSORS}
        inputs[name] = kind(shape, DTYPES[described["dtype"]], **parts)
        if fault := inputs[name].faults():
            raise ValueError(f"input {name}: {fault}")
    samples, structure, noise = content["samples"], content["structure"], content["noise"]
    if type(samples) is not int or samples < 1 or structure not in get_args(Structure) or not inputs:
        raise ValueError("it counts no samples or inputs")
    if structure == "tensor" and len(inputs) > 1:
        raise ValueError("a network of one tensor has one input")
    if noise is not None:
        noise = float(noise[0]), float(noise[1])
    features = FeatureMoments(tensors["features.mean"], tensors["features.covariance"], float(content["feature_noise"]))
    _check_features(features)
    return Statistics(samples, structure, inputs, features, noise)


def _check_features(features: FeatureMoments) -> None:
    size = features.mean.numel()
    if features.mean.shape != (size,) or features.covariance.shape != (size, size) or not size:
        raise ValueError("the moments of its features do not fit together")
    finite: Callable[[Tensor], Tensor] = torch.isfinite
    floating = features.mean.is_floating_point() and features.covariance.is_floating_point()
    if not floating or not bool(finite(features.mean).all()) or not bool(finite(features.covariance).all()):
        raise ValueError("the moments of its features hold NaN or infinity")
    if not 0 <= features.noise < float("inf"):
        raise ValueError("the noise of its features is no size")
