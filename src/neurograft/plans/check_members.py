"""Does a plan belong to these members, and a network to the plan?"""

from collections.abc import Sequence

from torch import nn

from neurograft.errors import MembersDiffer, PlanError
from neurograft.members.checks import check_fixed_widths, check_models, check_names, check_shapes
from neurograft.members.members import Members
from neurograft.members.states import State, state_of
from neurograft.plans.plan import FusionPlan


def members_for(plan: FusionPlan, models: Sequence[nn.Module] | Members) -> Members:
    """The members of a plan, from the networks it was made for or from members that were made before.

    They are in canonical form if the plan's maps are for that.

    Raises:
        PlanError: the plan was made for another number of members.
        MembersDiffer: these are not the members the plan was made for.
    """
    if isinstance(models, Members):
        members = models
    else:
        check_models(models)
        members = Members.traced(models, plan.graphs)
    if len(members) != plan.members:
        raise PlanError(f"the plan was made for {plan.members} members, got {len(members)}")
    first, graph = members.states[0], plan.graphs[0]
    if missing := [name for name in graph.tensors if name not in first]:
        raise MembersDiffer(f"the plan moves {missing[0]}, which these members do not have; it was made for others")
    known = {*graph.tensors, *graph.unreached}
    unknown = [name for name, x in first.items() if name not in known and x.is_floating_point() and x.dim()]
    if unknown and plan.maps:
        raise MembersDiffer(f"these members have {unknown[0]}, which the plan does not have; it was made for others")
    check_shapes(members.states, plan.graphs)
    check_fixed_widths(plan.graphs)
    return in_form(plan, members)


def in_form(plan: FusionPlan, members: Members) -> Members:
    """The members as the plan's maps take them: in canonical form if they are for that."""
    return members.canonical if plan.canonical else members


def base_state(plan: FusionPlan, members: Members) -> State:
    """The tensors of the members' ancestor, empty for plans that do without.

    Raises:
        PlanError: the plan needs an ancestor and the members have none.
        MembersDiffer: it is another than the plan was made for.
    """
    if plan.base is None:
        return {}
    if members.base is None:
        raise PlanError(f"the plan's operator {plan.operator} needs the members' ancestor: Members(..., base=...)")
    state = members.base.states[0]
    check_names((members.states[0], state), ("models[0]", "the base"))
    check_shapes((state,), plan.base.graphs, "the base")
    return state


def state_of_fused(plan: FusionPlan, fused: nn.Module, members: Members) -> State:
    """The tensors of a network that the plan made.

    Raises:
        PlanError: a network of another class, or members on disk, which cannot be run.
        MembersDiffer: tensors of other names or shapes.
    """
    if members.models is None:
        raise PlanError("recovery runs the members, but these lie on disk; load them into networks")
    kind = type(members.networks[0])
    if type(fused) is not kind:
        raise PlanError(f"fused is a {type(fused).__name__} but the members are {kind.__name__}")
    own = state_of(fused)
    for name, info in plan.graph.tensors.items():
        if name not in own:
            raise MembersDiffer(f"the plan moves {name}, which fused does not have; it was made for others")
        if tuple(own[name].shape) != info.shape:
            raise MembersDiffer(
                f"{name} of fused has shape {tuple(own[name].shape)}, the plan makes {info.shape}; "
                "pass the network that apply(plan, models) gave"
            )
    return own
