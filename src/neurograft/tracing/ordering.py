"""In which order the run makes its neurons, forwards and along a depth-first walk back from the output."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from neurograft.tracing.algebra import Var, leaves
from neurograft.tracing.labelling import Labelling
from neurograft.tracing.tape import Op, op_tensors, storage_of


def _made(labelling: Labelling, names: Mapping[Var, str]) -> dict[int, list[str]]:
    # op -> the groups that its weights make, in the order the rules noted them
    made: dict[int, list[str]] = {}
    for op, axis in labelling.main.notes.makers:
        for var in leaves(axis):
            if var in names:
                made.setdefault(id(op), []).append(names[var])
    return made


def execution_order(labelling: Labelling, names: Mapping[Var, str], chosen: Sequence[str]) -> tuple[str, ...]:
    """The chosen groups as the run first makes them; those that nothing makes come last, in parameter order."""
    made = _made(labelling, names)
    found = dict.fromkeys(name for op in labelling.steps for name in made.get(id(op), ()))
    return _completed(found, chosen)


def backward_order(labelling: Labelling, names: Mapping[Var, str], chosen: Sequence[str]) -> tuple[str, ...]:
    """The chosen groups as a depth-first walk from the output, the last operand first, meets what makes them."""
    made = _made(labelling, names)
    found = dict.fromkeys(name for op in walk_back(labelling) for name in made.get(id(op), ()))
    return _completed(found, chosen)


def _completed(found: dict[str, None], chosen: Sequence[str]) -> tuple[str, ...]:
    wanted = set(chosen)
    return tuple(dict.fromkeys([*(name for name in found if name in wanted), *chosen]))


def predecessors(steps: Sequence[Op]) -> tuple[dict[int, list[Op]], dict[int, Op]]:
    """The ops that made each op's operands (what was last written counts), and the op that made each tensor."""
    makers: dict[int, Op] = {}
    writers: dict[int, Op] = {}
    before: dict[int, list[Op]] = {}
    for op in steps:
        found: list[Op] = []
        for x in op_tensors(op):
            if id(x) in makers:
                found.append(makers[id(x)])
            written = writers.get(storage_of(x)) if writers else None
            if written is not None and written not in found:
                found.append(written)
        before[id(op)] = found
        for x in op.mutates:
            writers[storage_of(x)] = op
        for r in op.results:
            if isinstance(r, Tensor):
                makers[id(r)] = op
    return before, makers


def walk_back(labelling: Labelling) -> Iterator[Op]:
    """Ops as the walk meets them: an op is met when its reader is visited, and visited when it leaves the stack."""
    before, makers = predecessors(labelling.steps)
    met: set[int] = set()
    visited: set[int] = set()
    for _, _, output in labelling.pinned:
        root = makers.get(id(output))
        stack = [root] if root is not None else []
        while stack:
            op = stack.pop()
            if id(op) in visited:
                continue
            visited.add(id(op))
            for one in (op, *before[id(op)]):
                if id(one) not in met:
                    met.add(id(one))
                    yield one
            stack.extend(before[id(op)])


__all__ = ["backward_order", "execution_order", "predecessors", "walk_back"]
