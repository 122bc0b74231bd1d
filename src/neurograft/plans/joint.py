"""Joint groups, whose fused neurons all members make together: the rows of [A_1 … A_k] sum to 1 jointly."""

from collections.abc import Container, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from neurograft.axes.layout import layout_size
from neurograft.axes.maps import NeuronMap, PerUnit, row_sums
from neurograft.axes.mixing import unit_positions
from neurograft.errors import PlanError
from neurograft.tracing.graph import NeuronGraph, TensorInfo

ROUNDING = 1e-4  # of shares in float32


def check_joint(maps: Mapping[str, Sequence[NeuronMap]], joint: Iterable[str]) -> None:
    """Refuse maps of joint groups by which a fused neuron would be more or less than one.

    Raises:
        PlanError: names the group, the neuron, and what its row of [A_1 … A_k] sums to.
    """
    for group in joint:
        if any(isinstance(own.merge, PerUnit) for own in maps[group]):
            raise PlanError(f"group {group}: neurons inside units cannot be made of all members together")
        total = torch.stack([row_sums(own.merge) for own in maps[group]]).sum(0)
        away = (total - 1).abs()
        if len(away) and not float(away.max()) <= ROUNDING:
            worst = int(away.argmax())
            raise PlanError(
                f"group {group}: the rows of [A_1 … A_k] must sum to 1 jointly, because a fused neuron is made of all "
                f"members together; neuron {worst} sums to {float(total[worst]):.4g}"
            )


def made_by(info: TensorInfo, moved: Container[str]) -> bool:
    """Whether an out or elementwise axis of the tensor belongs to one of the moved groups."""
    return any(roles & {"out", "elementwise"} for dim in info.roles for group, roles in dim.items() if group in moved)


def enters_unscaled(info: TensorInfo, graph: NeuronGraph, moved: Container[str]) -> bool:
    """Whether c = 1 for a tensor: made along an axis of a joint group, and not the norm of a tied head."""
    return made_by(info, moved) and not carries_weights(info, graph, moved)


def shared_positions(info: TensorInfo, moved: Container[str]) -> dict[int, Tensor]:
    """The places of no moved group along each axis of a tensor that also makes moved neurons.

    An entry that lies at such places on all these axes belongs to every member and is averaged, although the tensor
    enters whole elsewhere (one layer that makes hidden neurons beside outputs, a norm over both). Empty if a moved
    group fills an axis.

    Returns:
        dimension -> which positions, shape `(positions,)`, bool.

    Example:
        >>> from neurograft.axes.layout import Factor
        >>> layout = (Factor("output", 1),), (Factor("hidden", 2),)
        >>> roles = {"output": frozenset({"out"}), "hidden": frozenset({"out"})}
        >>> shared_positions(TensorInfo("bias", (3,), torch.float32, "bias", False, (layout,), (roles,)), {"hidden"})
        {0: tensor([ True, False, False])}
    """
    found = {}
    for dim, layout in enumerate(info.layouts):
        made = [g for g, roles in info.roles[dim].items() if g in moved and roles & {"out", "elementwise"}]
        if not made:
            continue
        shared = torch.ones(layout_size(layout), dtype=torch.bool)
        for group in made:
            shared[unit_positions(layout, group)] = False
        if not bool(shared.any()):
            return {}
        found[dim] = shared
    return found


def carries_weights(info: TensorInfo, graph: NeuronGraph, moved: Container[str]) -> bool:
    """Whether a tensor belongs to the affine norm in front of a head that is tied to its embedding.

    The head cannot be scaled by the members' weights, so the norm is, and it is mapped as the head would read it:
    where a fused neuron stands for several, their scales add up.
    """
    return any(info.name in tied.norm for tied in graph.tied if tied.group in moved)
