"""Members of which only the tensors are known: without a network nothing can be aligned, but all can be combined."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from neurograft.checkpoints.reading import open_checkpoint
from neurograft.errors import PlanError
from neurograft.members.checks import check_shapes
from neurograft.members.members import Members
from neurograft.members.stored import StoredMember
from neurograft.tracing.graph import NeuronGraph


class NamedTensors(nn.Module):
    """Stands for a network that nobody describes."""


def open_tensors(paths: Sequence[Path], base: Path | None = None) -> Members:
    """Open checkpoints whose tensors of one name belong together.

    No group of units is known, so that a method that moves units leaves all in their places.

    Raises:
        CheckpointError: a checkpoint cannot be read.
        MembersDiffer: tensors of other names or shapes.
        PlanError: fewer than two members.
    """
    if len(paths) < 2:
        raise PlanError(f"fusing needs at least two members, got {len(paths)}")
    stored = [open_checkpoint(path) for path in (*paths, *([] if base is None else [base]))]
    found = [StoredMember(checkpoint, {name: name for name in checkpoint.tensors}) for checkpoint in stored]
    members, ancestor = found[: len(paths)], found[len(paths) :]
    network = NamedTensors()
    made = Members.on_disk(
        members,
        [network] * len(members),
        {},
        "named tensors",
        base=(ancestor[0], network) if ancestor else None,
    )
    graph = NeuronGraph((), {}, unreached=tuple(members[0].stored))
    check_shapes([member.state for member in found], [graph] * len(found))
    return made.changed(graphs=(graph,) * len(members))
