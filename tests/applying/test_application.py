"""apply: the fused network is an ordinary module of the members' class."""

import copy
import pickle

import pytest
import torch
from tests.networks import NETWORKS, build

import neurograft as ng
from neurograft.errors import MembersDiffer, PlanError


@pytest.mark.parametrize("count", [2, 3, 5, 6, 7, 16])
@pytest.mark.parametrize("method", ["average", "transplant"])
def test_any_number_of_members_gives_exactly_the_architecture(method: str, count: int) -> None:
    models, x = [build("vgg_batch_norm", seed) for seed in range(count)], NETWORKS["vgg_batch_norm"].inputs()
    fused = ng.fuse(models, x, method=method)
    assert {k: (v.shape, v.dtype) for k, v in fused.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in models[0].state_dict().items()
    }
    fused.load_state_dict(models[0].state_dict())
    torch.testing.assert_close(fused(x), models[0](x))


@pytest.mark.parametrize("name", ["mlp_batch_norm", "resnet", "tied", "grouped"])
def test_a_fused_network_is_exported_and_pickled_like_any_other(name: str) -> None:
    models, x = [build(name, seed) for seed in range(2)], NETWORKS[name].inputs()
    fused = ng.fuse(models, x)
    exported = torch.export.export(fused, (x,)).module()
    torch.testing.assert_close(exported(x), fused(x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(fused))(x), fused(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["average", "transplant", "permutation"])
def test_the_members_dtype_and_counters_are_kept(method: str, dtype: torch.dtype) -> None:
    models, x = [build("vgg_batch_norm", seed) for seed in range(2)], NETWORKS["vgg_batch_norm"].inputs()
    models[1].features[1].num_batches_tracked.fill_(7)
    graph = ng.trace(models[0], x)
    narrow = [copy.deepcopy(model).to(dtype) for model in models]
    fused = ng.apply(ng.plan(narrow, x.to(dtype), method, graph=graph), narrow)
    assert {p.dtype for p in fused.parameters()} == {dtype}
    assert all(bool(torch.isfinite(p).all()) for p in fused.parameters())
    assert int(fused.features[1].num_batches_tracked) == 7
    if method == "average":
        expected = ((models[0].classifier.weight.double() + models[1].classifier.weight.double()) / 2).to(dtype)
        tolerance = {torch.float16: 1e-3, torch.bfloat16: 1e-2}.get(dtype, 1e-6)
        torch.testing.assert_close(fused.classifier.weight, expected, rtol=tolerance, atol=tolerance)


def test_a_plan_is_for_its_members() -> None:
    models, x = [build("mlp", seed) for seed in range(3)], NETWORKS["mlp"].inputs()
    plan = ng.plan(models[:2], x)
    with pytest.raises(PlanError, match="made for 2 members, got 3"):
        ng.apply(plan, models)
    with pytest.raises(MembersDiffer, match="layers.0.bias, which the plan does not have"):
        ng.apply(plan, [build("mlp_batch_norm", seed) for seed in range(2)])
