"""Members on disk, opened together with the network they belong to, and fused into files."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from neurograft.applying.huggingface import check_folders, example_inputs, finish_folder, open_folder
from neurograft.applying.provenance import Provenance
from neurograft.applying.streaming import ByteProgress, Streamed, stream
from neurograft.checkpoints.hashing import Hashing
from neurograft.checkpoints.reading import open_checkpoint
from neurograft.errors import CheckpointError, OptionError, PlanError
from neurograft.inputs import Inputs, to_device
from neurograft.members.members import Members
from neurograft.members.stored import stored_member
from neurograft.plans.saving import SavedPlan


def open_files(
    paths: Sequence[Path],
    build: Callable[[], nn.Module],
    name: str,
    inputs: Inputs,
    fixed: str | Sequence[str] = (),
    base: Path | None = None,
) -> Members:
    """Open checkpoints of one network, which `build` makes; it is made on the meta device.

    Args:
        paths: the checkpoints.
        build: makes the network.
        name: how provenance names it.
        inputs: what it takes.
        fixed: fnmatch patterns of parameters whose neurons stay where they are.
        base: the checkpoint that all members were trained from, for operators that need it.

    Raises:
        CheckpointError: a checkpoint cannot be read or belongs to another network.
        MembersDiffer: tensors do not fit together.
        PlanError: fewer than two members.
    """
    _check_count(paths)
    with torch.device("meta"):
        network = build()
    members = [stored_member(open_checkpoint(path), network) for path in paths]
    ancestor = None if base is None else (stored_member(open_checkpoint(base), network), network)
    given = to_device(inputs, "meta")
    return Members.on_disk(members, (network,) * len(paths), given, name, fixed=fixed, base=ancestor)


def open_folders(
    paths: Sequence[Path], inputs: Inputs | None = None, fixed: str | Sequence[str] = (), base: Path | None = None
) -> Members:
    """Open Hugging Face model folders of one class; `inputs` are found from the configuration if None.

    `base` is the folder of the model that all were trained from, for operators that need it.

    Raises:
        CheckpointError: a folder cannot be read.
        MembersDiffer: folders of different classes.
        PlanError: fewer than two members.
    """
    _check_count(paths)
    folders = [open_folder(path) for path in paths]
    check_folders(folders)
    first = folders[0]
    given = example_inputs(first.network) if inputs is None else to_device(inputs, "meta")
    members, networks = [folder.member for folder in folders], [folder.network for folder in folders]
    ancestor = None if base is None else open_folder(base)
    return Members.on_disk(
        members,
        networks,
        given,
        first.network_name,
        fixed=fixed,
        folders=paths,
        base=None if ancestor is None else (ancestor.member, ancestor.network),
    )


def fuse_stored(
    members: Members,
    saved: SavedPlan,
    output: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_size: int | None = None,
    max_memory: int | None = None,
    progress: ByteProgress | None = None,
    hashing: Hashing | None = None,
    recipe: str = "",
    source: Path | None = None,
) -> Streamed:
    """Apply a plan to members on disk; Hugging Face folders become one such folder, with tokenizer and model card.

    The text of a recipe is recorded; configuration and tokenizer are those of the folder `source`, by default of the
    first member.

    Raises:
        NeurograftError: as `stream`; a plan for other members or another network.
    """
    plan = saved.plan
    if saved.network and saved.network != members.name:
        raise PlanError(f"the plan was made for {saved.network}, these members are {members.name}")
    sources = [member.checkpoint for member in members.stored]
    base = members.base.stored[0].checkpoint if plan.base is not None and members.base is not None else None
    provenance = Provenance.of(plan, sources, members.name, saved.fixed, base, recipe)
    finish = None
    if members.folders:
        if output.suffix == ".safetensors":
            raise CheckpointError(f"{output}: model folders become a folder; give a name without .safetensors")
        if any(plan.graph[group.name].size != group.size for group in plan.graphs[0].groups):
            raise OptionError("a model folder keeps the sizes in its config.json; leave out width and ratio")
        finish = partial(finish_folder, members=members.folders, provenance=provenance, dtype=dtype, source=source)
    return stream(
        plan,
        members,
        output,
        provenance,
        dtype=dtype,
        shard_size=shard_size,
        max_memory=max_memory,
        progress=progress,
        finish=finish,
        expected=_expected(saved, members),
        hashing=hashing,
    )


def _expected(saved: SavedPlan, members: Members) -> dict[Path, str]:
    """The hashes that the plan was made for, by the files that are there now."""
    expected = {}
    for m, (files, member) in enumerate(zip(saved.hashes, members.files, strict=False)):
        there = {file.name: file for file in member.checkpoint.files}
        if len(there) != len(files):
            raise PlanError(
                f"the plan was made for {len(files)} files of member {m}, {member.checkpoint.path} has {len(there)}"
            )
        by_hash = list(files.values())
        for i, (name, file) in enumerate(there.items()):
            expected[file] = files.get(name, by_hash[i])  # a file may be renamed, its bytes may not change
    return expected


def _check_count(paths: Sequence[Path]) -> None:
    if len(paths) < 2:
        raise PlanError(f"fusing needs at least two members, got {len(paths)}")
