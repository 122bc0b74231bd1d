"""prune: smaller networks of the same class, whose sizes are declared truly."""

import pytest
import torch
from tests.networks import NETWORKS, build
from torch import Tensor, nn

import neurograft as ng
from neurograft.errors import BadWeights, OptionError, PlanError, ResizeError
from neurograft.inputs import call


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "mlp_batch_norm",
        "mlp_layer_norm",
        "mlp_prelu",
        "lenet",
        "vgg_batch_norm",
        "resnet",
        "resnet_group_norm",
        "layer_norm_image",
        "conv1d",
        "grouped",
        "depthwise_double",
        "autoencoder",
        "densenet",
        "unet",
        "two_inputs",
        "tied",
        "squeeze_excite",
    ],
)
def test_a_pruned_network_runs_and_says_its_sizes(name: str) -> None:
    model, inputs = build(name), NETWORKS[name].inputs()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    pruned = ng.prune(model, inputs, ratio=0.5)
    call(pruned, inputs)
    assert type(pruned) is type(model)
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())
    for module in pruned.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.shape == (module.num_features,)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key])


def test_the_largest_neurons_stay_in_their_order() -> None:
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0], [9, 0], [2, 0], [5, 0]]))
        model[2].weight.zero_()
    pruned = ng.prune(model, torch.randn(1, 2), width=2)
    assert pruned[0].weight[:, 0].tolist() == [9.0, 5.0]


def test_widths_by_pattern() -> None:
    model, x = build("mlp"), NETWORKS["mlp"].inputs()
    pruned = ng.prune(model, x, width={"layers.0.*": 3})
    assert [layer.out_features for layer in pruned.layers] == [3, 14, 10]


@pytest.mark.parametrize("name", ["resnet", "mlp_layer_norm"])
def test_pruning_nothing_changes_nothing(name: str) -> None:
    model, inputs = build(name), NETWORKS[name].inputs()
    torch.testing.assert_close(call(ng.prune(model, inputs, ratio=0.0), inputs), call(model, inputs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "from 0 to below 1"),
        ({"ratio": -0.1}, "from 0 to below 1"),
        ({"width": 0}, "cannot have 0 neurons"),
        ({"width": 99}, "cannot have 99 neurons"),
        ({"width": {"layrs.0.weight": 3}}, "width names no free group"),
        ({"ratio": 0.5, "width": 3}, "give one of them"),
        ({"strategy": "flat"}, "concerns several members"),
        ({"importnce": "l1"}, "did you mean 'importance'"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ng.prune(build("mlp"), NETWORKS["mlp"].inputs(), **options)


def test_what_is_no_network() -> None:
    with pytest.raises(PlanError, match=r"model is a list, not a torch.nn.Module"):
        ng.prune([build("mlp")], NETWORKS["mlp"].inputs())  # type: ignore[arg-type]


def test_numbers_that_are_none_are_of_the_model():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    nn.init.constant_(net[0].bias, float("nan"))
    with pytest.raises(BadWeights, match="0.bias of the model holds 8 NaN or infinite of 8 entries"):
        ng.prune(net, torch.randn(1, 4))


def test_a_size_written_into_forward_is_found() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu().view(-1, 6))

    with pytest.raises(ResizeError, match="does not run at its new widths"):
        ng.prune(Written(), torch.randn(5, 4), ratio=0.5)


def test_a_stale_head_count_is_found() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.qkv, self.out = nn.Linear(5, 16), nn.Linear(16, 48), nn.Linear(16, 3)
            self.parts = 4  # runs with any number of heads, and mixes them if it is stale

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (p.unflatten(-1, (self.parts, -1)).transpose(1, 2) for p in self.qkv(self.stem(x)).chunk(3, -1))
            return self.out(((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2))

    with pytest.raises(ResizeError, match="has 2 neurons now, but the network runs as if it had 4"):
        ng.prune(Attention(), torch.randn(2, 6, 5), ratio=0.5)
