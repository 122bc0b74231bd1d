"""From a cost matrix to a matching: one neuron to one neuron, or mass to mass."""

import os
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from neurograft.errors import OptionError, PlanError

Solver = Literal["exact", "sinkhorn"]

ASSIGNMENT_BYTES = 12  # per entry of the cost matrix: float32, and SciPy's float64 copy
NETWORK_SIMPLEX_BYTES = (
    48  # per entry: cost, plan and the arcs of the network simplex (measured: 41 and the float32 cost)
)
SINKHORN_BYTES = 48  # per entry: cost, kernel and plan in float64, and their working copies
MOST_PIVOTS = 10_000_000
MOST_ROUNDS = 2_000
TOLERANCE = 1e-9  # how far Sinkhorn's marginals may be off before they are rounded to exact ones


def assign(cost: Tensor) -> Tensor:
    """The one-to-one matching of least total cost.

    Args:
        cost: shape `(member, target)`, square.

    Returns:
        For every target neuron the member's neuron, shape `(target,)`, int64.

    Raises:
        PlanError: the cost is not finite.

    Example:
        >>> assign(torch.tensor([[5.0, 0.0, 5.0], [0.0, 5.0, 5.0], [5.0, 5.0, 0.0]]))
        tensor([1, 0, 2])
    """
    rows, columns = linear_sum_assignment(_as_array(cost))
    order = torch.empty(cost.shape[1], dtype=torch.long)
    order[torch.from_numpy(columns)] = torch.from_numpy(rows)
    return order


@dataclass(frozen=True, eq=False)
class Transport:
    """A transport plan T of shape `(member, target)`, float64, and a warning about it."""

    plan: Tensor
    warning: str | None = None


def transport(cost: Tensor, member: Tensor, target: Tensor, solver: Solver = "exact", reg: float = 0.05) -> Transport:
    """Move the member's mass onto the target's neurons at least cost, min over T of Σ T_ij cost_ij.

    Args:
        cost: shape `(member, target)`.
        member: the member's marginal α, shape `(member,)`, entries above 0 that sum to 1.
        target: the target's marginal β, shape `(target,)`, likewise.
        solver: "exact" (network simplex) or "sinkhorn" (adds reg · mean(cost) · Σ T_ij log T_ij).
        reg: entropic regularisation as a share of the mean cost; "sinkhorn" only.

    Returns:
        The plan; its rows sum to α and its columns to β to the last bits of float64.

    Raises:
        PlanError: the cost is not finite, or a marginal has a neuron without mass.

    Example:
        >>> uniform = torch.tensor([0.5, 0.5]), torch.tensor([1.0])
        >>> transport(torch.tensor([[1.0], [2.0]]), *uniform).plan
        tensor([[0.5000],
                [0.5000]], dtype=torch.float64)

    Source: Cuturi 2013, arXiv:1306.0895; Altschuler et al. 2017, arXiv:1705.09634, algorithm 2 (the rounding).
    """
    alpha, beta = check_marginal(member, "member"), check_marginal(target, "target")
    if solver == "sinkhorn":
        plan, warning = _sinkhorn(cost, alpha.to(cost.device), beta.to(cost.device), reg)
        plan = plan.cpu()
    else:
        plan, warning = _network_simplex(cost, alpha, beta)
    return Transport(round_to_marginals(plan, alpha, beta), warning)


def check_marginal(mass: Tensor, whose: str) -> Tensor:
    """The mass as float64 on the CPU, summing to 1.

    Raises:
        PlanError: a neuron has no mass, or an infinite or undefined one.
    """
    mass = mass.detach().double().cpu()
    if not bool(torch.isfinite(mass).all()):
        raise PlanError(
            f"the {whose}'s marginal is not finite in {int((~mass.isfinite()).sum())} of {len(mass)} neurons"
        )
    if bool((mass <= 0).any()):
        bad = (mass <= 0).nonzero().flatten().tolist()
        raise PlanError(
            f"the {whose}'s marginal gives no mass to neurons {bad[:5]} ({len(bad)} of {len(mass)}), so they cannot be "
            'matched; use marginals="uniform"'
        )
    return mass / mass.sum()


def round_to_marginals(plan: Tensor, member: Tensor, target: Tensor) -> Tensor:
    """The nearest plan by scaling whose rows sum to `member` and whose columns sum to `target` exactly."""
    plan = plan * (member / plan.sum(1).clamp_min(1e-300)).clamp_max(1.0)[:, None]
    plan = plan * (target / plan.sum(0).clamp_min(1e-300)).clamp_max(1.0)
    rows, columns = (member - plan.sum(1)).clamp_min(0), (target - plan.sum(0)).clamp_min(0)
    missing = columns.sum()
    return plan + torch.outer(rows, columns) / missing if float(missing) > 1e-15 else plan


def needed_bytes(member: int, target: int, solver: Solver, uniform: bool) -> int:
    """What solving one group takes at its peak, beside the networks."""
    if solver == "sinkhorn":
        per_entry = SINKHORN_BYTES
    else:
        per_entry = ASSIGNMENT_BYTES if uniform and member == target else NETWORK_SIMPLEX_BYTES
    return member * target * per_entry


def memory_there(limit: int | None) -> int:
    """Bytes that may be taken: the limit, or what the machine has."""
    return limit if limit is not None else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(group: str, member: int, target: int, solver: Solver, uniform: bool, limit: int | None) -> None:
    """Refuse before any work is done a group is too wide for the memory there is.

    Raises:
        OptionError: with what it would take, what there is, and what to do.
    """
    there = memory_there(limit)
    needed = needed_bytes(member, target, solver, uniform)
    if needed > there:
        raise OptionError(
            f"matching the {member} x {target} neurons of group {group} takes about {needed / 2**30:.1f} GiB of "
            f"{there / 2**30:.1f} GiB; use method='transplant', keep the group in place with fixed=[...], "
            "use solver='exact' with equal widths and uniform marginals, or raise max_memory"
        )


def _as_array(cost: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    array = cost.detach().cpu().double().contiguous().numpy()
    if not np.isfinite(array.sum()) and not np.isfinite(array).all():
        raise PlanError(f"{int((~np.isfinite(array)).sum())} of {array.size} costs between neurons are not finite")
    return array


def _network_simplex(cost: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, str | None]:
    import ot

    array = _as_array(cost)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        plan, log = ot.emd(alpha.numpy(), beta.numpy(), array, numItermax=MOST_PIVOTS, log=True)
    return torch.from_numpy(plan), log.get("warning")


def _sinkhorn(cost: Tensor, alpha: Tensor, beta: Tensor, reg: float) -> tuple[Tensor, str | None]:
    import ot

    cost = torch.from_numpy(_as_array(cost)).to(cost.device)
    strength = reg * float(cost.mean())
    if strength <= 0:  # all costs are zero: every plan is as good
        return torch.outer(alpha, beta), None
    plan, _ = ot.sinkhorn(
        alpha,
        beta,
        cost,
        strength,
        method="sinkhorn_log",
        numItermax=MOST_ROUNDS,
        stopThr=TOLERANCE,
        log=True,
        warn=False,
    )
    off = max(float((plan.sum(1) - alpha).abs().sum()), float((plan.sum(0) - beta).abs().sum()))
    slow = f"Sinkhorn stopped with marginals off by {off:.1e}; they were rounded, raise reg for a converged plan"
    return plan, slow if off > 1e-4 else None
