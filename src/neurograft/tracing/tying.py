"""Tensors that make and read the same neurons (embedding and head), and the norm in front of the reader."""

from collections.abc import Iterator, Mapping, Sequence

from neurograft.tracing.flow import MOVING, Flow
from neurograft.tracing.parts import Group, TensorInfo, Tied, Use

# ops between a norm and the reader that leave its result what it is, but for where it lies and a scalar factor (T5)
_PASSING = MOVING | {"slice", "index", "select", "mul", "div"}
_NORMS = {"native_layer_norm", "_fused_rms_norm", "native_batch_norm", "native_group_norm"}


def find_tied(
    groups: Sequence[Group], tensors: Mapping[str, TensorInfo], uses: Sequence[Use], flow: Flow
) -> Iterator[Tied]:
    """Every free group with a dim that is made and read at once."""
    for group in groups:
        if group.fixed:
            continue
        for name in dict.fromkeys(slot.tensor for slot in group.slots):
            if any({"in", "out"} <= roles.get(group.name, frozenset()) for roles in tensors[name].roles):
                readers = [use.node for use in uses if use.tensor == name and use.input is not None]
                yield Tied(name, group.name, norm_before(readers[0], tensors, flow) if readers else ())


def norm_before(reader: int, tensors: Mapping[str, TensorInfo], flow: Flow) -> tuple[str, ...]:
    """Scale and shift of the affine norm whose result only this node reads; empty if there is none."""
    shift: tuple[str, ...] = ()
    while flow.into[reader]:
        edge = flow.into[reader][0]
        node = flow.nodes[edge.source]
        if len(flow.readers(edge.source)) > 1 or not _PASSING.issuperset(edge.ops) or not node.tensors:
            return ()
        if node.op in _NORMS:
            return tuple(name for name in node.tensors if tensors[name].kind in ("scale", "shift"))
        if node.op == "mul":
            # a norm written out: its scale is the last thing it does, or the shift is
            return node.tensors + shift
        if node.op != "add" or shift:
            return ()
        shift, reader = node.tensors, edge.source
    return ()


__all__ = ["find_tied", "norm_before"]
