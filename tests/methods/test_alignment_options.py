"""What is compared, where and on which samples: each option of alignment against the same choice made by hand."""

import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from tests.networks import MLP
from torch import Tensor

import neurograft as ng

GROUP = "layers.0.weight:0"
BATCHES = list(torch.randn(2, 32, 12, generator=torch.Generator().manual_seed(7), dtype=torch.double))
COSTS = {
    "euclidean": lambda a, b: torch.cdist(a.T, b.T),
    "squared": lambda a, b: torch.cdist(a.T, b.T).square(),
    "cosine": lambda a, b: 1 - torch.nn.functional.normalize(a, dim=0).T @ torch.nn.functional.normalize(b, dim=0),
    "correlation": lambda a, b: -torch.corrcoef(torch.cat([a, b], 1).T)[: a.shape[1], a.shape[1] :],
}


@pytest.fixture
def members() -> list[MLP]:
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        found.append(MLP(12, 14, 4, bias=True).double())
        with torch.no_grad():  # lengths that differ, so that distances and angles do
            found[-1].layers[0].weight *= torch.empty(14, 1).uniform_(0.2, 2)
    return found


def best_order(target: Tensor, member: Tensor, cost: str) -> list[int]:
    """For every neuron of the target the member's that goes with it; features are `(samples, neurons)`."""
    return linear_sum_assignment(COSTS[cost](target, member).detach().numpy())[1].tolist()


def activations(members: list[MLP], when: str, samples: int) -> list[Tensor]:
    hidden = [net.layers[0](torch.cat(BATCHES)[:samples]) for net in members]
    return [h.relu() for h in hidden] if when == "post" else hidden


def found_order(members: list[MLP], method: str, **options: object) -> list[int]:
    plan = ng.plan(members, BATCHES[0], method, reference=0, **options)
    return plan.maps[GROUP][1].merge.source.tolist()


@pytest.mark.parametrize("samples", [32, 64])
@pytest.mark.parametrize("when", ["pre", "post"])
@pytest.mark.parametrize("cost", COSTS)
def test_activations_are_compared_where_and_on_what_is_asked_for(
    members: list[MLP], cost: str, when: str, samples: int
) -> None:
    chosen = ("permutation", {}) if cost == "correlation" else ("optimal_transport", {"distance": cost})
    options = {"metric": "activations", "when": when, "samples": samples, "calibration": BATCHES}
    found = found_order(members, chosen[0], **chosen[1], **options)
    assert found == best_order(*activations(members, when, samples), cost)


def test_the_cases_above_differ(members: list[MLP]) -> None:
    """Else an option that did nothing would pass."""
    cases = [(when, samples) for when in ("pre", "post") for samples in (32, 64)]
    for cost in COSTS:
        orders = [best_order(*activations(members, *case), cost) for case in cases]
        assert all(orders.count(order) == 1 for order in orders), cost
    by_weights = [torch.cat([net.layers[0].weight, net.layers[0].bias[:, None]], 1).T for net in members]
    for distance in ("euclidean", "squared", "cosine"):
        assert found_order(members, "optimal_transport", distance=distance) == best_order(*by_weights, distance)
    assert best_order(*by_weights, "euclidean") != best_order(*by_weights, "cosine")


@pytest.mark.parametrize("reg", [0.05, 0.5])
def test_sinkhorn_gives_the_entropic_plan(members: list[MLP], reg: float) -> None:
    plan = ng.plan(members, BATCHES[0], "optimal_transport", reference=0, solver="sinkhorn", reg=reg)
    features = [torch.cat([net.layers[0].weight, net.layers[0].bias[:, None]], 1).detach() for net in members]
    cost = torch.cdist(features[1], features[0]).numpy()
    solved = ot.sinkhorn(ot.unif(14), ot.unif(14), cost, reg * cost.mean(), numItermax=100_000, stopThr=1e-12)
    torch.testing.assert_close(plan.maps[GROUP][1].merge, 14 * torch.from_numpy(solved).T, rtol=1e-4, atol=1e-6)
