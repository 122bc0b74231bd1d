"""Members are checked against each other before any work is done."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from neurograft.errors import BadWeights, MembersDiffer, OptionError, PlanError, closest
from neurograft.inputs import check_model, is_sparse
from neurograft.members.states import State
from neurograft.operators.depth import depths
from neurograft.operators.settings import Gradient
from neurograft.preserve_state import same_entries
from neurograft.tracing.graph import FixedReason, NeuronGraph

Weights: TypeAlias = Sequence[float | Gradient] | Mapping[str, Sequence[float | Gradient]]
"""One number per member, or patterns of tensor names -> one number per member; each a number or a `Gradient`."""


def check_models(models: Sequence[nn.Module]) -> None:
    """Refuse what is not a list of at least two networks of one class, with values.

    Raises:
        PlanError: fewer than two models, something that is no module, or a network on the meta device.
        MembersDiffer: the models are of different classes.
    """
    if isinstance(models, nn.Module) or not isinstance(models, Sequence):
        raise PlanError(f"models must be a list of networks, not {type(models).__name__}")
    for m, model in enumerate(models):
        if not isinstance(model, nn.Module):
            raise PlanError(f"models[{m}] is a {type(model).__name__}, not a torch.nn.Module")
        check_model(model, f"models[{m}]")
    if len(models) < 2:
        raise PlanError(f"fusing needs at least two members, got {len(models)}")
    for m, model in enumerate(models[1:], 1):
        if type(model) is not type(models[0]):
            raise MembersDiffer(
                f"models[{m}] is a {type(model).__name__} but models[0] a {type(models[0]).__name__}; "
                "members must be of one class"
            )
    for m, model in enumerate(models):
        check_values(model, f"models[{m}]")
        _check_sparse(model, models[0], m)


def _check_sparse(model: nn.Module, first: nn.Module, number: int) -> None:
    # the fused network keeps a graph or a mask as it is: there must be one
    theirs = dict(first.named_buffers())
    for name, buffer in model.named_buffers():
        if is_sparse(buffer) and not (name in theirs and same_entries(buffer, theirs[name].to(buffer.device))):
            raise MembersDiffer(
                f"the sparse buffer {name} of models[{number}] is not that of models[0]; sparse buffers stay as they "
                "are and must be the same in all members"
            )


def check_values(model: nn.Module, owner: str) -> None:
    """Refuse networks whose tensors have shapes but no values.

    Raises:
        PlanError: names the first tensor on the meta device.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    without = [name for name, tensor in named if tensor.is_meta]
    if without:
        raise PlanError(
            f"{without[0]} of {owner}{_more(without)} on the meta device: shapes without values; load the weights "
            "first (model.to_empty(device=...), then load_state_dict), or fuse the checkpoints themselves with "
            "`neurograft fuse`, which reads them piece by piece"
        )


def check_names(states: Sequence[State], owners: Sequence[str] | None = None) -> None:
    """Members must hold the same tensors with the same number of dimensions and the same kind of numbers.

    Raises:
        MembersDiffer: names the first tensor that is missing, extra or of another rank.
    """
    owners = [f"models[{m}]" for m in range(len(states))] if owners is None else owners
    for owner, state in zip(owners[1:], states[1:], strict=True):
        if missing := [name for name in states[0] if name not in state]:
            raise MembersDiffer(f"{owner} lacks {missing[0]!r}" + _more(missing))
        if extra := [name for name in state if name not in states[0]]:
            raise MembersDiffer(f"{owner} has {extra[0]!r}, which {owners[0]} lacks" + _more(extra))
        for name, tensor in state.items():
            first = states[0][name]
            if tensor.dim() != first.dim():
                raise MembersDiffer(
                    f"{name} has shape {tuple(tensor.shape)} in {owner} but {tuple(first.shape)} in {owners[0]}"
                )
            if tensor.dtype.is_floating_point != first.dtype.is_floating_point:
                raise MembersDiffer(f"{name} is {tensor.dtype} in {owner} but {first.dtype} in {owners[0]}")


def _more(names: list[str]) -> str:
    more = len(names) - 1
    return f" and {more} more tensor{'s' if more > 1 else ''}" if more else ""


def check_finite(name: str, tensor: Tensor, owner: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        BadWeights: names the tensor, its owner (`models[1]`, a file) and how many entries are bad.
    """
    if not (tensor.dtype.is_floating_point or tensor.dtype.is_complex) or tensor.is_meta:
        return
    if bool(torch.isfinite(tensor.sum())):  # one cheap read; a sum may overflow, so only a bad one is looked at closely
        return
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise BadWeights(f"{name} of {owner} holds {bad} NaN or infinite of {tensor.numel()} entries")


def differing_constants(states: Sequence[State]) -> tuple[str, ...]:
    """Warn of masks and indices that differ between members: they cannot be averaged, and member 0's are taken."""
    names = [
        name
        for name, first in states[0].items()
        if not (first.dtype.is_floating_point or first.dtype.is_complex or first.is_meta)
        and name.rpartition(".")[2] != "num_batches_tracked"
        and any(state[name].shape != first.shape or not torch.equal(state[name].to(first), first) for state in states)
    ]
    if not names:
        return ()
    return (f"{names[0]!r}{_more(names)}: whole numbers that differ between the members; member 0's are taken",)


def check_shapes(states: Sequence[State], graphs: Sequence[NeuronGraph], owner: str = "") -> None:
    """Every tensor must have the shape that its member's graph has, untraced ones the shape they have in member 0.

    Raises:
        MembersDiffer: names the tensor and both shapes.
    """
    for m, (state, graph) in enumerate(zip(states, graphs, strict=True)):
        for name, tensor in state.items():
            expected = graph.tensors[name].shape if name in graph.tensors else tuple(states[0][name].shape)
            if tuple(tensor.shape) != expected:
                raise MembersDiffer(
                    f"{name} has shape {tuple(tensor.shape)} in {owner or f'models[{m}]'}, expected {expected}; "
                    "members may differ only in the widths of free groups"
                )


def check_fixed_widths(graphs: Sequence[NeuronGraph], owners: Sequence[str] | None = None) -> None:
    """Dimensions that must not change agree between members.

    Raises:
        MembersDiffer: names the tensor, both sizes and why they must agree.
    """
    owners = [f"models[{m}]" for m in range(len(graphs))] if owners is None else owners
    for group in graphs[0].groups:
        if not group.fixed and group.inside is None:
            continue
        for owner, graph in zip(owners[1:], graphs[1:], strict=True):
            if graph[group.name].size != group.size:
                where = group.slots[0].tensor if group.slots else group.name
                raise MembersDiffer(
                    f"{where} has {graph[group.name].size} positions in {owner}, {group.size} in {owners[0]} along "
                    f"an axis that must not change ({group.why or 'inside ' + str(group.inside)})"
                    + ('; for different label sets use heads="keep"' if group.reason is FixedReason.OUTPUT else "")
                )


def member_weights(
    weights: Weights | None, members: int, names: Iterable[str]
) -> tuple[tuple[float, ...] | None, dict[str, tuple[float, ...]]]:
    """The members' weights, and those of single tensors that patterns name.

    Args:
        weights: one number per member; or fnmatch patterns of tensor names -> one number per member, of which the last
            that fits counts and "*" stands for the members' weights everywhere else. A number may be a `Gradient`.
        members: number of members.
        names: of all tensors.

    Returns:
        The weights, normalised to sum to 1, None where the method may choose; and those of single tensors by name.

    Raises:
        BadWeights: as `check_member_weights`.
        OptionError: a pattern fits no tensor.

    Example:
        >>> member_weights({"*": [1, 1], "head.*": [3, 1]}, 2, ["stem.weight", "head.weight"])
        ((0.5, 0.5), {'head.weight': (0.75, 0.25)})
    """
    known, overall = list(names), None
    deep = depths(known)
    if not isinstance(weights, Mapping):
        return check_member_weights(_at(weights, 0.0), members), _over_depth(weights, members, deep, "weights")
    single: dict[str, tuple[float, ...]] = {}
    for pattern, own in weights.items():
        option = f"weights[{pattern!r}]"
        shares = check_member_weights(_at(own, 0.0), members, option)
        fits = [name for name in known if fnmatch(name, pattern)]
        if not fits or shares is None:
            raise OptionError(f"weights fit no tensor: {pattern!r}; {closest(str(pattern), known)}")
        if pattern == "*":
            overall, single = shares, {}
        else:
            single |= dict.fromkeys(fits, shares)
        single |= _over_depth(own, members, {name: deep[name] for name in fits if name in deep}, option)
    return overall, single


def shares_of_total(values: Sequence[float]) -> tuple[float, ...]:
    """What share of their sum each of some numbers is, whatever their size: the sum itself may be no number at all.

    Args:
        values: finite, not negative and not all zero.

    Example:
        >>> shares_of_total([1e308, 1e308]), shares_of_total([5e-324, 5e-324])
        ((0.5, 0.5), (0.5, 0.5))
    """
    largest = max(values)
    parts = [value / largest for value in values] if not 2.0**-500 < largest < 2.0**500 else values
    total = sum(parts)
    return tuple(part / total for part in parts)


def _over_depth(weights: Any, members: int, deep: Mapping[str, float], option: str) -> dict[str, tuple[float, ...]]:
    """The weights of tensors in blocks, where some change over the depth."""
    if not isinstance(weights, Sequence) or not any(isinstance(own, Gradient) for own in weights):
        return {}
    found = {name: check_member_weights(_at(weights, depth), members, option) for name, depth in deep.items()}
    return {name: own for name, own in found.items() if own is not None}


def _at(weights: Any, depth: float) -> Any:
    """Weights with the values that gradients have at a depth."""
    if not isinstance(weights, Sequence) or isinstance(weights, str):
        return weights
    return [own(depth) if isinstance(own, Gradient) else own for own in weights]


def check_member_weights(
    weights: Sequence[float] | None, members: int, option: str = "weights"
) -> tuple[float, ...] | None:
    """Normalise the members' weights to sum to 1; None stays None (the method's default).

    Raises:
        BadWeights: no numbers, the wrong number of them, negative, not finite, or all zero.

    Example:
        >>> check_member_weights([1, 3], 2)
        (0.25, 0.75)
    """
    if weights is None:
        return None
    try:
        if isinstance(weights, (str, Mapping)):
            raise TypeError
        values = [float(w) for w in weights]
    except OverflowError:
        raise BadWeights(f"{option} must be finite, not negative and not all zero, got {weights!r}") from None
    except (TypeError, ValueError):
        raise BadWeights(f"{option} must be a list of numbers, one per member, got {weights!r}") from None
    if len(values) != members:
        raise BadWeights(f"{option} has {len(values)} entries for {members} members")
    if any(not 0 <= w < float("inf") for w in values) or not any(values):
        raise BadWeights(f"{option} must be finite, not negative and not all zero, got {values}")
    return shares_of_total(values)
