"""Hugging Face model folders: config.json decides the architecture, and what is not a weight is carried over."""

import inspect
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neurograft.applying.configuration import network_of, read_configuration
from neurograft.applying.provenance import Provenance
from neurograft.checkpoints.inside import check_inside
from neurograft.checkpoints.reading import open_checkpoint
from neurograft.errors import CheckpointError, InputError, MembersDiffer
from neurograft.members.stored import StoredMember, stored_member
from neurograft.paths import is_file

CARRIED = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template*",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.spm",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
MEANINGS = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model")
RECIPE = "neurograft_recipe.yaml"
LONGEST = 200_000_000  # bytes of a carried file
TOKENS = 16  # length of the example text


@dataclass(frozen=True, eq=False)
class ModelFolder:
    """A member in a Hugging Face folder: its network on the meta device, without weights, and its stored tensors."""

    path: Path
    network: nn.Module
    member: StoredMember

    @property
    def network_name(self) -> str:
        """How provenance names the network."""
        return f"transformers:{type(self.network).__name__}"


def is_model_folder(path: Path) -> bool:
    """Whether a path is a folder with a config.json."""
    return is_file(path / "config.json")


def open_folder(folder: Path) -> ModelFolder:
    """Open a Hugging Face model folder without loading any weight.

    The class is the one that config.json names; code that comes with the folder is not run.

    Raises:
        CheckpointError: as `network_of` and `open_checkpoint`; a link leads out of the folder; the tensors do not fit.
        MissingExtra: transformers is not installed.
    """
    if not is_model_folder(folder):
        raise CheckpointError(f"{folder} has no config.json; it is no Hugging Face model folder")
    carried(folder)
    checkpoint = open_checkpoint(folder)
    network = network_of(folder, len(checkpoint.tensors))
    kind = type(network)
    patterns = [re.compile(pattern) for pattern in getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or ()]
    member = stored_member(
        checkpoint,
        network,
        ignored=lambda name: any(pattern.search(name) for pattern in patterns),
        renamed=_renaming(network),
    )
    return ModelFolder(folder, network, member)


def example_inputs(network: nn.Module) -> dict[str, Any]:
    """What to call a network of transformers with to trace it: on the meta device, so only shapes matter.

    Raises:
        InputError: the network takes neither text, pictures nor sound.
    """
    config: Any = network.config
    text = {"input_ids": torch.ones(1, TOKENS, dtype=torch.long, device="meta")}
    name = getattr(network, "main_input_name", "input_ids")
    inputs: dict[str, Any]
    if name == "input_ids":
        inputs = dict(text)
    elif name == "pixel_values":
        inputs = {name: torch.ones(1, *_picture(config), device="meta")}
    elif name == "input_values":
        inputs = {name: torch.ones(1, 16000, device="meta")}
    elif name == "input_features":
        frames = 2 * int(getattr(config, "max_source_positions", 1500))
        inputs = {name: torch.ones(1, int(getattr(config, "num_mel_bins", 80)), frames, device="meta")}
    else:
        raise InputError(f"{type(network).__name__} takes {name!r}; give --input {name}=SHAPE")
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = text["input_ids"]
    if "pixel_values" in inputs and _takes(network, "input_ids"):
        inputs |= text
    if _takes(network, "use_cache"):
        inputs["use_cache"] = False
    return inputs


def finish_folder(
    folder: Path,
    hashes: Mapping[Path, str],
    *,
    members: Sequence[Path],
    provenance: Provenance,
    dtype: torch.dtype | None,
    source: Path | None = None,
) -> None:
    """Put everything but the weights into a fused folder: configuration, tokenizer, model card, and the recipe.

    Configuration and tokenizer are those of `source`, the first member if None.
    """
    source = members[0] if source is None else source
    for file in carried(source):
        shutil.copyfile(file, folder / file.name)
    config = read_configuration(source)
    if dtype is not None:
        name = str(dtype).removeprefix("torch.")
        config |= {key: name for key in ("dtype", "torch_dtype") if key in config} or {"dtype": name}
    if config != json.loads((source / "config.json").read_bytes()):
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(provenance.card(hashes, differing_files([source, *members])), encoding="utf-8")
    if provenance.recipe:
        (folder / RECIPE).write_text(provenance.recipe, encoding="utf-8")


def carried(folder: Path) -> list[Path]:
    """The files beside the weights that a fused folder needs too.

    Raises:
        CheckpointError: one of them is a link that leaves the folder, or larger than any such file should be.
    """
    found = sorted({file for pattern in CARRIED for file in folder.glob(pattern) if file.is_file()})
    for file in found:
        check_inside(folder, file)
        if file.stat().st_size > LONGEST:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes; no tokenizer or configuration is so large")
    return found


def differing_files(members: Sequence[Path]) -> list[str]:
    """Notes on tokenizer files of later members that are not those of the first: their token numbers may differ."""
    notes = []
    for member in members[1:]:
        for name in MEANINGS:
            own, first = member / name, members[0] / name
            if own.is_file() and first.is_file() and own.read_bytes() != first.read_bytes():
                notes.append(f"{name} of {member.name} is not that of {members[0].name}, which is kept")
    return notes


def check_folders(members: Sequence[ModelFolder]) -> None:
    """Members must be of one class.

    Raises:
        MembersDiffer: names the first member of another class.
    """
    for m, member in enumerate(members[1:], 1):
        if type(member.network) is not type(members[0].network):
            raise MembersDiffer(
                f"members[{m}] ({member.path}) is a {type(member.network).__name__} but members[0] a "
                f"{type(members[0].network).__name__}; members must be of one class"
            )


def _renaming(network: Any) -> Callable[[str], str]:
    """What transformers does to the names in a file before it looks for them in the network.

    Newer versions call layers by other names than the files on the hub; files whose tensors are also cut or joined
    when they are loaded (experts of a mixture) keep their names here, and so are refused by name.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:  # versions before 5.0 rename nothing
        return lambda name: name
    transforms = get_model_conversion_mapping(network)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    state, prefix = network.state_dict(), getattr(network, "base_model_prefix", None)

    def renamed(name: str) -> str:
        new, converter = rename_source_key(name, renamings, converters, prefix, state)
        return str(new) if converter is None else name

    return renamed


def _picture(config: Any) -> tuple[int, int, int]:
    inner = getattr(config, "vision_config", config)
    size = getattr(inner, "image_size", 224)
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return int(getattr(inner, "num_channels", 3)), int(height), int(width)


def _takes(network: nn.Module, name: str) -> bool:
    return name in inspect.signature(network.forward).parameters
