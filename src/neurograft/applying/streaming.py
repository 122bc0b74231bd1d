"""`stream`: the formula applied to checkpoints on disk, a block of rows at a time, written as it is computed."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from neurograft.applying.formula import FusedRows
from neurograft.applying.provenance import Provenance
from neurograft.checkpoints.atomic import whole
from neurograft.checkpoints.hashing import Hashing
from neurograft.checkpoints.writing import (
    PROVENANCE,
    Shard,
    Spec,
    TensorWriter,
    nbytes,
    replace_metadata,
    shards,
    size_text,
    write_index,
)
from neurograft.errors import BadWeights, CheckpointError, MembersDiffer, OptionError
from neurograft.members.checks import check_finite
from neurograft.members.members import Members
from neurograft.members.states import State
from neurograft.plans.check_members import base_state, members_for
from neurograft.plans.plan import FusionPlan

ByteProgress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes of members read so far and in all."""

PIECE = 1 << 22  # entries looked at a time where a bad one is searched
RESERVE = 1 << 24  # bytes of disk that headers, an index and small files may need


@dataclass(frozen=True)
class Streamed:
    """What `stream` did: bytes read and written, seconds, the members' hashes, and warnings."""

    output: Path
    files: tuple[str, ...]
    bytes_read: int
    bytes_written: int
    seconds: float
    hashes: Mapping[Path, str]


def stream(
    plan: FusionPlan,
    members: Members,
    output: Path,
    provenance: Provenance,
    *,
    dtype: torch.dtype | None = None,
    shard_size: int | None = None,
    max_memory: int | None = None,
    progress: ByteProgress | None = None,
    finish: Callable[[Path, Mapping[Path, str]], None] | None = None,
    expected: Mapping[Path, str] | None = None,
    hashing: Hashing | None = None,
) -> Streamed:
    """Fuse checkpoints into one checkpoint without holding more than a few blocks of it in memory.

    The result is bit for bit what `apply` gives, under the names of the first member's files. It appears whole or
    not at all, and not if a member changes while it is read. The members' SHA-256 hashes are computed on the way and
    recorded.

    Args:
        plan: the fusion plan.
        members: the members on disk it was made for, in its order.
        output: a `.safetensors` file, or a folder that is new or empty.
        provenance: what to record in the metadata.
        dtype: of the fused floating tensors; default: the first member's, tensor by tensor.
        shard_size: bytes per file of a folder; default: one file.
        max_memory: bytes that one tensor's computation may take; a tensor that needs more is refused beforehand.
        progress: called with how many of the members' bytes are done.
        finish: writes further files into the folder before it appears; gets the folder and the members' hashes.
        expected: the hashes the members must have, by file.
        hashing: of the members' files, if it was started before (while the plan was made).

    Raises:
        PlanError: the plan was made for another number of members.
        MembersDiffer: the members do not fit the plan.
        BadWeights: a member holds NaN or infinity where the result needs it (names the tensor).
        OptionError: a tensor does not fit into `max_memory`.
        CheckpointError: the output cannot be written, the disk is full, or a member changed.
    """
    begun = time.perf_counter()
    states, given = members.states, members_for(plan, members)
    base = base_state(plan, given)
    checkpoints = [member.checkpoint for member in (members.files if base else members.stored)]
    names = members.stored[0].in_reading_order()
    specs = {stored: _spec(name, states, plan, dtype) for stored, name in names.items()}
    folder = output.suffix != ".safetensors"
    _check_output(output, folder, sum(map(nbytes, specs.values())))
    if max_memory is not None:
        _check_memory(plan, states, base, names.values(), max_memory)
    parts = shards(specs, shard_size) if folder and shard_size else shards(specs, sum(map(nbytes, specs.values())) + 1)
    metadata = {PROVENANCE: json.dumps(provenance.record({}), sort_keys=True)}
    total = sum(state[name].nbytes for state in (*states, *([base] if base else [])) for name in names.values())
    with ExitStack() as stack:
        stack.enter_context(core_left_over())
        part = stack.enter_context(whole(output, folder=folder))
        if hashing is None:
            hashing = stack.enter_context(Hashing([checkpoint.files for checkpoint in checkpoints]))
        done = 0
        for shard in parts:
            with TensorWriter(_place(part, shard, folder), shard.tensors, metadata) as writer:
                for stored, (wanted, _) in shard.tensors.items():
                    for block, share in _named_blocks(names[stored], given, plan, base):
                        writer.write(stored, _converted(block, wanted, stored))
                        done += share
                        if progress is not None:
                            progress(done, total)
        hashes = hashing.results()
        for checkpoint in checkpoints:
            checkpoint.check_unchanged()
        _check_hashes(hashes, expected or {})
        metadata = {PROVENANCE: json.dumps(provenance.record(hashes), sort_keys=True)}
        for shard in parts:
            replace_metadata(_place(part, shard, folder), shard.tensors, metadata)
        if folder:
            write_index(part, parts)
            if finish is not None:
                finish(part, hashes)
    files = tuple(shard.file for shard in parts) if folder else (output.name,)
    written = sum(map(nbytes, specs.values()))
    return Streamed(output, files, total, written, time.perf_counter() - begun, hashes)


@contextmanager
def core_left_over() -> Iterator[None]:
    """Compute with one core fewer than there are, because hashing and writing need it; put back afterwards.

    Threads that wait for each other on cores that others use cost many times what they save.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, (os.cpu_count() or 2) - 1)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fused_blocks(name: str, states: Sequence[State], plan: FusionPlan, base: State) -> Iterator[tuple[Tensor, int]]:
    """One fused tensor block by block from the first row to the last, with the members' bytes it stands for.

    Raises:
        BadWeights: a member holds NaN or infinity there.
        MembersDiffer: an integer tensor with more than one entry differs between the members (quantised weights).
    """
    tensors = [state[name] for state in states]
    ancestor = base.get(name)
    read = sum(tensor.nbytes for tensor in (*tensors, *([] if ancestor is None else [ancestor])))
    if not (tensors[0].dtype.is_floating_point or tensors[0].dtype.is_complex):
        yield _whole_numbers(name, tensors), read
        return
    rows = FusedRows(tensors, plan, name, ancestor)
    for start in range(0, rows.count, rows.step):
        stop = min(start + rows.step, rows.count)
        block = rows.block(start, stop)
        if not bool(torch.isfinite(block.sum(dtype=torch.promote_types(block.dtype, torch.float32)))):
            _refuse_bad(name, tensors, block)
        yield block, read * stop // rows.count - read * start // rows.count


def _named_blocks(name: str, members: Members, plan: FusionPlan, base: State) -> Iterator[tuple[Tensor, int]]:
    """The fused blocks; where numbers are bad, the error names the file."""
    try:
        yield from fused_blocks(name, members.states, plan, base)
    except BadWeights:
        for m, state in enumerate(members.states):
            check_finite(name, state[name], members.owner(m))
        raise


def _whole_numbers(name: str, tensors: Sequence[Tensor]) -> Tensor:
    if name.rpartition(".")[2] == "num_batches_tracked":
        return torch.stack(list(tensors)).amax(0)
    for m, tensor in enumerate(tensors[1:], 1):
        if tensor.numel() > 1 and not torch.equal(tensor, tensors[0]):
            raise MembersDiffer(
                f"{name} holds {tensor.dtype} that differ between models[0] and models[{m}]; whole numbers cannot be "
                "fused (quantised weights must be dequantised first)"
            )
    return tensors[0].clone()


def _refuse_bad(name: str, tensors: Sequence[Tensor], block: Tensor) -> None:
    for m, tensor in enumerate(tensors):
        flat = tensor.reshape(-1)
        bad = sum(int((~torch.isfinite(flat[i : i + PIECE])).sum()) for i in range(0, len(flat), PIECE))
        if bad:
            raise BadWeights(f"{name} of models[{m}] holds {bad} NaN or infinite of {tensor.numel()} entries")
    if not bool(torch.isfinite(block).all()):
        raise BadWeights(f"{name}: the sum of the members' tensors is too large for {block.dtype}")


def _converted(block: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    if block.dtype == dtype:
        return block
    converted = block.to(dtype)
    if not bool(torch.isfinite(converted).all()):
        raise CheckpointError(
            f"{name} has entries up to {float(block.abs().max()):.3g}, which {dtype} cannot hold; choose bfloat16"
        )
    return converted


def _spec(name: str, states: Sequence[State], plan: FusionPlan, dtype: torch.dtype | None) -> Spec:
    first = states[0][name]
    info = plan.graph.tensors.get(name)
    own = first.dtype if dtype is None or not first.dtype.is_floating_point else dtype
    return own, tuple(first.shape) if info is None else info.shape


def _place(part: Path, shard: Shard, folder: bool) -> Path:
    return part / shard.file if folder else part


def _check_output(output: Path, folder: bool, size: int) -> None:
    if not output.parent.is_dir():
        raise CheckpointError(f"{output}: the folder {output.parent} does not exist")
    if folder and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output} exists and is not empty; choose another name or remove it first")
    free = shutil.disk_usage(output.parent).free
    if free < size + RESERVE:
        raise CheckpointError(f"{output} needs {size_text(size)}, but only {size_text(free)} of the disk are free")


def _check_memory(
    plan: FusionPlan, states: Sequence[State], base: State, names: Iterable[str], max_memory: int
) -> None:
    for name in names:
        if states[0][name].dtype.is_floating_point:
            needed = FusedRows([state[name] for state in states], plan, name, base.get(name)).working_bytes
            if needed > max_memory:
                raise OptionError(
                    f"{name} needs {size_text(needed)} at once, because soft maps mix, or the operator compares, all "
                    f"of its rows; max_memory is {size_text(max_memory)}"
                )


def _check_hashes(found: Mapping[Path, str], expected: Mapping[Path, str]) -> None:
    for path, digest in expected.items():
        if found.get(path) != digest:
            raise CheckpointError(
                f"{path} has the SHA-256 hash {found.get(path)}, but the plan was made for {digest}; plan again"
            )
