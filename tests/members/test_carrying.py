"""Members are read, traced and checked once, and carried from plan to recovery."""

from pathlib import Path

import pytest
import torch
from tests.networks import build, example
from torch import Tensor, nn

import neurograft as ng
from neurograft.applying.stored import open_files
from neurograft.checkpoints import write_checkpoint
from neurograft.errors import BadWeights, InputError, MembersDiffer, OptionError, PlanError
from neurograft.members import members as carried


def nets(count: int = 2, width: int = 8) -> list[nn.Module]:
    return [nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3)) for _ in range(count)]


X = torch.randn(50, 4)


def test_plan_apply_and_recovery_take_members_and_give_what_they_give_for_the_networks() -> None:
    models = nets()
    members = ng.Members(models, X[:1], weights=[3, 1], fixed=["2.*"])
    plan = ng.plan(members, method="average")
    expected = ng.plan(models, X[:1], "average", [3, 1], fixed=["2.*"])
    assert plan.weights == expected.weights == (0.75, 0.25)
    assert plan.graphs == expected.graphs
    fused = ng.apply(plan, members)
    for recovered, other in (
        (fused, ng.apply(expected, models)),
        (ng.refit(fused, plan, members, [X]), ng.refit(fused, expected, models, [X])),
        (ng.repair(fused, plan, members, [X]), ng.repair(fused, expected, models, [X])),
        (ng.fuse(members, method="average", recover=None), fused),
    ):
        torch.testing.assert_close(recovered.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_members_are_read_and_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[nn.Module] = []
    traces: list[int] = []
    state_of, graphs_of = carried.state_of, carried.graphs_of

    def reading(model: nn.Module) -> dict[str, Tensor]:
        reads.append(model)
        return state_of(model)

    def tracing(*given: object) -> list[ng.NeuronGraph]:
        traces.append(len(given))
        return graphs_of(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(carried, "state_of", reading)
    monkeypatch.setattr(carried, "graphs_of", tracing)
    models = nets(3)
    members = ng.Members(models, X[:1], calibration=[X])
    for method in ("average", "permutation", "transplant"):
        plan = ng.plan(members, method=method)
        fused = ng.apply(plan, members)
        ng.repair(ng.refit(fused, plan, members, [X]), plan, members, [X])
    ng.fuse(members)
    assert len(reads) == 3
    assert all(one is other for one, other in zip(reads, models, strict=True))
    assert len(traces) == 1


def test_weights_and_calibration_may_be_given_later() -> None:
    members = ng.Members(nets(), X[:1])
    assert ng.plan(members, method="average", weights=[1, 3]).weights == (0.25, 0.75)
    assert members.weights is None
    assert ng.plan(members, method="zip", calibration=[X]).owned
    with pytest.raises(BadWeights, match="weights has 3 entries for 2 members"):
        ng.plan(members, weights=[1, 2, 3])


def test_what_members_carry_is_not_given_twice() -> None:
    members = ng.Members(nets(), X[:1])
    with pytest.raises(OptionError, match="members carry what they were made with; leave out example_inputs and fixed"):
        ng.plan(members, X[:1], fixed=["0.*"])
    with pytest.raises(InputError, match="example_inputs are missing"):
        ng.plan(nets())


def test_a_plan_for_other_members_is_refused() -> None:
    plan = ng.plan(nets(), X[:1])
    with pytest.raises(PlanError, match="the plan was made for 2 members, got 3"):
        ng.apply(plan, ng.Members(nets(3), X[:1]))
    with pytest.raises(MembersDiffer, match=r"0.weight has shape \(6, 4\) in models\[0\], expected \(8, 4\)"):
        ng.apply(plan, ng.Members(nets(width=6), X[:1]))


def test_members_on_disk_are_traced_when_they_are_planned_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [build("vgg_batch_norm", seed) for seed in range(2)]
    paths = [tmp_path / f"{m}.safetensors" for m in range(2)]
    for path, model in zip(paths, models, strict=True):
        write_checkpoint(model, path, {})
    members = open_files(paths, lambda: build("vgg_batch_norm"), "tests", example("vgg_batch_norm"))
    assert "graphs" not in vars(members)
    assert members.models is None
    assert [members.owner(m) for m in range(2)] == [str(path) for path in paths]
    plan = ng.plan(members)
    expected = ng.plan(models, example("vgg_batch_norm"))
    assert plan.shares == expected.shares
    with pytest.raises(PlanError, match="these members lie on disk"):
        ng.apply(plan, members)
    with pytest.raises(PlanError, match="recovery runs the members, but these lie on disk"):
        ng.repair(models[0], plan, members)
    torch.testing.assert_close(
        ng.apply(plan, models).state_dict(), ng.apply(expected, models).state_dict(), rtol=0, atol=0
    )
