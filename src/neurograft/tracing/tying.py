"""Tensors that make and read the same neurons (embedding and head), and the norm in front of the reader."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from neurograft.tracing.graph import Group, Tied
from neurograft.tracing.graph import TensorInfo as Info
from neurograft.tracing.labelling import Labelling
from neurograft.tracing.tape import Op, op_tensors

# ops between a norm and the reader that leave its result what it is
_PASSING = {"view", "_unsafe_view", "reshape", "clone", "slice", "_to_copy", "detach", "alias", "index", "select"}
_NORMS = {"native_layer_norm", "_fused_rms_norm", "native_batch_norm", "native_group_norm"}


def find_tied(groups: Sequence[Group], tensors: Mapping[str, Info], labelling: Labelling) -> Iterator[Tied]:
    """Every free group with a dim that is made and read at once."""
    for group in groups:
        if group.fixed:
            continue
        for name in dict.fromkeys(slot.tensor for slot in group.slots):
            if any({"in", "out"} <= roles.get(group.name, frozenset()) for roles in tensors[name].roles):
                yield Tied(name, group.name, norm_before(labelling, name))


def norm_before(labelling: Labelling, name: str) -> tuple[str, ...]:
    """Scale and shift of the affine norm whose result only this tensor's reader sees; empty if there is none."""
    for note in labelling.main.notes.uses:
        if note.names[:1] == (name,) and note.input is not None:
            return _norm_before_op(labelling, note.op)
    return ()


def _norm_before_op(labelling: Labelling, op: Op) -> tuple[str, ...]:
    makers, readers = _makers_and_readers(labelling.steps)
    shift: tuple[str, ...] = ()
    x = _activation(labelling, op)
    while x is not None and readers.get(id(x)) == 1 and id(x) in makers:
        op = makers[id(x)]
        owned = _owned(labelling, op)
        x = _activation(labelling, op)
        # a scalar factor (T5) changes nothing that matters here
        scalar = op.name in ("mul", "div") and sum(1 for _ in op_tensors(op)) == 1
        if (op.name in _PASSING or scalar) and not owned:
            continue
        if op.name in _NORMS and owned:
            kinds = labelling.main.notes.kinds
            return tuple(n for n in owned if kinds.get(n) in ("scale", "shift"))
        if op.name == "mul" and owned:
            # a norm written out: its scale is the last thing it does, or the shift is
            return owned + shift
        if op.name != "add" or not owned or shift:
            return ()
        shift = owned
    return ()


def _makers_and_readers(steps: Sequence[Op]) -> tuple[dict[int, Op], dict[int, int]]:
    makers: dict[int, Op] = {}
    readers: dict[int, int] = {}
    for op in steps:
        for x in {id(x) for x in op_tensors(op)}:
            readers[x] = readers.get(x, 0) + 1
        for r in op.results:
            if isinstance(r, Tensor):
                makers[id(r)] = op
    return makers, readers


def _activation(labelling: Labelling, op: Op) -> Tensor | None:
    return next((x for x in op_tensors(op) if not labelling.private.known(x)), None)


def _owned(labelling: Labelling, op: Op) -> tuple[str, ...]:
    names = [n for x in op_tensors(op) if labelling.private.known(x) for n in labelling.private.names[id(x)]]
    return tuple(dict.fromkeys(names))


__all__ = ["find_tied", "norm_before"]
