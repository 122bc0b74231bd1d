"""combine: one wide network whose output is the members' average (float64), and the law of combine, prune and fuse."""

import copy
import pickle

import pytest
import torch
from tests.networks import NETWORKS, build
from tests.tracing.huggingface import made
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import neurograft as ng
from neurograft.applying.segmented import SegmentedNorm
from neurograft.errors import BadWeights, PlanError, ResizeError
from neurograft.inputs import call

COMBINABLE = [
    "mlp",
    "mlp_bias",
    "mlp_batch_norm",
    "mlp_layer_norm",
    "mlp_prelu",
    "lenet",
    "lenet_bias",
    "vgg",
    "vgg_batch_norm",
    "resnet",
    "resnet_group_norm",
    "layer_norm_image",
    "conv1d",
    "conv3d",
    "grouped",
    "depthwise",
    "depthwise_double",
    "autoencoder",
    "densenet",
    "unet",
    "two_inputs",
    "head_first",
    "tied",
    "twice",
    "bare",
    "squeeze_excite",
]


def members_of(name: str, count: int) -> tuple[list[nn.Module], object]:
    inputs = pytree.tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, NETWORKS[name].inputs())
    return [build(name, seed).double() for seed in range(count)], inputs


def outputs_of(model: nn.Module, inputs: object) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in pytree.tree_leaves(call(model, inputs)) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", COMBINABLE)
def test_the_combined_network_outputs_the_members_average(name: str, count: int) -> None:
    models, inputs = members_of(name, count)
    weights = [0.5, 0.3, 0.2][:count]
    wide = ng.combine(models, inputs, weights=weights)
    total = sum(weights)
    for i, found in enumerate(outputs_of(wide, inputs)):
        expected = sum(w / total * outputs_of(m, inputs)[i] for w, m in zip(weights, models, strict=True))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", COMBINABLE)
def test_pruning_the_combined_network_is_transplanting(name: str, count: int) -> None:
    models, inputs = members_of(name, count)
    pruned = ng.prune(ng.combine(models, inputs), inputs, ratio=1 - 1 / count)
    fused = ng.fuse(models, inputs, method="transplant")
    assert type(pruned) is type(fused) is type(models[0])
    expected = fused.state_dict()
    assert list(pruned.state_dict()) == list(expected)
    for key, tensor in pruned.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-12, atol=1e-12, msg=lambda m, k=key: f"{k}: {m}")
    for a, b in zip(outputs_of(pruned, inputs), outputs_of(fused, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["mlp_layer_norm", "resnet", "grouped"])
def test_the_combined_network_trains_and_pickles(name: str) -> None:
    models, inputs = members_of(name, 2)
    wide = ng.combine(models, inputs)
    restored = pickle.loads(pickle.dumps(wide))
    torch.testing.assert_close(outputs_of(restored, inputs), outputs_of(wide, inputs))
    trained = copy.deepcopy(wide).train()
    optimiser = torch.optim.SGD(trained.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        loss = call(trained, inputs).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in trained.parameters())


def test_numbers_that_are_none_are_named() -> None:
    nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in "ab"]
    nn.init.constant_(nets[1][0].bias, float("nan"))
    with pytest.raises(BadWeights, match=r"0.bias of models\[1\] holds 8 NaN or infinite of 8 entries"):
        ng.combine(nets, torch.randn(1, 4))


def test_members_of_different_widths_combine() -> None:
    narrow, wide = (
        nn.Sequential(nn.Linear(4, n), nn.LayerNorm(n), nn.ReLU(), nn.Linear(n, 3)).double() for n in (5, 8)
    )
    x = torch.randn(6, 4, dtype=torch.double)
    both = ng.combine([narrow, wide], x)
    assert both[0].out_features == 13
    assert isinstance(both[1], SegmentedNorm)
    torch.testing.assert_close(both(x), (narrow(x) + wide(x)) / 2, rtol=1e-12, atol=1e-12)


def test_a_group_that_is_made_and_read_but_fixed_is_named() -> None:
    models, inputs = members_of("mixer", 2)
    with pytest.raises(PlanError, match=r"group tokens2.weight:0 is fixed \(.*\) but made by tokens2"):
        ng.combine(models, inputs)


def test_an_output_behind_a_nonlinearity_is_refused() -> None:
    models = [nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.Softmax(-1)) for _ in "ab"]
    with pytest.raises(PlanError, match="its output is not reached through linear ops alone"):
        ng.combine(models, torch.randn(5, 4))


def test_sizes_written_into_forward_are_refused() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu().view(-1, 6))

    with pytest.raises((ResizeError, PlanError), match=r"takes sizes from elsewhere|has shape"):
        ng.combine([Written(), Written()], torch.randn(5, 4))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5", "swin"])
def test_transformers_run_side_by_side(name: str) -> None:
    model, inputs = made(name)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) * parameter.abs().mean())
    models = [model.double(), other.double()]
    inputs = {key: x.double() if x.is_floating_point() else x for key, x in inputs.items()}
    wide = ng.combine(models, inputs)
    with torch.no_grad():
        expected = (models[0](**inputs).logits + models[1](**inputs).logits) / 2
        torch.testing.assert_close(wide(**inputs).logits, expected, rtol=1e-9, atol=1e-9)


def test_an_encoder_stays_off_its_fused_path() -> None:
    models = [
        nn.Sequential(nn.TransformerEncoderLayer(12, 3, 16, batch_first=True), nn.Linear(12, 2)).double().eval()
        for _ in "ab"
    ]
    stems = [nn.Sequential(nn.Linear(5, 12).double(), model).eval() for model in models]
    x = torch.randn(2, 6, 5, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(ng.combine(stems, x)(x), (stems[0](x) + stems[1](x)) / 2, rtol=1e-9, atol=1e-9)
