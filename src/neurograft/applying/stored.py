"""Members on disk, opened together with the network they belong to: what planning and streaming start from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neurograft.applying.huggingface import ModelFolder, check_folders, example_inputs, finish_folder, open_folder
from neurograft.applying.provenance import Provenance
from neurograft.applying.streaming import Progress, StoredMember, Streamed, core_left_over, stored_member, stream
from neurograft.checkpoints.hashing import Hashing
from neurograft.checkpoints.reading import open_checkpoint
from neurograft.errors import CheckpointError, OptionError, PlanError
from neurograft.inputs import Inputs, to_device
from neurograft.members.members import check_finite, check_member_weights, check_names, check_shapes
from neurograft.members.settings import differing_settings
from neurograft.methods.planner import check_method, graphs_of, plan_states
from neurograft.plans.plan import FusionPlan
from neurograft.plans.saving import SavedPlan
from neurograft.tracing.graph import NeuronGraph

SEES_BAD_NUMBERS = ("average", "transplant")
"""Methods that stop at NaN and infinity, or let them through to where streaming finds them: no pass of its own."""


@dataclass(frozen=True, eq=False)
class StoredMembers:
    """Members on disk and their networks on the meta device; `folders` are those of Hugging Face members."""

    members: tuple[StoredMember, ...]
    networks: tuple[nn.Module, ...]
    name: str
    inputs: Inputs
    folders: tuple[ModelFolder, ...] = ()

    def hashing(self) -> Hashing:
        """Start to hash the members' files in the background; use it as a context manager around plan and fuse."""
        return Hashing([member.checkpoint.files for member in self.members])

    def hashes(self) -> tuple[dict[str, str], ...]:
        """The SHA-256 hash of every member's files, by file name."""
        with self.hashing() as hashing:
            found = hashing.results()
        return tuple({file.name: found[file] for file in member.checkpoint.files} for member in self.members)

    def graphs(self, fixed: Sequence[str] = ()) -> list[NeuronGraph]:
        """Trace the networks on the meta device, where no weight exists, and check them against the files.

        Raises:
            MembersDiffer: tensors or shapes do not fit together.
            TraceError: the network does not run there.
        """
        states = [member.state for member in self.members]
        check_names(states)
        found = graphs_of(self.networks, states, self.inputs, None, fixed)
        check_shapes(states, found)
        return found

    def plan(
        self,
        method: str = "transplant",
        weights: Sequence[float] | None = None,
        *,
        fixed: Sequence[str] = (),
        seed: int = 0,
        options: Mapping[str, Any],
    ) -> FusionPlan:
        """Plan from the files; only methods that need no activations can.

        Raises:
            NeurograftError: as `neurograft.plan`.
        """
        check_method(method, options)
        states = [member.state for member in self.members]
        graphs = self.graphs(fixed)
        try:
            with core_left_over():
                plan = plan_states(
                    states,
                    graphs,
                    method,
                    check_member_weights(weights, len(states)),
                    fixed=fixed,
                    seed=seed,
                    options=options,
                    scan=method not in SEES_BAD_NUMBERS,
                )
            return replace(plan, warnings=(*plan.warnings, *differing_settings(self.networks)))
        except PlanError:
            for member in self.members:  # bad numbers may be the reason: then say where they are
                for name, tensor in member.state.items():
                    check_finite(name, tensor, str(member.checkpoint.path))
            raise


def open_files(paths: Sequence[Path], build: Callable[[], nn.Module], name: str, inputs: Inputs) -> StoredMembers:
    """Open checkpoints of one network, which `build` makes; it is made on the meta device.

    Raises:
        CheckpointError: a checkpoint cannot be read or belongs to another network.
        PlanError: fewer than two members.
    """
    _check_count(paths)
    with torch.device("meta"):
        network = build()
    members = tuple(stored_member(open_checkpoint(path), network) for path in paths)
    return StoredMembers(members, (network,) * len(paths), name, to_device(inputs, "meta"))


def open_folders(paths: Sequence[Path], inputs: Inputs | None = None) -> StoredMembers:
    """Open Hugging Face model folders of one class; `inputs` are found from the configuration if None.

    Raises:
        CheckpointError: a folder cannot be read.
        MembersDiffer: folders of different classes.
        PlanError: fewer than two members.
    """
    _check_count(paths)
    folders = tuple(open_folder(path) for path in paths)
    check_folders(folders)
    given = example_inputs(folders[0].network) if inputs is None else to_device(inputs, "meta")
    members = tuple(folder.member for folder in folders)
    return StoredMembers(members, tuple(f.network for f in folders), folders[0].network_name, given, folders)


def fuse_stored(
    stored: StoredMembers,
    saved: SavedPlan,
    output: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_size: int | None = None,
    max_memory: int | None = None,
    progress: Progress | None = None,
    hashing: Hashing | None = None,
) -> Streamed:
    """Apply a plan to members on disk; Hugging Face folders become one such folder, with tokenizer and model card.

    Raises:
        NeurograftError: as `stream`; a plan for other members or another network.
    """
    plan = saved.plan
    if saved.network and saved.network != stored.name:
        raise PlanError(f"the plan was made for {saved.network}, these members are {stored.name}")
    provenance = Provenance.of(plan, [member.checkpoint for member in stored.members], stored.name, saved.fixed)
    finish = None
    if stored.folders:
        if output.suffix == ".safetensors":
            raise CheckpointError(f"{output}: model folders become a folder; give a name without .safetensors")
        if any(plan.graph[group.name].size != group.size for group in plan.graphs[0].groups):
            raise OptionError("a model folder keeps the sizes in its config.json; leave out width and ratio")
        finish = partial(finish_folder, members=stored.folders, provenance=provenance, dtype=dtype)
    return stream(
        plan,
        stored.members,
        output,
        provenance,
        dtype=dtype,
        shard_size=shard_size,
        max_memory=max_memory,
        progress=progress,
        finish=finish,
        expected=_expected(saved, stored),
        hashing=hashing,
    )


def _expected(saved: SavedPlan, stored: StoredMembers) -> dict[Path, str]:
    """The hashes that the plan was made for, by the files that are there now."""
    expected = {}
    for m, (files, member) in enumerate(zip(saved.hashes, stored.members, strict=False)):
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
