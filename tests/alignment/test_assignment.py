from itertools import permutations

import pytest
import torch

from neurograft.alignment.assignment import (
    assign,
    check_marginal,
    check_memory,
    needed_bytes,
    round_to_marginals,
    transport,
)
from neurograft.errors import OptionError, PlanError


def marginals(*sizes: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masses = [torch.rand(n, generator=generator, dtype=torch.double) + 0.1 for n in sizes]
    return [mass / mass.sum() for mass in masses]


@pytest.mark.parametrize("seed", range(5))
def test_assignment_against_brute_force(seed: int) -> None:
    cost = torch.rand(5, 5, generator=torch.Generator().manual_seed(seed))
    order = assign(cost)
    best = min(sum(float(cost[p[j], j]) for j in range(5)) for p in permutations(range(5)))
    assert float(cost[order, torch.arange(5)].sum()) == pytest.approx(best)


@pytest.mark.parametrize("solver", ["exact", "sinkhorn"])
@pytest.mark.parametrize("sizes", [(4, 4), (4, 7), (9, 3), (1, 5), (5, 1)])
def test_marginals_hold(solver: str, sizes: tuple[int, int]) -> None:
    alpha, beta = marginals(*sizes)
    solved = transport(torch.rand(*sizes), alpha, beta, solver, reg=0.05)
    assert solved.plan.dtype is torch.double
    assert float(solved.plan.min()) >= 0
    torch.testing.assert_close(solved.plan.sum(1), alpha, rtol=0, atol=1e-9)
    torch.testing.assert_close(solved.plan.sum(0), beta, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sizes", [(4, 7), (9, 3)])
def test_rectangular_plans_cost_what_the_linear_programme_says(sizes: tuple[int, int]) -> None:
    from scipy.optimize import linprog

    alpha, beta = marginals(*sizes)
    cost = torch.rand(*sizes, dtype=torch.double)
    rows = torch.eye(sizes[0]).repeat_interleave(sizes[1], 1)
    columns = torch.eye(sizes[1]).repeat(1, sizes[0])
    equal = torch.cat([rows, columns]).numpy(), torch.cat([alpha, beta]).numpy()
    best = linprog(cost.flatten().numpy(), A_eq=equal[0], b_eq=equal[1])
    assert float((transport(cost, alpha, beta).plan * cost).sum()) == pytest.approx(best.fun)


def test_rectangular_plans_against_pot() -> None:
    ot = pytest.importorskip("ot")
    alpha, beta = marginals(6, 11)
    cost = torch.rand(6, 11, dtype=torch.double)
    torch.testing.assert_close(
        transport(cost, alpha, beta).plan, torch.from_numpy(ot.emd(alpha.numpy(), beta.numpy(), cost.numpy()))
    )
    entropic = ot.sinkhorn(alpha.numpy(), beta.numpy(), cost.numpy(), 0.1 * float(cost.mean()), stopThr=1e-12)
    ours = transport(cost, alpha, beta, "sinkhorn", reg=0.1).plan
    torch.testing.assert_close(ours, torch.from_numpy(entropic), rtol=0, atol=1e-8)


def test_sinkhorn_tends_to_the_exact_plan() -> None:
    alpha, beta = marginals(5, 8)
    cost = torch.rand(5, 8, dtype=torch.double)
    exact = float((transport(cost, alpha, beta).plan * cost).sum())
    gaps = [
        float((transport(cost, alpha, beta, "sinkhorn", reg).plan * cost).sum()) - exact for reg in (1.0, 0.1, 0.01)
    ]
    assert gaps[0] > gaps[1] > gaps[2] > -1e-12
    assert gaps[2] < 0.01 * exact


def test_a_plan_without_costs_spreads_evenly() -> None:
    alpha, beta = marginals(3, 4)
    torch.testing.assert_close(transport(torch.zeros(3, 4), alpha, beta, "sinkhorn").plan, torch.outer(alpha, beta))


def test_a_sinkhorn_that_did_not_converge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurograft.alignment.assignment.MOST_ROUNDS", 2)
    alpha, beta = marginals(30, 30)
    cost = torch.rand(30, 30, dtype=torch.double)
    solved = transport(cost, alpha, beta, "sinkhorn", reg=1e-5)
    assert solved.warning is not None
    assert "raise reg" in solved.warning
    torch.testing.assert_close(solved.plan.sum(1), alpha, rtol=0, atol=1e-9)


def test_rounding_keeps_a_plan_that_is_right() -> None:
    alpha, beta = marginals(3, 4)
    plan = torch.outer(alpha, beta)
    torch.testing.assert_close(round_to_marginals(plan, alpha, beta), plan)
    torch.testing.assert_close(round_to_marginals(torch.zeros(3, 4).double(), alpha, beta), plan)


def test_bad_marginals_are_named() -> None:
    with pytest.raises(PlanError, match=r"member's marginal gives no mass to neurons \[1\] \(1 of 2\)"):
        transport(torch.rand(2, 2), torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))
    with pytest.raises(PlanError, match=r"target's marginal is not finite in 1 of 2 neurons"):
        transport(torch.rand(2, 2), torch.tensor([0.5, 0.5]), torch.tensor([float("nan"), 0.5]))
    assert float(check_marginal(torch.tensor([2.0, 2.0]), "member").sum()) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_costs_must_be_finite(bad: float) -> None:
    cost = torch.rand(3, 3)
    cost[1, 2] = bad
    with pytest.raises(PlanError, match="1 of 9 costs between neurons are not finite"):
        assign(cost)


def test_too_little_memory_is_said_beforehand() -> None:
    with pytest.raises(
        OptionError, match=r"16384 x 16384 neurons of group g takes about 3.0 GiB of 1.0 GiB; use method"
    ):
        check_memory("g", 16384, 16384, "exact", True, 1 << 30)
    check_memory("g", 16384, 16384, "exact", True, 24 << 30)
    assert needed_bytes(100, 100, "exact", True) < needed_bytes(100, 100, "exact", False)
    assert needed_bytes(100, 50, "exact", True) == needed_bytes(100, 50, "exact", False)
