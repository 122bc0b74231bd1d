"""LoRA adapters as PEFT writes them: of every adapted weight what the adapter adds to it, as one matrix."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from neurograft.checkpoints.inside import check_inside
from neurograft.checkpoints.reading import Checkpoint, open_checkpoint
from neurograft.errors import CheckpointError, PlanError
from neurograft.escaping import named
from neurograft.paths import is_file

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
LONGEST = 10_000_000  # bytes of an adapter's configuration
PREFIX = "base_model.model."
FACTOR = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<part>A|B|magnitude_vector)(?:\.\w+)?(?:\.weight)?"
)
UNREAD = {
    "use_qalora": "QA-LoRA",
    "layer_replication": "replicated layers",
    "target_parameters": "adapted parameters of no module",
    "lora_bias": "biases of factors",
    "trainable_token_indices": "trained tokens",
}
"""Kinds of adapters that are not a product of two factors, or not only that."""

LayerKind: TypeAlias = Literal["linear", "embedding"]


@dataclass(frozen=True, eq=False)
class Factors:
    """What one adapter adds to one weight: s · B A, and with a magnitude (DoRA) what the weight's norms then become.

    Attributes:
        module: the adapted module's name in the base network.
        kind: of an embedding the product is transposed.
        a: A, shape `(rank, inputs, …)`.
        b: B, shape `(outputs, rank, …)`.
        scaling: s.
        magnitude: one norm for each output, None without.
        transposed: whether the base stores the weight as `(inputs, outputs)`.
    """

    module: str
    kind: LayerKind
    a: Tensor
    b: Tensor
    scaling: float
    magnitude: Tensor | None
    transposed: bool

    @property
    def rank(self) -> int:
        """The number of rows of A."""
        return int(self.a.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of s · B A as the factors multiply, `(outputs, inputs, …)`."""
        return (self.b.shape[0], *self.a.shape[1:])

    @property
    def scaled(self) -> tuple[Tensor, Tensor]:
        """S · B as `(outputs, rank)` and A as `(rank, all inputs)`, in float32 or wider."""
        wide = torch.promote_types(self.a.dtype, torch.float32)
        return self.b.to(wide).flatten(1) * self.scaling, self.a.to(wide).flatten(1)

    def change(self, base: Tensor | None) -> Tensor:
        """What is added to the weight, shape `shape`; `base` is the weight without it, which a magnitude needs.

        With a magnitude m, row by row, m (W + s B A) / |W + s B A| − W.

        Source: Hu et al. 2022, arXiv:2106.09685; Liu et al. 2024, arXiv:2402.09353.
        """
        b, a = self.scaled
        product = (b @ a).reshape(self.shape)
        if self.magnitude is None:
            return product
        assert base is not None
        weight = self.oriented(base).to(product)
        moved: Tensor = (weight + product).flatten(1)
        moved = moved * (self.magnitude.to(product).reshape(-1, 1) / moved.norm(dim=1, keepdim=True))
        return moved.reshape(self.shape) - weight

    def oriented(self, weight: Tensor) -> Tensor:
        """A base weight as `(outputs, inputs, …)`, or such a tensor as the base stores it."""
        return weight.mT if self.transposed or self.kind == "embedding" else weight


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter: its configuration, its factors by module, and other tensors (biases, saved modules) by name."""

    path: Path
    config: Mapping[str, Any]
    checkpoint: Checkpoint
    factors: Mapping[str, Factors]
    others: Mapping[str, Tensor]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return is_file(folder / CONFIG)


def open_adapter(folder: Path) -> Adapter:
    """Open an adapter without reading its tensors.

    Raises:
        CheckpointError: no adapter, a damaged one, or factors that do not fit together.
        PlanError: an adapter of another kind than LoRA, rsLoRA or DoRA.
    """
    config = _configuration(folder)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise PlanError(f"{folder} is an adapter of the kind {kind!r:.40}; merged are LoRA, rsLoRA and DoRA")
    if unread := [what for key, what in UNREAD.items() if config.get(key)]:
        raise PlanError(f"{folder} is an adapter with {unread[0]}; merged are plain LoRA, rsLoRA and DoRA")
    file = next((folder / name for name in FILES if is_file(folder / name)), None)
    if file is None:
        raise CheckpointError(f"{folder} holds no {' or '.join(FILES)}")
    check_inside(folder, file)
    checkpoint = open_checkpoint(file)
    parts: dict[str, dict[str, str]] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in checkpoint.tensors.items():
        found = FACTOR.fullmatch(name)
        if found is None:
            others[name] = tensor
        else:
            own = parts.setdefault(found["module"], {})
            if found["part"] in own:
                raise CheckpointError(f"{file}: {named(found['module'])} has {found['part']} twice")
            own[found["part"]] = name
    if not parts:
        raise CheckpointError(f"{file} holds no lora_A and lora_B")
    factors = {module: _factors(module, own, checkpoint, config) for module, own in parts.items()}
    return Adapter(folder, config, checkpoint, factors, others)


def _configuration(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not is_file(path):
        raise CheckpointError(f"{folder} has no {CONFIG}; it is no adapter")
    check_inside(folder, path)
    try:
        if path.stat().st_size > LONGEST:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a JSON {type(content).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {named(str(error), 200)}") from error
    return content


def _factors(module: str, own: Mapping[str, str], checkpoint: Checkpoint, config: Mapping[str, Any]) -> Factors:
    if "A" not in own or "B" not in own:
        raise CheckpointError(f"{checkpoint.path}: {named(module)} lacks lora_{'A' if 'A' not in own else 'B'}")
    a, b = checkpoint.tensors[own["A"]], checkpoint.tensors[own["B"]]
    magnitude = checkpoint.tensors[own["magnitude_vector"]] if "magnitude_vector" in own else None
    if a.dim() < 2 or b.dim() < 2 or b.shape[1] != a.shape[0] or b[0, 0].numel() != 1:
        raise CheckpointError(
            f"{checkpoint.path}: {named(module)} has factors of the shapes {tuple(b.shape)} and {tuple(a.shape)}, "
            "which do not multiply"
        )
    if magnitude is not None and magnitude.numel() != b.shape[0]:
        raise CheckpointError(
            f"{checkpoint.path}: {named(module)} has {magnitude.numel()} magnitudes, not {b.shape[0]}"
        )
    rank = a.shape[0]
    alpha = _alpha(module, config)
    scaling = alpha / sqrt(rank) if config.get("use_rslora") else alpha / rank
    kind: LayerKind = "embedding" if "lora_embedding_" in own["A"] else "linear"
    return Factors(module, kind, a, b, scaling, magnitude, bool(config.get("fan_in_fan_out")) and kind == "linear")


def _alpha(module: str, config: Mapping[str, Any]) -> float:
    """The α of a module: that of the first pattern whose expression fits the end of its name, else the adapter's."""
    patterns = config.get("alpha_pattern") or {}
    try:
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return float(value)
        return float(config["lora_alpha"])
    except (TypeError, ValueError, KeyError, AttributeError, re.error) as error:
        raise CheckpointError(f"{CONFIG}: lora_alpha or alpha_pattern cannot be read: {named(str(error))}") from error
