"""Who makes the units of a group and who reads them, so that both sides can be brought to one scale."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from neurograft.axes.layout import terms
from neurograft.axes.symmetry import Symmetry
from neurograft.tracing.classes import Found
from neurograft.tracing.parts import Absorb, Balance, Centre, Fold, Group, Place, TensorInfo, Use

LIMITS = {Symmetry.LINEAR: Symmetry.ORTHOGONAL, Symmetry.SCALED: Symmetry.PERMUTATION}


def classed(
    groups: Sequence[Group], tensors: Mapping[str, TensorInfo], uses: Sequence[Use], found: Found
) -> tuple[tuple[Group, ...], tuple[Fold | Centre | Absorb | Balance, ...]]:
    """The groups with their classes, and the steps to the canonical form in which these hold."""
    steps: list[Fold | Centre | Absorb | Balance] = list(found.folds)
    holding = {group.inside for group in groups}
    made = []
    for group in groups:
        if group.fixed:
            made.append(group)
            continue
        kind, limit = found.classes[group.name]
        step = None
        if kind is not Symmetry.PERMUTATION and group.name in holding:
            kind, limit = Symmetry.PERMUTATION, "its units hold others"
        if kind in LIMITS:
            step = _balance(group, kind, tensors, uses, found)
            if step is None:
                kind, limit = LIMITS[kind], limit or "no two sides of it can be distinguished"
        if kind not in (Symmetry.PERMUTATION, Symmetry.SCALED, Symmetry.LINEAR):
            held = _held_by(group, tensors, found.folds)
            if held is not None:
                kind, limit = Symmetry.PERMUTATION, f"the entries of {held}"
        if step is not None and kind in LIMITS:
            if kind is Symmetry.LINEAR and group.name not in found.inexact:
                steps += _absorbed(group, step, tensors, uses)
            steps.append(step)
        if kind is Symmetry.FIXING_ONE and group.name in found.centred - found.inexact:
            made_at = tuple(p for p in _places(group, tensors, "out"))
            if made_at and not set(made_at) & set(_places(group, tensors, "in")):
                steps += [Centre(group.name, (place,)) for place in made_at]  # apart: layers are read one by one
        made.append(replace(group, symmetry=kind, limit=limit))
    rotating = {group.name for group in made if group.symmetry.rotates}
    return tuple(made), tuple(s for s in steps if not isinstance(s, Fold) or s.group in rotating)


def _held_by(group: Group, tensors: Mapping[str, TensorInfo], folds: Sequence[Fold]) -> str | None:
    # a tensor that acts on each unit alone and is not linear in them
    folded = {fold.scale for fold in folds if fold.group == group.name}
    for slot in group.slots:
        alone = slot.role == "elementwise" and tensors[slot.tensor].kind not in ("bias", "shift")
        if alone and slot.tensor not in folded:
            return slot.tensor
    return None


def _balance(
    group: Group, kind: Symmetry, tensors: Mapping[str, TensorInfo], uses: Sequence[Use], found: Found
) -> Balance | None:
    each = kind is Symmetry.SCALED
    out, read, elementwise = (list(_places(group, tensors, role)) for role in ("out", "in", "elementwise"))
    folded = {fold.scale for fold in found.folds}
    elementwise = [p for p in elementwise if p.tensor not in folded]
    normed = each and any(p.tensor in found.before_norm for p in out)
    if set(out) & set(read) or (elementwise and not each):
        return None
    if group.bilinear:
        return None if each else _contracted(group, out, read, tensors, uses)
    made = [p for p in out if not (each and p.tensor in found.before_norm)]
    if normed:
        made += [p for p in elementwise if tensors[p.tensor].kind in ("scale", "shift")]
    return Balance(group.name, tuple(made), tuple(read), each) if made and read else None


def _absorbed(group: Group, step: Balance, tensors: Mapping[str, TensorInfo], uses: Sequence[Use]) -> Iterator[Absorb]:
    # the bias of values goes on into that of what reads them, that of keys changes nothing
    if group.bilinear:
        biases = tuple(p for p in step.other if tensors[p.tensor].kind == "bias")
        if biases:
            yield Absorb(group.name, biases, None, None)
        return
    biases = tuple(p for p in step.made if tensors[p.tensor].kind == "bias")
    into = {use.bias for use in uses if use.tensor == step.other[0].tensor}
    (beside,) = into if len(into) == 1 else (None,)
    flat = len(step.other) == 1 and len(tensors[step.other[0].tensor].shape) == 2  # no kernel that meets a border
    if biases and flat and beside is not None and beside not in {p.tensor for p in biases}:
        yield Absorb(group.name, biases, step.other[0], beside)


def _contracted(
    group: Group, out: Sequence[Place], read: Sequence[Place], tensors: Mapping[str, TensorInfo], uses: Sequence[Use]
) -> Balance | None:
    # two weights make what is contracted: M on one side, its contragredient on the other
    weights = [p for p in out if tensors[p.tensor].kind == "weight"]
    if len(weights) != 2 or read:
        return None
    sides: tuple[list[Place], list[Place]] = ([weights[0]], [weights[1]])
    beside = {use.bias: use.tensor for use in uses if use.bias is not None}
    for name in dict.fromkeys(p.tensor for p in out if p not in weights):
        own = [p for p in out if p.tensor == name]
        facing = [i for i, p in enumerate(weights) if p.tensor == beside.get(name)]
        if len(own) != len(facing):
            return None
        for p, side in zip(own, facing, strict=True):
            sides[side].append(p)
    return Balance(group.name, tuple(sides[0]), tuple(sides[1]), False)


def _places(group: Group, tensors: Mapping[str, TensorInfo], role: str) -> Iterator[Place]:
    for name, dim in dict.fromkeys((slot.tensor, slot.dim) for slot in group.slots if slot.role == role):
        for number, term in enumerate(terms(tensors[name].layouts[dim])):
            if any(factor.group == group.name for factor in term.factors):
                yield Place(name, dim, number)


__all__ = ["classed"]
