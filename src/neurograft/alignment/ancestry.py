"""Recognising members that are aligned already, because they were trained from one ancestor."""

from collections.abc import Sequence

from torch import Tensor

from neurograft.axes.real_parts import real_parts
from neurograft.members.members import Members
from neurograft.members.states import State
from neurograft.tracing.graph import NeuronGraph, Slot

SAMPLED = 32  # neurons compared per tensor: enough to decide, and cheap beside any fusion
PARTS = 4  # positions looked at per neuron (a head has many)
READ = 512  # numbers read per position and dimension, about
ALIGNED_BELOW = 0.5


def distance_ratio(first: State, second: State, graph: NeuronGraph) -> float:
    """How far neurons of the same place lie apart, relative to neurons of different places.

    ratio = Σ |w_u − v_u|² / Σ |w_u − v_(u+1)|² over neurons u of every free group, where w and v are the rows that
    make a neuron in the two networks; about 1 for independent networks, about 0 for children of one ancestor.
    """
    same = other = 0.0
    for group in graph.free:
        for slot in group.slots:
            if slot.role == "out" and graph.tensors[slot.tensor].kind == "weight" and group.size > 1:
                w, v = (_rows(state[slot.tensor], slot, group.size) for state in (first, second))
                same += float((w - v).square().sum())
                other += float((w - v.roll(-1, 0)).square().sum())
    return same / other if other else 1.0


def relative_distance(first: State, second: State) -> float:
    """How far two networks lie apart, as a share of what independent ones would: Σ |w − v|² / Σ (|w|² + |v|²).

    Over the first entries of all matrices; about 1 for independent networks, about 0 for children of one ancestor.
    """
    apart = size = 0.0
    for name, tensor in first.items():
        if tensor.dim() > 1 and tensor.is_floating_point():
            w, v = (state[name].detach()[:SAMPLED].double() for state in (first, second))
            apart += float((w - v).square().sum())
            size += float(w.square().sum() + v.square().sum())
    return apart / size if size else 0.0


def _rows(tensor: Tensor, slot: Slot, size: int) -> Tensor:
    """A sample of the rows that make the first neurons, shape `(neurons, numbers)`: views as far as that goes."""
    tensor = real_parts(tensor.detach())
    for dim in range(tensor.dim()):
        if dim != slot.dim:
            tensor = tensor[(slice(None),) * dim + (slice(None, None, max(1, tensor.shape[dim] // READ)),)]
    places = slot.positions(min(size, SAMPLED))[:, :PARTS]
    return tensor.movedim(slot.dim, 0)[places.to(tensor.device)].flatten(1).double()


def aligned_members(members: Members) -> tuple[bool, ...]:
    """For every member whether its neurons already stand where member 0's do; member 0 itself always does.

    A member counts as aligned if neurons of the same place lie less than half as far apart (squared) as neurons
    of different places. Members of other widths never are.
    """
    found = [True]
    if not members.graph.free:  # no neuron can stand in another place
        return (True,) * len(members.states)
    for m in range(1, len(members.states)):
        same_widths = all(g.size == members.graphs[m][g.name].size for g in members.graph.free)
        found.append(
            same_widths and distance_ratio(members.states[0], members.states[m], members.graph) < ALIGNED_BELOW
        )
    return tuple(found)


def unaligned_notes(aligned: Sequence[bool]) -> tuple[str, ...]:
    """A warning for averaging: none if all members are aligned."""
    apart = [str(m) for m, there in enumerate(aligned) if not there]
    if not apart:
        return ()
    who = f"member {apart[0]} is" if len(apart) == 1 else f"members {', '.join(apart)} are"
    return (
        f"{who} not aligned with member 0 (neurons of the same place lie as far apart as any): the average of such "
        "networks usually computes like none of them; use permutation, optimal_transport or transplant",
    )
