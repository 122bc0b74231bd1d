"""Owned neurons: the rows of [A_1 … A_k] sum to 1 jointly, when a plan is made and when it is loaded."""

from pathlib import Path

import pytest
import torch
from tests.networks import build, example
from tests.plans.test_saving import rewritten
from torch import Tensor, nn

import neurograft as ng
from neurograft.axes.maps import NeuronMap, Pairs
from neurograft.errors import CheckpointError, PlanError
from neurograft.members.members import Members
from neurograft.methods.method import Method
from neurograft.operators.owned import Owned
from neurograft.plans.plan import Filling
from neurograft.plans.saving import SavedPlan, load_plan, save_plan


def joint_sums(plan: ng.FusionPlan, group: str) -> Tensor:
    """[A_1 … A_k] · 1, every matrix written out."""
    parts = [m.merge.dense() if isinstance(m.merge, Pairs) else m.merge for m in plan.maps[group]]
    return torch.cat([part.double() for part in parts], 1).sum(1)


@pytest.mark.parametrize("name", ["mlp_bias", "vgg_batch_norm", "attention"])
@pytest.mark.parametrize(
    "method",
    [
        ng.Transplant(),
        ng.Transplant(quota=[3, 1, 1]),
        ng.Transplant(diversity=True, ratio=0.5),
        ng.Zip(),
        ng.Zip(ratio=0.5),
    ],
    ids=str,
)
def test_every_fused_neuron_is_one(name: str, method: Method) -> None:
    models = [build(name, seed) for seed in range(3)]
    x = example(name)
    samples = [torch.randn(40, *x.shape[1:]) if x.is_floating_point() else x]
    plan = ng.plan(models, x, method, calibration=samples)
    assert plan.owned
    assert plan.joint == plan.chosen != frozenset()
    for group in plan.joint:
        torch.testing.assert_close(joint_sums(plan, group), torch.ones(plan.sizes[group], dtype=torch.float64))


def test_means_are_normalised_by_each_member_alone() -> None:
    models = [build("mlp_bias", seed) for seed in range(3)]
    plan = ng.plan(models, example("mlp_bias"), "permutation")
    assert plan.joint == frozenset()
    for group in plan.maps:
        torch.testing.assert_close(joint_sums(plan, group), torch.full((plan.sizes[group],), 3.0, dtype=torch.float64))


class Twice(Method):
    """Every member gives all its neurons to the same places, as if each were theirs alone."""

    name = "twice"

    def fill(self, members: Members, _generator: torch.Generator) -> Filling:
        maps = {g.name: (NeuronMap.permutation(torch.arange(g.size)),) * len(members) for g in members.graph.outermost}
        return Filling(maps=maps, weights=members.weights_or(), operator=Owned())


def test_a_plan_of_neurons_that_are_more_than_one_is_not_made() -> None:
    models = [build("mlp_bias", seed) for seed in range(2)]
    with pytest.raises(PlanError, match=r"rows of \[A_1 … A_k\] must sum to 1 jointly, .*; neuron 0 sums to 2"):
        ng.plan(models, example("mlp_bias"), Twice())


def test_a_loaded_plan_of_neurons_that_are_more_or_less_than_one_is_refused(tmp_path: Path) -> None:
    models = [build("mlp_bias", seed) for seed in range(2)]
    path = tmp_path / "plan.safetensors"

    def moved(tensors: dict[str, Tensor], _content: object) -> None:
        target = next(
            t for t in tensors.values() if t.dtype == torch.int64 and len(t) > 1 and bool((t[1:] > t[:-1]).all())
        )
        target[0] = target[1]  # one fused neuron is made twice, another by nobody

    save_plan(SavedPlan(ng.plan(models, example("mlp_bias"))), path)
    rewritten(path, moved)
    with pytest.raises(CheckpointError, match="is no plan that this neurograft can read: .*must sum to 1 jointly"):
        load_plan(path)


class Beside(nn.Module):
    """Three outputs and eight neurons from one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.head = nn.Linear(5, 11), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        direct, hidden = self.both(x).split([3, 8], -1)
        return direct + self.head(hidden.relu())


def test_neurons_beside_kept_outputs_are_averaged() -> None:
    model = Beside()
    plan = ng.plan([model, model], torch.randn(4, 5), "permutation", heads="keep")
    fused = ng.apply(plan, [model, model])
    torch.testing.assert_close(fused.both.weight[:3], model.both.weight[:3])
    torch.testing.assert_close(fused.both.weight[3:6], model.both.weight[:3])
    torch.testing.assert_close(fused.both.weight[6:], model.both.weight[3:])  # once, not the sum of both
