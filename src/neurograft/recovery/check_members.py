"""Does a plan belong to these networks?"""

from collections.abc import Sequence

from torch import nn

from neurograft.errors import MembersDiffer, PlanError
from neurograft.members.members import check_models, check_names, check_shapes, state_of
from neurograft.plans.plan import FusionPlan


def check_belongs(plan: FusionPlan, models: Sequence[nn.Module], fused: nn.Module) -> None:
    """Refuse a plan that was made for other members, or a network that it did not make.

    Raises:
        PlanError: another number of members, or a fused network of another class.
        MembersDiffer: tensors of other names or shapes.
    """
    check_models(models)
    if len(models) != plan.members:
        raise PlanError(f"the plan was made for {plan.members} members, got {len(models)} models")
    if type(fused) is not type(models[0]):
        raise PlanError(f"fused is a {type(fused).__name__} but the members are {type(models[0]).__name__}")
    states = [state_of(model) for model in models]
    check_names(states)
    check_shapes(states, plan.graphs)
    own = state_of(fused)
    for name, info in plan.graph.tensors.items():
        if name not in own or name not in states[0]:
            raise MembersDiffer(f"the plan moves {name}, which these networks do not have; it was made for others")
        if tuple(own[name].shape) != info.shape:
            raise MembersDiffer(
                f"{name} of fused has shape {tuple(own[name].shape)}, the plan makes {info.shape}; "
                "pass the network that apply(plan, models) gave"
            )
