"""Folders with several models (sentence-transformers, diffusers): each model is merged, the rest is the base's."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from neurograft.applying.huggingface import LONGEST
from neurograft.applying.streaming import Streamed
from neurograft.checkpoints.atomic import whole
from neurograft.checkpoints.inside import check_inside
from neurograft.errors import CheckpointError, MembersDiffer
from neurograft.paths import is_file

LISTS = ("modules.json", "model_index.json")
"""What lists the models of a folder: of sentence-transformers, of diffusers."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "diffusion_pytorch_model.safetensors")
KEPT = {".json", ".txt", ".model", ".spm", ".jinja", ".md", ""}
"""Endings of what is copied: configurations, tokenizers, licences; other forms of the weights would be the base's."""

Merge = Callable[[Sequence[Path], Path | None, Path], Streamed]
"""Merges one model of every folder and of the base into a folder."""


def has_components(folder: Path) -> bool:
    """Whether a folder holds several models."""
    return any(is_file(folder / name) for name in LISTS)


def components(folder: Path) -> list[str]:
    """The folders within a folder that hold weights, "" for itself.

    Raises:
        CheckpointError: there are none.
    """
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
    found = [name for name in ("", *inside) if any(is_file(folder / name / weights) for weights in WEIGHTS)]
    if not found:
        raise CheckpointError(f"{folder} lists models but holds none of {', '.join(WEIGHTS)}")
    return found


def merge_components(
    members: Sequence[Path], base: Path | None, source: Path, output: Path, merge: Merge
) -> list[Streamed]:
    """Merge every model of the members by itself, and copy what else is in `source`.

    Raises:
        MembersDiffer: folders with other models.
        CheckpointError: a link that leads out of its folder, or a file that cannot be read or written.
    """
    names = components(source)
    for folder in (*members, *([] if base is None else [base])):
        if (own := components(folder)) != names:
            raise MembersDiffer(f"{folder} holds the models {_listed(own)}, {source} {_listed(names)}")
    with whole(output, folder=True) as part:
        _copy(source, part)
        return [_merged(name, members, base, source, part, merge) for name in names]


def _merged(name: str, members: Sequence[Path], base: Path | None, source: Path, part: Path, merge: Merge) -> Streamed:
    target = part / name
    target.mkdir(exist_ok=True)
    fresh = part / ".merged"
    done = merge([folder / name for folder in members], None if base is None else base / name, fresh)
    weights = next(file for file in WEIGHTS if is_file(source / name / file)).removesuffix(".index.json")
    (fresh / "model.safetensors").replace(target / weights)
    shutil.rmtree(fresh)
    return done


def _copy(source: Path, part: Path) -> None:
    """The files beside the weights, in their folders."""
    for file in sorted(source.rglob("*")):
        inner = file.relative_to(source)
        if not file.is_file() or file.suffix not in KEPT or any(name.startswith(".") for name in inner.parts):
            continue
        if file.name.endswith(".index.json") and file.name != "model_index.json":  # of shards, which become one file
            continue
        check_inside(source, file)
        if file.stat().st_size > LONGEST:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes; no tokenizer or configuration is so large")
        (part / inner).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, part / inner)


def _listed(names: Sequence[str]) -> str:
    return json.dumps([name or "." for name in names])
