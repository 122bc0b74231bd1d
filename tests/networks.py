"""Small networks that the tests share: `NETWORKS[name]` is (factory, example inputs factory).

`build(name, seed)` gives a network in eval mode whose every parameter and running statistic is noisy,
because zeros and ones hide mistakes; `example(name)` gives its example inputs.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class Network(NamedTuple):
    """How to make a network and what it takes."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]


class MLP(nn.Module):
    """Linear layers with ReLU between."""

    def __init__(self, *sizes: int, bias: bool = False, norm: Callable[[int], nn.Module] | None = None):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b, bias) for a, b in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(norm(b) for b in sizes[1:-1]) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for i, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            x = (self.norms[i](x) if self.norms else x).relu()
        return self.layers[-1](x)


class LeNet(nn.Module):
    """Two convolutions with pooling, flattened into three linear layers."""

    def __init__(self, bias: bool = False):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 4, 3, bias=bias), nn.Conv2d(4, 6, 3, bias=bias)
        self.f1, self.f2 = nn.Linear(6 * 2 * 2, 12, bias=bias), nn.Linear(12, 10, bias=bias)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.c1(x).relu())
        x = self.pool(self.c2(x).relu()).flatten(1)
        return self.f2(self.f1(x).relu())


class VGG(nn.Module):
    """A plain convolutional network, with or without BatchNorm; a width of 0 is a pooling layer."""

    def __init__(self, norm: bool = False, bias: bool = True, widths: tuple[int, ...] = (8, 0, 12, 12, 0)):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in widths:
            if width == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=bias)]
            layers += [nn.BatchNorm2d(width)] if norm else []
            layers += [nn.ReLU(inplace=True)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, 10, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


class Block(nn.Module):
    """A residual block; the shortcut is a convolution where the shape changes."""

    def __init__(self, a: int, b: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), norm(b)
        self.conv2, self.norm2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), norm(b)
        same = stride == 1 and a == b
        self.shortcut = nn.Sequential() if same else nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), norm(b))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class ResNet(nn.Module):
    """Two stages of residual blocks."""

    def __init__(
        self,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        widths: tuple[int, ...] = (8, 12),
        bias: bool = True,
    ):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False), norm(widths[0])
        blocks: list[nn.Module] = []
        channels = widths[0]
        for stage, width in enumerate(widths):
            for depth in range(2):
                blocks.append(Block(channels, width, 2 if stage and not depth else 1, norm))
                channels = width
        self.blocks, self.linear = nn.Sequential(*blocks), nn.Linear(channels, 10, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.blocks(self.norm1(self.conv1(x)).relu()).mean((2, 3)))


class LayerNormImage(nn.Module):
    """LayerNorm over C x H x W."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.LayerNorm((6, 4, 4)), nn.Conv2d(6, 5, 3)
        self.head = nn.Linear(5 * 2 * 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv2(self.norm(self.conv1(x)).relu()).flatten(1))


class Residual1d(nn.Module):
    """A Conv1d network with BatchNorm1d and a residual addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv1d(2, 6, 3, padding=1), nn.BatchNorm1d(6)
        self.inner, self.head = nn.Conv1d(6, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head((x + self.inner(x).relu()).mean(-1))


class Autoencoder(nn.Module):
    """Strided convolutions down, transposed convolutions up."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.up1, self.up2 = nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.ConvTranspose2d(6, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down2(self.down1(x).relu()).relu()
        return self.up2(self.up1(x).relu())


class DenseNet(nn.Module):
    """Every layer reads the concatenation of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in (6, 10, 14))
        self.convs = nn.ModuleList(nn.Conv2d(c, 4, 3, padding=1, bias=False) for c in (6, 10))
        self.head = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(norm(x).relu())], 1)
        return self.head(self.norms[-1](x).relu().mean((2, 3)))


class UNet(nn.Module):
    """Skip concatenations around an upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, 2, 1)
        self.up, self.join = nn.ConvTranspose2d(8, 5, 2, 2), nn.Conv2d(11, 7, 3, padding=1)
        self.leave = nn.Conv2d(7 + 8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.enter(x).relu()
        b = self.down(a).relu()
        c = self.join(torch.cat([self.up(b), a], 1)).relu()
        return self.leave(torch.cat([c, F.interpolate(b, scale_factor=2)], 1))


class TwoInputs(nn.Module):
    """Two inputs, two outputs, one shared trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.trunk = nn.Linear(5, 8), nn.Linear(7, 8), nn.Linear(8, 9)
        self.coarse, self.fine = nn.Linear(9, 2), nn.Linear(9, 4)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk((self.left(left) * self.right(right).sigmoid()).relu()).relu()
        return self.coarse(x), self.fine(x)


class HeadFirst(nn.Module):
    """The head is registered before the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.trunk, self.stem = nn.Linear(7, 3), nn.Linear(9, 7), nn.Linear(6, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(self.stem(x).relu()).relu())


class Tied(nn.Module):
    """A language model in miniature whose head is its embedding; a LayerNorm stands in front of the head."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.embed, self.hidden, self.back = nn.Embedding(11, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.norm = nn.LayerNorm(8) if norm else nn.Identity()
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(self.norm(x + self.back(self.hidden(x).relu())))


class Twice(nn.Module):
    """One layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(self.again(self.again(x).relu()).relu())


class Unused(nn.Module):
    """A branch that never runs, of its own and beside a free group."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.idle = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 8)
        self.spare = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).relu())


class Bare(nn.Module):
    """Parameters without modules, and a query that is only read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(6, 9)), nn.Parameter(torch.randn(9, 5))
        self.gain, self.query = nn.Parameter(torch.randn(9)), nn.Parameter(torch.randn(9))
        self.scales = nn.ParameterList([nn.Parameter(torch.randn(9)) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x @ self.first) * self.gain
        for scale in self.scales:
            h = h * scale
        return h @ self.second + (h @ self.query)[:, None]


class Positions(nn.Module):
    """A positional embedding with two out axes: tokens are mixed by one layer, channels by the other (an MLP-Mixer)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.position = nn.Conv2d(3, 8, 2, 2), nn.Parameter(torch.randn(1, 16, 8))
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.tokens1, self.tokens2 = nn.Linear(16, 6), nn.Linear(6, 16)
        self.channels1, self.channels2, self.head = nn.Linear(8, 10), nn.Linear(10, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        y = self.tokens2(F.gelu(self.tokens1(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + y
        x = x + self.channels2(F.gelu(self.channels1(self.norm2(x))))
        return self.head(x.mean(1))


class SqueezeExcite(nn.Module):
    """A channel gate computed from the pooled channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(x.mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between dense ones."""

    def __init__(self, groups: int, middle: int) -> None:
        super().__init__()
        self.enter, self.inner = nn.Conv2d(3, 12, 1), nn.Conv2d(12, middle, 3, padding=1, groups=groups)
        self.leave, self.head = nn.Conv2d(middle, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.leave(self.inner(self.enter(x).relu()).relu()).mean((2, 3)))


class Attention(nn.Module):
    """One block of multi-head self-attention with a fused qkv projection, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(5, 12), nn.LayerNorm(12)
        self.qkv, self.project, self.head = nn.Linear(12, 36), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, 3, 4).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / 2).softmax(-1)
        y = (weights @ v).transpose(1, 2).reshape(batch, length, width)
        return self.head((x + self.project(y)).mean(1))


class WeightNormed(nn.Module):
    """Parametrised weights: weight norm and spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = parametrizations.weight_norm(nn.Linear(6, 9))
        self.second = parametrizations.spectral_norm(nn.Linear(9, 7))
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


class Shuffled(nn.Module):
    """A channel shuffle between two grouped convolutions, and a split whose halves go different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.one = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.two, self.side, self.head = nn.Conv2d(12, 12, 3, padding=1, groups=3), nn.Conv2d(6, 6, 1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.enter(x).relu())
        batch, channels, height, width = x.shape
        x = x.view(batch, 3, 4, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        left, right = self.two(x).relu().chunk(2, 1)
        return self.head(torch.cat([left, self.side(right)], 1).mean((2, 3)))


def sequence(*modules: nn.Module) -> nn.Module:
    """A plain chain of modules."""
    return nn.Sequential(*modules)


def image(*shape: int) -> Callable[[], Tensor]:
    """Seeded normal noise of that shape."""
    return lambda: torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def tokens() -> Tensor:
    """Seeded token numbers, shape (2, 5)."""
    return torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(7))


NETWORKS: dict[str, Network] = {
    "mlp": Network(lambda: MLP(12, 16, 14, 10), image(4, 12)),
    "mlp_bias": Network(lambda: MLP(12, 16, 14, 10, bias=True), image(4, 12)),
    "mlp_batch_norm": Network(lambda: MLP(12, 16, 14, 10, bias=True, norm=nn.BatchNorm1d), image(4, 12)),
    "mlp_layer_norm": Network(lambda: MLP(12, 16, 14, 10, bias=True, norm=nn.LayerNorm), image(4, 12)),
    "mlp_prelu": Network(lambda: MLP(12, 16, 14, 10, bias=True, norm=nn.PReLU), image(4, 12)),
    "lenet": Network(lambda: LeNet(), image(2, 3, 14, 14)),
    "lenet_bias": Network(lambda: LeNet(bias=True), image(2, 3, 14, 14)),
    "vgg": Network(lambda: VGG(), image(2, 3, 8, 8)),
    "vgg_batch_norm": Network(lambda: VGG(norm=True), image(2, 3, 8, 8)),
    "resnet": Network(lambda: ResNet(), image(2, 3, 8, 8)),
    "resnet_group_norm": Network(lambda: ResNet(lambda c: nn.GroupNorm(4, c)), image(2, 3, 8, 8)),
    "layer_norm_image": Network(LayerNormImage, image(2, 3, 4, 4)),
    "conv1d": Network(Residual1d, image(2, 2, 9)),
    "conv3d": Network(
        lambda: sequence(
            nn.Conv3d(1, 4, 2), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 6, 2), nn.Flatten(), nn.Linear(6, 3)
        ),
        image(2, 1, 3, 3, 3),
    ),
    "grouped": Network(lambda: Grouped(3, 9), image(2, 3, 5, 5)),
    "depthwise": Network(lambda: Grouped(12, 12), image(2, 3, 5, 5)),
    "depthwise_double": Network(lambda: Grouped(12, 24), image(2, 3, 5, 5)),
    "shuffled": Network(Shuffled, image(2, 3, 5, 5)),
    "autoencoder": Network(Autoencoder, image(2, 3, 8, 8)),
    "densenet": Network(DenseNet, image(2, 3, 6, 6)),
    "unet": Network(UNet, image(2, 3, 8, 8)),
    "two_inputs": Network(TwoInputs, lambda: {"left": image(4, 5)(), "right": image(4, 7)()}),
    "head_first": Network(HeadFirst, image(4, 6)),
    "tied": Network(Tied, tokens),
    "tied_without_norm": Network(lambda: Tied(norm=False), tokens),
    "twice": Network(Twice, image(4, 6)),
    "unused": Network(Unused, image(4, 6)),
    "bare": Network(Bare, image(4, 6)),
    "mixer": Network(Positions, image(2, 3, 8, 8)),
    "squeeze_excite": Network(SqueezeExcite, image(2, 3, 6, 6)),
    "attention": Network(Attention, image(2, 6, 5)),
    "weight_norm": Network(WeightNormed, image(4, 6)),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """The network in eval mode, made from a seed, with noise on every parameter and running statistic."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = NETWORKS[name].make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for buffer_name, buffer in model.named_buffers():
                if buffer_name.endswith("running_var"):
                    buffer.uniform_(0.5, 1.5)
                elif buffer_name.endswith("running_mean"):
                    buffer.normal_(0, 0.2)
    return model.eval()


def example(name: str) -> Any:
    """Example inputs of the network, always the same."""
    return NETWORKS[name].inputs()
