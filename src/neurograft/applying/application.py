"""`apply`: build the fused network from a plan and its members, tensor by tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from neurograft.applying.declarations import Declaration
from neurograft.applying.formula import FusedRows, fuse_tensor
from neurograft.applying.resizing import declare_sizes
from neurograft.applying.spectral import settle_spectral_norms
from neurograft.errors import PlanError
from neurograft.members.members import Members
from neurograft.members.parametrised import write_back
from neurograft.members.rebuilding import rebuild
from neurograft.members.states import State, state_of
from neurograft.plans.check_members import base_state, members_for
from neurograft.plans.plan import FusionPlan
from neurograft.preserve_state import keeps_random_state


@keeps_random_state
def apply(plan: FusionPlan, models: Sequence[nn.Module] | Members) -> nn.Module:
    """Make the fused network: class of `models[0]`, and its shapes unless the plan has other widths.

    Each tensor is W_fused = Σ_m c_m · (A_m on each out or elementwise axis) W_m (B_m on each in axis), computed in
    float32 where the members' precision is lower and returned in theirs. Integer buffers are those of member 0,
    `num_batches_tracked` the largest member's. The members are only read.

    Raises:
        PlanError: the plan was made for another number of members, or the members lie on disk.
        MembersDiffer: these are not the members the plan was made for.

    Example:
        >>> import torch, neurograft as ng
        >>> nets = [torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)) for _ in "ab"]
        >>> plan = ng.plan(nets, torch.randn(1, 4))
        >>> ng.apply(plan, nets)
        Sequential(
          (0): Linear(in_features=4, out_features=8, bias=True)
          (1): ReLU()
          (2): Linear(in_features=8, out_features=2, bias=True)
        )

    Source: docs/design.md, "One formula".
    """
    members = members_for(plan, models)
    if members.stored:
        raise PlanError("these members lie on disk, where `fuse_stored` applies a plan to them block by block")
    return assemble(plan, members)[0]


def assemble(plan: FusionPlan, members: Members) -> tuple[nn.Module, list[Declaration]]:
    """The network of a plan whose members were checked, and the declared sizes that had to change with its widths."""
    base, statistics = base_state(plan, members), measured(plan, members)
    fused = {
        name: fuse_named(
            name, [state[name] for state in members.states], plan, base.get(name), statistics.get(name, ())
        )
        for name in members.states[0]
    }
    model = rebuild(members.networks[0], fused)
    changed = declare_sizes(model, plan.graphs[0], plan.graph)
    write_back(model)
    settle_spectral_norms(model)
    return model, changed


def is_applied(own: State, plan: FusionPlan, members: Members) -> bool:
    """Whether a network's tensors are what the plan makes of the members, compared up to the first difference.

    Args:
        own: the network's tensors.
        plan: the plan.
        members: its members.
    """
    if any(is_parametrized(module) for module in members.networks[0].modules()):  # what acts is not what is written
        made = state_of(assemble(plan, members)[0])
        return all(torch.equal(tensor, made[name].to(tensor.device)) for name, tensor in own.items() if name in made)
    base, statistics = base_state(plan, members), measured(plan, members)
    return all(
        _blocks_are(
            own[name], name, [state[name] for state in members.states], plan, base.get(name), statistics.get(name, ())
        )
        for name in own
        if name in members.states[0]
    )


def measured(plan: FusionPlan, members: Members) -> dict[str, list[Tensor]]:
    """What the plan's operator measures on batches: for every tensor it looks at, one for each member.

    It is measured on the members as the plan aligns them, so that it is in the basis in which they are combined.

    Raises:
        PlanError: the operator needs calibration batches and the members have none.
    """
    if not plan.operator.needs_data:
        return {}
    if members.calibration is None:
        raise PlanError(f"the plan's operator {plan.operator} needs calibration batches: Members(..., calibration=...)")
    networks = [_aligned(plan, members, m) for m in range(len(members))]
    found = plan.operator.measured(networks, members.calibration, plan.seed)
    return {name: [own[name] for own in found] for name in found[0] if all(name in own for own in found)}


def _aligned(plan: FusionPlan, members: Members, m: int) -> nn.Module:
    """One member in the basis of the fused network."""
    maps = {group: (own[m],) for group, own in plan.maps.items()}
    alone = FusionPlan("aligned", (plan.graphs[m],), maps, (1.0,))
    state = {name: fuse_named(name, [tensor], alone) for name, tensor in members.states[m].items()}
    return rebuild(members.networks[m], state)


def _blocks_are(
    own: Tensor,
    name: str,
    tensors: Sequence[Tensor],
    plan: FusionPlan,
    base: Tensor | None,
    statistics: Sequence[Tensor],
) -> bool:
    """Whether a tensor is what the plan makes, block by block."""
    first = tensors[0]
    if not (first.dtype.is_floating_point or first.dtype.is_complex):
        return torch.equal(own, fuse_named(name, tensors, plan, base, statistics).to(own.device))
    rows = FusedRows([tensor.to(first.device) for tensor in tensors], plan, name, _beside(base, first), statistics)
    for start in range(0, rows.count, rows.step):
        stop = min(start + rows.step, rows.count)
        part = own[start:stop] if own.dim() else own
        if not torch.equal(part, rows.block(start, stop).to(own.device)):
            return False
    return True


def fuse_named(
    name: str,
    tensors: Sequence[Tensor],
    plan: FusionPlan,
    base: Tensor | None = None,
    statistics: Sequence[Tensor] = (),
) -> Tensor:
    """One fused tensor in the members' own dtype and on member 0's device."""
    first = tensors[0]
    if not (first.dtype.is_floating_point or first.dtype.is_complex):
        if name.rpartition(".")[2] == "num_batches_tracked":
            return torch.stack([t.to(first.device) for t in tensors]).amax(0)
        return first.clone()
    info = plan.graph.tensors.get(name)
    shape = tuple(first.shape) if info is None else info.shape
    narrow = first.dtype in (torch.float16, torch.bfloat16)
    out = torch.zeros(shape, dtype=torch.float32 if narrow else first.dtype, device=first.device)
    fuse_tensor([t.to(first.device) for t in tensors], plan, name, out, _beside(base, first), statistics)
    return out.to(first.dtype)


def _beside(base: Tensor | None, first: Tensor) -> Tensor | None:
    return None if base is None else base.to(first.device)
