"""The papers' networks: sizes by hand, neuron groups by hand, any image shape, and every method fuses them."""

import json

import pytest
import torch
from torch import nn

import neurograft as ng
from neurograft.errors import InputError, MissingExtra, OptionError
from neurograft.methods import METHODS
from neurograft.tracing.graph import FixedReason
from neurograft_experiments.networks import NAMED, check_network, make_network

SMALL = {
    "mlp": {"width": 12, "depth": 4},
    "lenet": {"share": 0.25},
    "vgg11": {"share": 1 / 32},
    "vgg11 with BatchNorm": {"share": 1 / 32, "batch_norm": True},
    "resnet18": {"share": 1 / 32},
    "resnet18 without BatchNorm": {"share": 1 / 32, "batch_norm": False},
    "vit": {"width": 16, "depth": 2, "heads": 4, "mlp": 12},
    "resnet8": {"share": 0.25},
    "resnet20": {"share": 0.125},
    "convnet": {"width": 4},
}
SHAPES = ((1, 28, 28), (3, 32, 32), (1, 8, 8))


def small(name, shape=(1, 8, 8), seed=0, **options):
    torch.manual_seed(seed)
    network = make_network({"name": name.partition(" ")[0], **SMALL[name], **options}, shape, 10)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0, 0.2)
    return network.eval()


def count(settings, shape):
    with torch.device("meta"):
        return sum(p.numel() for p in make_network(settings, shape, 10).parameters())


def stage(before, after, blocks, shortcut=True):
    """Convolutions and BatchNorms of a stage of residual blocks, without biases."""
    first, others = 9 * before * after, (2 * blocks - 1) * 9 * after * after
    return first + others + 2 * blocks * 2 * after + (before * after + 2 * after if shortcut else 0)


VGG = 9 * (64 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 3 * 512 * 512) + 512 * 10
VIT_BLOCK = (
    2 * 512  # norm
    + 512 * 3 * 512  # queries, keys, values
    + 512 * 512
    + 512  # projection
    + 2 * 512  # norm
    + 2 * 512 * 512
    + 2 * 512  # feed-forward
)
BY_HAND = [
    ({"name": "mlp"}, (1, 28, 28), 784 * 512 + 3 * 512 * 512 + 512 * 10),
    ({"name": "mlp", "bias": True}, (3, 32, 32), 3072 * 512 + 3 * 512 * 512 + 512 * 10 + 4 * 512 + 10),
    ({"name": "mlp", "width": 165, "depth": 1}, (3, 32, 32), 3072 * 165 + 165 * 10),
    ({"name": "lenet"}, (3, 32, 32), 25 * 3 * 6 + 25 * 6 * 16 + 400 * 120 + 120 * 84 + 84 * 10),
    ({"name": "lenet"}, (1, 28, 28), 25 * 6 + 25 * 6 * 16 + 400 * 120 + 120 * 84 + 84 * 10),
    ({"name": "lenet", "bias": True}, (1, 8, 8), 150 + 2400 + 64 * 120 + 10080 + 840 + 6 + 16 + 120 + 84 + 10),
    ({"name": "vgg11"}, (3, 32, 32), 9 * 3 * 64 + VGG),
    ({"name": "vgg11"}, (1, 8, 8), 9 * 64 + VGG),
    ({"name": "vgg11", "batch_norm": True}, (3, 32, 32), 9 * 3 * 64 + VGG + 2 * (64 + 128 + 2 * 256 + 4 * 512)),
    ({"name": "vgg11", "bias": True}, (3, 32, 32), 9 * 3 * 64 + VGG + 64 + 128 + 2 * 256 + 4 * 512 + 10),
    (
        {"name": "resnet18"},
        (3, 32, 32),
        27 * 64 + 128 + stage(64, 64, 2, False) + stage(64, 128, 2) + stage(128, 256, 2) + stage(256, 512, 2) + 5120,
    ),
    (
        {"name": "resnet20", "share": 4, "bias": True},
        (3, 32, 32),
        27 * 64 + 128 + stage(64, 64, 3, False) + stage(64, 128, 3) + stage(128, 256, 3) + 2560 + 10,
    ),
    ({"name": "resnet8"}, (1, 28, 28), 144 + 32 + stage(16, 16, 1, False) + stage(16, 32, 1) + stage(32, 64, 1) + 640),
    (
        {"name": "vit"},
        (3, 32, 32),
        2 * 48 + 48 * 512 + 512 + 2 * 512 + 66 * 512 + 6 * VIT_BLOCK + 2 * 512 + 512 * 10 + 10,
    ),
    ({"name": "convnet", "width": 4}, (1, 8, 8), 9 * (4 + 16 + 32) + 2 * (4 + 4 + 8) + 8 * 10 + 10),
]


@pytest.mark.parametrize(("settings", "shape", "expected"), BY_HAND, ids=lambda x: str(x).replace("'", ""))
def test_parameters_counted_by_hand(settings, shape, expected):
    assert count(settings, shape) == expected


FREE = {
    "mlp": 4,
    "lenet": 4,
    "vgg11": 8,
    "vgg11 with BatchNorm": 8,
    "resnet18": 4 + 8,  # a stream per stage, a group inside each block
    "resnet18 without BatchNorm": 4 + 8,
    "vit": 1 + 2 * 3,  # the stream; heads, channels of a head and the feed-forward layer of each block
    "resnet8": 3 + 3,
    "resnet20": 3 + 9,
    "convnet": 2,
}


@pytest.mark.parametrize("name", SMALL)
def test_every_hidden_neuron_is_free(name):
    network = small(name)
    graph = ng.trace(network, torch.randn(2, 1, 8, 8))
    assert len(graph.free) == FREE[name]
    assert not graph.unreached
    # positions: those before LeNet's flatten, and which of q, k and v
    expected = {FixedReason.INPUT, FixedReason.OUTPUT, FixedReason.POSITIONS}
    assert {group.reason for group in graph.groups if group.fixed} <= expected


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_logits_for_any_shape(name, shape):
    network = small(name, shape)
    outputs = network(torch.randn(3, *shape))
    assert outputs.shape == (3, 10)
    assert outputs.std(0).min() > 0  # every image has its own answer
    network.train()(torch.randn(3, *shape)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_bias_says_whether_the_head_has_one(name):
    for bias in (True, False):
        network = small(name, bias=bias)
        assert (network.head.bias is not None) == bias
        linear = [m.bias is not None for m in network.modules() if isinstance(m, nn.Linear)]
        assert sum(linear) == (len(linear) - (2 if name == "vit" else 0)) * bias


@pytest.mark.parametrize("name", SMALL)
def test_every_method_fuses_them(name):
    members = [small(name, seed=seed) for seed in (1, 2)]
    images = torch.randn(8, 1, 8, 8)
    graph = ng.trace(members[0], images[:2])
    shapes = {key: tensor.shape for key, tensor in members[0].state_dict().items()}
    for method in METHODS:
        fused = ng.fuse(members, images[:2], method, graph=graph, calibration=[images], recover=None)
        assert {key: tensor.shape for key, tensor in fused.state_dict().items()} == shapes
        outputs = fused(images)
        assert outputs.isfinite().all(), method
        assert all(not torch.equal(outputs, member(images)) for member in members), method
    itself = ng.fuse([members[0]] * 2, images[:2], "permutation", graph=graph)
    torch.testing.assert_close(itself(images), members[0](images), rtol=1e-4, atol=1e-5)


def test_poolings_stop_at_a_single_pixel():
    pools = {
        shape: sum(isinstance(m, nn.MaxPool2d) for m in small("vgg11", shape).modules())
        for shape in ((3, 32, 32), (1, 28, 28), (1, 8, 8), (1, 1, 1))
    }
    assert list(pools.values()) == [5, 4, 3, 0]


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({"name": "lenet"}, (1, 3, 9), "LeNet takes images of at least 4 x 4 pixels, got 3 x 9"),
        ({"name": "vit"}, (1, 30, 32), "ViT cuts images into patches of 4 x 4 pixels, got 30 x 32"),
        ({"name": "vit", "width": 100}, (1, 8, 8), r"width \(100\) is not a multiple of its heads \(8\)"),
        ({"name": "convnet"}, (1, 1, 8), "ConvNet takes images of at least 2 x 2 pixels"),
        ({"name": "resnet18", "share": -1}, (1, 8, 8), "share is a factor on every width, above 0, got -1"),
        ({"name": "vgg_11"}, (3, 32, 32), "unknown network 'vgg_11'; did you mean 'vgg11'"),
        ({"width": 3}, (3, 32, 32), "unknown network None; known: convnet, lenet"),
        ({"name": ["mlp"]}, (3, 32, 32), r"unknown network \['mlp'\]"),
        ("mlp", (3, 32, 32), "settings are a mapping such as {'name': 'mlp'}, got 'mlp'"),
        ({"name": "mlp", "widht": 3}, (3, 32, 32), "network 'mlp' has no option 'widht'; did you mean 'width'"),
        ({"name": "mlp", "width": 0}, (3, 32, 32), "width is a whole number of at least 1, got 0"),
        ({"name": "mlp", "bias": "no"}, (3, 32, 32), "bias is True or False, got 'no'"),
        ({"name": "vit", "dropout": "a"}, (3, 32, 32), "dropout is a number, got 'a'"),
        ({"huggingface": {}}, (1, 8, 8), "model_type None is no image classifier"),
        ({"huggingface": {"model_type": "vti"}}, (1, 8, 8), "did you mean 'vit'"),
        ({"huggingface": {"model_type": "bert"}}, (1, 8, 8), "model_type 'bert' is no image classifier"),
        (
            {"huggingface": {"model_type": "vit", "hiden_size": 8}},
            (1, 8, 8),
            "'vit' has no key 'hiden_size'; did you mean 'hidden_size'",
        ),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_what_cannot_be_built_is_named(settings, shape, message):
    with pytest.raises(OptionError, match=message):
        make_network(settings, shape, 10)


def test_settings_are_checked_without_building():
    check_network({"name": "vgg11", "share": 0.5})
    check_network({"name": "there.is.none:such"})  # nothing is imported
    with pytest.raises(OptionError, match="has no option 'shaer'; did you mean 'share'"):
        check_network({"name": "vgg11", "shaer": 0.5})
    with pytest.raises(InputError, match="factory 'torch.nn:' must read package.module:function"):
        check_network({"name": "torch.nn:"})
    with pytest.raises(InputError, match="torch.nn has no 'Idenity'; did you mean 'Identity'"):
        make_network({"name": "torch.nn:Idenity"}, (1, 8, 8), 10)
    with pytest.raises(OptionError, match="depth is at most 65,536, got 1000000000"):
        check_network({"name": "mlp", "depth": 1000000000})


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(
        "from torch import nn\n"
        "def fitting(shape, classes, hidden=3):\n"
        "    size = shape[0] * shape[1] * shape[2]\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, classes))\n"
        "def rigid():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n"
        "def none(classes):\n"
        "    return classes\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_any_factory(factories):
    network = make_network({"name": "own_networks:fitting", "hidden": 5}, (3, 4, 4), 6)
    assert [p.shape for p in network.parameters()] == [(5, 48), (5,), (6, 5), (6,)]
    assert make_network({"name": "own_networks:rigid"}, (1, 8, 8), 7)(torch.zeros(1, 64)).shape == (1, 7)
    for settings, message in (
        ({"name": "own_networks:fitting", "hiden": 5}, "factory 'own_networks:fitting' failed: TypeError: .*hiden"),
        ({"name": "own_networks:rigid"}, r"logits for 2 images have shape \(2, 7\), expected \(2, 10\)"),
        ({"name": "own_networks:none"}, "gave a int, not a torch.nn.Module"),
        ({"name": "own_networks:fiting"}, "own_networks has no 'fiting'; did you mean 'fitting'"),
    ):
        with pytest.raises(InputError, match=message):
            make_network(settings, (1, 8, 8), 10)
    with pytest.raises(InputError, match=r"does not take images of shape \(3, 32, 32\): RuntimeError"):
        make_network({"name": "own_networks:rigid"}, (3, 32, 32), 7)


TINY_VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "patch_size": 4,
}


def test_hugging_face_configurations(tmp_path):
    network = make_network({"huggingface": TINY_VIT}, (1, 8, 8), 10)
    images = torch.randn(4, 1, 8, 8)
    assert network.eval()(images).logits.shape == (4, 10)
    assert (network.config.num_channels, network.config.image_size) == (1, 8)
    (tmp_path / "config.json").write_text(json.dumps(TINY_VIT))
    members = [make_network({"huggingface": str(tmp_path)}, (1, 8, 8), 10).eval() for _ in range(2)]
    scores = ng.evaluate(ng.fuse(members, images[:2]), [(images, torch.arange(4))])
    assert scores.samples == 4
    with pytest.raises(InputError, match="config.json does not exist"):
        make_network({"huggingface": str(tmp_path / "nowhere")}, (1, 8, 8), 10)
    with pytest.raises(OptionError, match="'bias' beside 'huggingface'"):
        make_network({"huggingface": TINY_VIT, "bias": True}, (1, 8, 8), 10)
    with pytest.raises(InputError, match="huggingface cannot be built"):
        make_network({"huggingface": TINY_VIT | {"hidden_size": "wide"}}, (1, 8, 8), 10)


def test_hugging_face_needs_transformers(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'neurograft\[hf\]'"):
        make_network({"huggingface": TINY_VIT}, (1, 8, 8), 10)


def test_the_same_seed_gives_the_same_network():
    for name in SMALL:
        first, again = small(name, seed=3), small(name, seed=3)
        torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert {name.partition(" ")[0] for name in SMALL} == set(NAMED)


def test_the_page_lists_every_named_network():
    from tools.named_networks import PAGE, table

    assert table() in PAGE.read_text(encoding="utf-8")
