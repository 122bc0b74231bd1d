"""`merge`: model folders or checkpoints become one, by a recipe, streamed from disk to disk."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neurograft.applying.huggingface import RECIPE, is_model_folder
from neurograft.applying.stored import fuse_stored, open_files, open_folders
from neurograft.applying.streaming import ByteProgress, Streamed, core_left_over
from neurograft.errors import CheckpointError, InputError
from neurograft.inputs import Inputs
from neurograft.members.members import Members
from neurograft.merging.components import components, has_components, merge_components
from neurograft.merging.named_tensors import open_tensors
from neurograft.merging.recipe import Recipe
from neurograft.merging.vocabularies import check_vocabularies
from neurograft.methods.average import Average
from neurograft.methods.planner import plan_members
from neurograft.plans.saving import SavedPlan
from neurograft.preserve_state import keeps_random_state


@keeps_random_state
def merge(
    recipe: str | Path | Recipe,
    output: str | Path,
    *,
    build: Callable[[], nn.Module] | None = None,
    name: str = "",
    example_inputs: Inputs | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    max_memory: int | None = None,
    shard_size: int | None = None,
    progress: ByteProgress | None = None,
) -> Streamed:
    """Merge the models of a recipe, without any of them being loaded into memory.

    Of folders with several models (sentence-transformers, diffusers) each model is merged by the names of its tensors,
    and the rest is that of the base, or of the first member.

    Args:
        recipe: a YAML file as mergekit takes it, or a recipe that was read.
        output: a folder that is new or empty; for checkpoints that are no model folders also a `.safetensors` file.
        build: makes the network of checkpoints that are no model folders; without it tensors of one name belong
            together, and nothing can be aligned.
        name: how provenance calls that network, such as `module:function`.
        example_inputs: what it takes; of model folders they are found from the configuration.
        dtype: of the result, instead of the recipe's.
        seed: of random operators.
        max_memory: bytes that one tensor's computation may take.
        shard_size: bytes per file of a folder.
        progress: is told how many of the models' bytes are done.

    Returns:
        What was read and written, and the models' hashes.

    Raises:
        RecipeError: as `Recipe.read`.
        MembersDiffer: models of different networks or vocabularies.
        NeurograftError: as `plan` and `fuse_stored`; nothing is written then.

    Source: docs/design.md, "One formula".
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe)
    if dtype is None and recipe.dtype is not None:
        dtype = getattr(torch, recipe.dtype)
    options: dict[str, Any] = {"dtype": dtype, "seed": seed, "max_memory": max_memory, "progress": progress}
    if build is None and has_components(recipe.first):
        return _merge_components(recipe, Path(output), options)
    members = open_models(recipe, build, name, example_inputs)
    return _merge_members(recipe, members, Path(output), shard_size=shard_size, **options)


def _merge_members(
    recipe: Recipe,
    members: Members,
    output: Path,
    *,
    dtype: torch.dtype | None,
    seed: int,
    max_memory: int | None,
    progress: ByteProgress | None,
    shard_size: int | None = None,
) -> Streamed:
    with members.hashing() as hashing, core_left_over():
        plan = plan_members(members, recipe.align or Average(), recipe.operator, seed=seed)
        return fuse_stored(
            members,
            SavedPlan(plan, members.name),
            output,
            dtype=dtype,
            shard_size=shard_size,
            max_memory=max_memory,
            progress=progress,
            hashing=hashing,
            recipe=recipe.text,
            source=recipe.first if members.folders else None,
        )


def _merge_components(recipe: Recipe, output: Path, options: dict[str, Any]) -> Streamed:
    """Merge the models of folders that hold several, each by itself and by the names of its tensors."""
    _check_unaligned(recipe)
    models = (*recipe.members, *([] if recipe.base is None else [recipe.base]))
    if recipe.same_vocabulary:
        check_vocabularies(models)

    def merged(members: Sequence[Path], base: Path | None, target: Path) -> Streamed:
        return _merge_members(recipe, open_tensors(members, base), target, **options)

    done = merge_components(recipe.members, recipe.base, recipe.first, output, merged)
    hashes = {file: digest for one in done for file, digest in one.hashes.items()}
    files = tuple(
        f"{Path(name) / file}" for name, one in zip(components(output), done, strict=True) for file in one.files
    )
    (output / RECIPE).write_text(recipe.text, encoding="utf-8")
    read, written = sum(one.bytes_read for one in done), sum(one.bytes_written for one in done)
    return Streamed(output, files, read, written, sum(one.seconds for one in done), hashes)


def _check_unaligned(recipe: Recipe) -> None:
    """Refuse to align what no network is known of.

    Raises:
        CheckpointError: with what to do.
    """
    if recipe.align is not None:
        raise CheckpointError(
            f"{recipe.first}: aligning needs the network; of checkpoints that are no model folders with a config.json "
            "say how it is built (on the command line: neurograft fuse package.module:function recipe.yaml)"
        )


def open_models(
    recipe: Recipe,
    build: Callable[[], nn.Module] | None = None,
    name: str = "",
    example_inputs: Inputs | None = None,
) -> Members:
    """Open the models of a recipe, without loading weights.

    Raises:
        CheckpointError: checkpoints that are no model folders are to be aligned, without a network.
        MembersDiffer: models of different networks or vocabularies.
    """
    if build is not None:
        if example_inputs is None:
            raise InputError("example_inputs are missing: the network that build makes is traced on what it takes")
        return open_files(recipe.members, build, name, example_inputs, base=recipe.base)
    models = [*recipe.members, *([] if recipe.base is None else [recipe.base])]
    if not all(map(is_model_folder, models)):
        _check_unaligned(recipe)
        return open_tensors(recipe.members, recipe.base)
    if recipe.same_vocabulary:
        check_vocabularies(models)
    return open_folders(recipe.members, example_inputs, base=recipe.base)
