"""Operators on whole networks: by name or as objects, aligned or not, streamed or in memory, with a base or batches."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.networks import build, example
from tests.planting import planted
from torch import nn

import neurograft as ng
from neurograft.applying import formula
from neurograft.applying.stored import fuse_stored, open_files
from neurograft.checkpoints import provenance_of, write_checkpoint
from neurograft.errors import BadWeights, CheckpointError, MembersDiffer, OptionError, PlanError
from neurograft.methods import choice_of
from neurograft.operators import OPERATORS, VARIANTS
from neurograft.operators.operator import Operator
from neurograft.plans.saving import SavedPlan, load_plan, save_plan

WITH_DATA = ("fisher", "regmean")
MADE: dict[str, Operator] = {
    name: choice_of(name, {})[1] for name in [*OPERATORS, *VARIANTS] if name not in ("mean", "owned", *WITH_DATA)
}  # type: ignore[misc]
MADE |= {
    "dare_norm": ng.Dare(rescale="norm"),
    "by_depth": ng.Ties(density=ng.Gradient([0.3, 0.9]), weights={"*": [1, 2], "*bias": [ng.Gradient([0, 1]), 1]}),
    "rows": ng.ModelStock(over="rows"),
}
NETWORKS = ["mlp_bias", "vgg_batch_norm"]


def children(name: str, count: int = 2) -> tuple[nn.Module, list[nn.Module]]:
    base, found = build(name), []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        child = copy.deepcopy(base)
        with torch.no_grad():
            for parameter in child.parameters():
                parameter.add_(0.2 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator))
        found.append(child)
    return base, found


def close(found: nn.Module, expected: nn.Module, **tolerances: float) -> None:
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), **tolerances)


@pytest.mark.parametrize("operator", MADE.values(), ids=MADE)
@pytest.mark.parametrize("name", NETWORKS)
def test_aligned_members_are_combined_as_if_they_had_never_been_permuted(name: str, operator: Operator) -> None:
    base, models = children(name)
    x = example(name)
    graph = ng.trace(base, x, verify=False)
    moved, ancestor = [models[0], planted(models[1], graph, 1)], planted(base, graph, 9)
    wanted = ng.fuse(ng.Members(models, x, graph=graph), method=operator, base=base, recover=None)
    members = ng.Members(moved, x, base=ancestor, graph=graph)
    found = ng.fuse(members, method=operator, align=ng.Permutation(restarts=1, reference=0), recover=None)
    close(found, wanted, rtol=1e-5, atol=1e-6)
    inputs = torch.randn(5, *x.shape[1:])
    torch.testing.assert_close(found.eval()(inputs), wanted.eval()(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("align", [None, "permutation"])
@pytest.mark.parametrize("operator", MADE.values(), ids=MADE)
def test_streamed_is_what_is_made_in_memory(tmp_path: Path, monkeypatch, operator: Operator, align: str | None) -> None:
    name = "vgg_batch_norm"
    base, models = children(name)
    paths = [tmp_path / f"{m}.safetensors" for m in range(3)]
    for path, model in zip(paths, [*models, base], strict=True):
        write_checkpoint(model, path, {})
    monkeypatch.setattr(formula, "BLOCK", 50)
    members = open_files(paths[:2], lambda: build(name), name, example(name), base=paths[2])
    plan = ng.plan(members, method=operator, align=align, seed=3)
    wanted = ng.apply(plan, ng.Members(models, example(name), base=base, graph=members.graph)).state_dict()
    saved = tmp_path / "plan.safetensors"
    save_plan(SavedPlan(plan, members.name), saved)
    fuse_stored(members, load_plan(saved), tmp_path / "out")
    record = provenance_of(tmp_path / "out" / "model.safetensors")
    assert record["options"].keys() == plan.options.keys()
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == wanted.keys()
    for tensor, x in found.items():
        assert torch.equal(x, wanted[tensor]), tensor


@pytest.mark.parametrize("name", WITH_DATA)
def test_what_is_measured_is_measured_in_the_basis_that_members_meet_in(name: str) -> None:
    network = "vgg_batch_norm"
    _, models = children(network)
    x, batches = example(network), [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(5))]
    graph = ng.trace(models[0], x, verify=False)
    kept = copy.deepcopy(models)
    fused = ng.fuse(models, x, name, graph=graph, calibration=batches, recover=None)
    for model, before in zip(models, kept, strict=True):  # only read
        close(model, before, rtol=0, atol=0)
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
    moved = [models[0], planted(models[1], graph, 1)]
    aligned = ng.Permutation(restarts=1, reference=0)
    found = ng.fuse(moved, x, name, graph=graph, calibration=batches, align=aligned, recover=None)
    close(found, fused, rtol=1e-4, atol=1e-5)
    average = ng.fuse(models, x, "average", graph=graph, recover=None)
    first, mean = fused.state_dict(), average.state_dict()
    assert any(not torch.allclose(first[tensor], mean[tensor], rtol=1e-3) for tensor in first)


def test_regmean_comes_nearer_to_the_members_than_their_average() -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double() for _ in range(2)]
    models[1][0] = models[0][0]  # one trunk, two heads
    x = torch.randn(200, 6, dtype=torch.double)
    fused = ng.fuse(models, x[:1], ng.RegMean(alpha=1.0), calibration=[x], recover=None)
    mean = torch.stack([model(x) for model in models]).mean(0)
    torch.testing.assert_close(fused(x), mean, rtol=1e-5, atol=1e-6)  # equal inputs: the regression is the mean


def test_operators_have_names_on_every_way_in() -> None:
    base, models = children("mlp_bias")
    x = example("mlp_bias")
    by_name = ng.fuse(models, x, "ties", density=0.5, base=base)
    close(ng.fuse(models, x, ng.Ties(density=0.5), base=base), by_name, rtol=0, atol=0)
    close(ng.Fusion.of(ng.Members(models, x), "ties", density=0.5, base=base).model, by_name, rtol=0, atol=0)
    plan = ng.plan(models, x, "dare_ties", density=0.3, base=base)
    assert (plan.method, plan.options) == ("dare", {"density": 0.3, "consensus": "sum"})
    with pytest.raises(OptionError, match="unknown method 'tie'; did you mean 'ties'"):
        ng.fuse(models, x, "tie", base=base)
    with pytest.raises(OptionError, match="operator 'ties' has no option 'densty'; did you mean 'density'"):
        ng.fuse(models, x, "ties", densty=0.5, base=base)


def test_the_ancestor_may_lie_in_a_file_or_a_folder(tmp_path: Path) -> None:
    base, models = children("mlp_bias")
    x = example("mlp_bias")
    write_checkpoint(base, tmp_path / "model.safetensors", {})
    wanted = ng.fuse(models, x, "task_arithmetic", base=base)
    for place in (tmp_path / "model.safetensors", str(tmp_path / "model.safetensors"), tmp_path):
        close(ng.fuse(models, x, "task_arithmetic", base=place), wanted, rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="nowhere.*no such file"):
        ng.fuse(models, x, "ties", base=tmp_path / "nowhere.safetensors")
    with pytest.raises(PlanError, match="base is a network, a checkpoint or a folder, not a int"):
        ng.fuse(models, x, "ties", base=3)  # type: ignore[arg-type]


def test_members_weights_reach_operators_as_they_were_given() -> None:
    base, models = children("mlp_bias")
    x = example("mlp_bias")
    given: Any
    for given in ([0.5, 2.0], {"*": [1, 1], "layers.0.*": [3, 0.5]}, [ng.Gradient([0, 1]), 1]):
        members = ng.Members(models, x, base=base, weights=given)
        close(
            ng.fuse(members, method="task_arithmetic"),
            ng.fuse(models, x, ng.TaskArithmetic(weights=given), base=base),
            rtol=0,
            atol=0,
        )
    summed = ng.fuse(models, x, ng.TaskArithmetic(weights=[1, 1]), base=base)
    close(ng.fuse(models, x, "task_arithmetic", base=base), summed, rtol=0, atol=0)
    close(
        ng.fuse(models, x, ng.Linear(weights=[0.5, -2], normalize=False)),
        ng.fuse(models, x, ng.Linear(weights={"*": [0.5, -2]}, normalize=False)),
        rtol=0,
        atol=0,
    )
    with pytest.raises(OptionError, match="weights are given twice: to ties and to the members"):
        ng.fuse(models, x, ng.Ties(weights=[1, 2]), weights=[1, 1], base=base)
    with pytest.raises(OptionError, match="slerp takes no weights of members; its options are t"):
        ng.fuse(models, x, ng.Slerp(), weights=[1, 1])
    with pytest.raises(BadWeights, match="weights has 3 entries for 2 members"):
        ng.fuse(models, x, ng.Ties(weights=[1, 2, 3]), base=base)


def test_weights_of_an_average_change_over_the_depth() -> None:
    _, models = children("mlp_bias")
    x = example("mlp_bias")
    plan = ng.plan(models, x, "average", weights=[ng.Gradient([1, 0]), ng.Gradient([0, 1])])
    assert [plan.weight(f"layers.{i}.weight", 1) for i in range(3)] == [0, 0.5, 1]
    fused, (first, second) = ng.apply(plan, models).layers, (model.layers for model in models)
    assert torch.equal(fused[0].weight, first[0].weight)
    assert torch.equal(fused[2].weight, second[2].weight)
    mixed = ng.plan(models, x, "average", weights={"*": [1, 3], "*bias": [1, ng.Gradient([0, 1])]})
    assert [mixed.weight(f"layers.{i}.{kind}", 1) for kind in ("weight", "bias") for i in (0, 2)] == [
        0.75,
        0.75,
        0,
        0.5,
    ]


def test_a_base_that_no_member_comes_from_is_refused_with_how_far_it_is() -> None:
    base, models = children("mlp_bias")
    x, stranger = example("mlp_bias"), build("mlp_bias", 77)
    message = r"the base is no ancestor of models\[0\]: neurons of the same place lie (0\.[5-9]|1\.)\d* times as far"
    with pytest.raises(PlanError, match=message):
        ng.fuse(models, x, "ties", base=stranger)
    graph = ng.trace(base, x, verify=False)
    ng.fuse(models, x, "ties", base=planted(base, graph, 3), align="permutation")  # moved, it is one
    with pytest.raises(MembersDiffer, match="the base is a Sequential"):
        ng.fuse(models, x, "ties", base=nn.Sequential())
    with pytest.raises(OptionError, match="ties.* combines what members have changed: give their ancestor, base="):
        ng.fuse(models, x, "ties")


def test_running_statistics_are_averaged_so_that_no_variance_is_negative() -> None:
    base, models = children("vgg_batch_norm")
    x = example("vgg_batch_norm")
    for model in models:
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.mul_(0.1)  # both far below the ancestor's: a sum of changes would be negative
    fused = ng.fuse(models, x, ng.TaskArithmetic(scale=1.0), base=base, recover=None)
    average = ng.fuse(models, x, "average", recover=None)
    for name, buffer in fused.named_buffers():
        torch.testing.assert_close(buffer, average.get_buffer(name), rtol=0, atol=0)


def test_operators_that_measure_need_batches_and_members_in_memory(tmp_path: Path) -> None:
    _, models = children("mlp_bias")
    x = example("mlp_bias")
    with pytest.raises(OptionError, match="regmean needs calibration batches: pass calibration="):
        ng.fuse(models, x, "regmean")
    plan = ng.plan(models, x, "fisher", calibration=[x])
    with pytest.raises(PlanError, match="operator fisher needs calibration batches"):
        ng.apply(plan, models)
    paths = [tmp_path / f"{m}.safetensors" for m in range(2)]
    for path, model in zip(paths, models, strict=True):
        write_checkpoint(model, path, {})
    with pytest.raises(OptionError, match="fisher runs the members, but only their checkpoints are open"):
        ng.plan(open_files(paths, lambda: build("mlp_bias"), "mlp", x), method="fisher")
