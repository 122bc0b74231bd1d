"""`merge`: model folders or checkpoints become one, by a recipe, streamed from disk to disk."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from neurograft.applying.huggingface import is_model_folder
from neurograft.applying.stored import fuse_stored, open_files, open_folders
from neurograft.applying.streaming import ByteProgress, Streamed, core_left_over
from neurograft.errors import CheckpointError, InputError
from neurograft.inputs import Inputs
from neurograft.members.members import Members
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

    Args:
        recipe: a YAML file as mergekit takes it, or a recipe that was read.
        output: a folder that is new or empty; for checkpoints that are no model folders also a `.safetensors` file.
        build: makes the network of checkpoints that are no model folders.
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
    members = open_models(recipe, build, name, example_inputs)
    if dtype is None and recipe.dtype is not None:
        dtype = getattr(torch, recipe.dtype)
    with members.hashing() as hashing, core_left_over():
        plan = plan_members(members, recipe.align or Average(), recipe.operator, seed=seed)
        return fuse_stored(
            members,
            SavedPlan(plan, members.name),
            Path(output),
            dtype=dtype,
            shard_size=shard_size,
            max_memory=max_memory,
            progress=progress,
            hashing=hashing,
            recipe=recipe.text,
            source=recipe.first if members.folders else None,
        )


def open_models(
    recipe: Recipe,
    build: Callable[[], nn.Module] | None = None,
    name: str = "",
    example_inputs: Inputs | None = None,
) -> Members:
    """Open the models of a recipe, without loading weights.

    Raises:
        CheckpointError: checkpoints that are no model folders, without a network.
        MembersDiffer: models of different networks or vocabularies.
    """
    if build is not None:
        if example_inputs is None:
            raise InputError("example_inputs are missing: the network that build makes is traced on what it takes")
        return open_files(recipe.members, build, name, example_inputs, base=recipe.base)
    models = [*recipe.members, *([] if recipe.base is None else [recipe.base])]
    if bare := [path for path in models if not is_model_folder(path)]:
        raise CheckpointError(
            f"{bare[0]} is no model folder with a config.json; of other checkpoints say how their network is built "
            "(on the command line: neurograft fuse package.module:function recipe.yaml)"
        )
    if recipe.same_vocabulary:
        check_vocabularies(models)
    return open_folders(recipe.members, example_inputs, base=recipe.base)
