"""Ops that take blocks apart and put them together: along their dim, each block goes its own way."""

from collections.abc import Sequence

from neurograft.tracing.algebra import reason
from neurograft.tracing.blocks import (
    Blank,
    Blocks,
    Label,
    axes_at,
    become,
    common,
    cut,
    dropped,
    filled,
    join,
    meet,
    region,
    settled,
    sizes_of,
    taken,
    with_size,
)
from neurograft.tracing.labels import Labels
from neurograft.tracing.reasons import Because
from neurograft.tracing.rules.blockwise import following, whole
from neurograft.tracing.rules.table import Result, Results, Rule, arg, result_shape, tensor
from neurograft.tracing.tape import Op

_SPLITS = ("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes")


def _apart(label: Label, dim: int) -> bool:
    # whether the label has blocks along the dim, or may get some
    return isinstance(label, Blank) or (isinstance(label, Blocks) and label.dim == dim)


@whole("select", "select_copy")
def select(labels: Labels, op: Op, _: Rule) -> Result | None:
    """One position, and with it one block."""
    label = labels.raw(tensor(op, 0))
    sizes = sizes_of(label)
    dim = arg(op, 1) % len(sizes)
    if not _apart(label, dim):
        return None
    return dropped(region(label, dim, int(arg(op, 2)) % sizes[dim], 1, labels.why), dim)


@whole("unbind", "unbind_copy")
def unbind(labels: Labels, op: Op, _: Rule) -> Result | None:
    """Every position by itself."""
    label = labels.raw(tensor(op, 0))
    dim = arg(op, 1, 0) % len(sizes_of(label))
    if not _apart(label, dim):
        return None
    return [dropped(region(label, dim, i, 1, labels.why), dim) for i in range(len(op.results))]


@whole("slice", "slice_copy")
def slice_(labels: Labels, op: Op, _: Rule) -> Result | None:
    """Some positions and their blocks."""
    label = labels.raw(tensor(op, 0))
    sizes = sizes_of(label)
    dim = arg(op, 1, 0) % len(sizes)
    if not _apart(label, dim):
        return None
    start, stop, step = slice(arg(op, 2), arg(op, 3), arg(op, 4, 1)).indices(sizes[dim])
    if step == 1:
        return region(label, dim, start, max(stop - start, 0), labels.why)
    return taken(filled(label), dim, range(start, stop, step), labels.why)


@whole(*_SPLITS, "tensor_split", "split_copy", "split_with_sizes_copy")
def split(labels: Labels, op: Op, _: Rule) -> Result | None:
    """Every part with its blocks."""
    label = labels.raw(tensor(op, 0))
    dim = arg(op, 2, 0) % len(sizes_of(label))
    if not _apart(label, dim):
        return None
    found: Results = []
    start = 0
    for i in range(len(op.results)):
        length = result_shape(op, i)[dim]
        found.append(region(label, dim, start, length, labels.why))
        start += length
    return found


@whole("alias", "detach")
def alias(labels: Labels, op: Op, _: Rule) -> Result | None:
    """The same memory: what is written to the one is in the other."""
    return labels.raw(tensor(op, 0))


@whole("copy_")
def copy(labels: Labels, op: Op, _: Rule) -> Result | None:
    """What a blank is filled with is what it is."""
    onto, source = labels.raw(tensor(op, 0)), labels.label(tensor(op, 1))
    if not isinstance(onto, Blank) or sizes_of(source) != onto.shape or labels.is_weight(tensor(op, 1)):
        return None
    become(onto, filled(source))
    return onto


@whole("index_put_")
def put(labels: Labels, op: Op, _: Rule) -> Result | None:
    """Values written to positions whose numbers are constant."""
    onto, values = labels.raw(tensor(op, 0)), labels.label(tensor(op, 2))
    given = [(d, index) for d, index in enumerate(arg(op, 1)) if index is not None]
    if len(given) != 1 or arg(op, 3, False) or not _apart(onto, given[0][0]):
        return None
    ((dim, index),) = given
    sizes = sizes_of(onto)
    places = labels.constant(index)
    if places is None or sizes_of(values) != with_size(sizes, dim, len(places)):
        return None
    for place, value in zip(places, cut(values, dim, [1] * len(places), labels.why), strict=True):
        meet(filled(region(onto, dim, place % sizes[dim], 1, labels.why)), filled(value), labels.why)
    return labels.raw(tensor(op, 0))


@whole("index", "_unsafe_index", "index_select", "flip")
def look_up(labels: Labels, op: Op, _: Rule) -> Result | None:
    """Positions by constant numbers along the blocks' dim."""
    label = labels.label(tensor(op, 0))
    sizes = sizes_of(label)
    found = _places(labels, op, sizes)
    if found is None or not isinstance(label, Blocks) or found[0] != label.dim:
        return None
    dim, places = found
    return taken(label, dim, [place % sizes[dim] for place in places], labels.why)


def _places(labels: Labels, op: Op, sizes: Sequence[int]) -> tuple[int, Sequence[int]] | None:
    # the dim that positions are taken from, and their numbers
    if op.name == "flip":
        dims = [d % len(sizes) for d in arg(op, 1)]
        return (dims[0], range(sizes[dims[0]] - 1, -1, -1)) if len(dims) == 1 else None
    if op.name == "index_select":
        dim, index = arg(op, 1) % len(sizes), tensor(op, 2)
    else:
        given = [(d, index) for d, index in enumerate(arg(op, 1)) if index is not None]
        if len(given) != 1:
            return None
        ((dim, index),) = given
    places = labels.constant(index)
    return None if places is None else (dim, places)


@following("index", "_unsafe_index")
def beside_index(op: Op, sizes: tuple[int, ...], dim: int) -> int | None:
    """Positions of another dim are looked up."""
    given = [(d, index) for d, index in enumerate(arg(op, 1)) if index is not None]
    if len(given) != 1 or str(given[0][1].dtype) in ("torch.bool", "torch.uint8"):
        return None
    looked = given[0][0]
    return None if looked == dim else dim + (len(op.shapes[0] or ()) - len(sizes) if looked < dim else 0)


@following("index_select")
def beside_index_select(op: Op, sizes: tuple[int, ...], dim: int) -> int | None:
    """Positions of another dim are looked up."""
    return None if arg(op, 1) % len(sizes) == dim else dim


def side_by_side(labels: Labels, every: Sequence[Label], dim: int, why: Because) -> Label:
    """Tensors joined along a dim: blocks if their positions there have a meaning, else all their other dims meet."""
    every = [filled(label) for label in every]
    across = next((label for label in every if isinstance(label, Blocks) and label.dim != dim), None)
    if across is not None:
        lengths = common([(label, across.dim) for label in every])
        rows = [cut(label, across.dim, lengths, labels.why) for label in every]
        joined = [side_by_side(labels, column, dim, why) for column in zip(*rows, strict=True)]
        return join(across.dim, joined, across.why)
    whole_label = join(dim, every, why)
    meaningful = all(reason(axis) is not None for label in every for axis in axes_at(label, dim))
    return whole_label if meaningful else settled(whole_label, labels.why)


@whole("cat", "concat", "_cat", "stack")
def joined(labels: Labels, op: Op, found: Rule) -> Result | None:
    """The rule for joining takes blocks."""
    return found(labels, op)


def replaced_part(labels: Labels, label: Label, source: Label, dim: int, places: range) -> Label:
    """A label with the positions `places` along a dim replaced by `source`."""
    lengths = [1] * sizes_of(label)[dim] if places.step > 1 else [places.start, len(places)]
    lengths += [sizes_of(label)[dim] - sum(lengths)]
    pieces = cut(label, dim, lengths, labels.why)
    own = cut(source, dim, [1] * len(places) if places.step > 1 else [len(places)], labels.why)
    for k, piece in zip(places if places.step > 1 else [1], own, strict=True):
        pieces[k] = piece
    return side_by_side(labels, [piece for piece, n in zip(pieces, lengths, strict=True) if n], dim, labels.why)


__all__ = ["replaced_part", "side_by_side"]
