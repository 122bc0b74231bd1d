"""One network per entry of the list of what breaks tracers: expected free groups (units, sorted), deep proof."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils import _pytree as pytree

import neurograft as ng
from neurograft.tracing.graph import FixedReason
from tests.networks import NETWORKS, ResNet, build, example
from tests.tracing.shares import free_share


class Case(NamedTuple):
    """A network, its inputs, and the units of its free groups in ascending order."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    units: list[int]


def noise(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def tokens(length: int = 6, words: int = 13) -> Callable[[], Tensor]:
    return lambda: torch.randint(words, (2, length), generator=torch.Generator().manual_seed(5))


class Lambda(nn.Module):
    """Modules by name, and a function that uses them."""

    def __init__(self, run: Callable[..., Any], **modules: nn.Module | nn.Parameter | nn.ParameterList):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.run = run

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


class PatchViT(nn.Module):
    """The papers' vision transformer in small: patches, class token, fused qkv, pre-norm."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.patch = nn.Linear(3 * 4 * 4, width)
        self.token, self.position = parameter(1, 1, width), parameter(1, 5, width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.up, self.down, self.head = nn.Linear(width, 16), nn.Linear(16, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        x = x.view(b, 3, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(b, 4, 48)
        x = torch.cat([self.token.expand(b, -1, -1), self.patch(x)], 1) + self.position
        q, k, v = (part.view(b, 5, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, 5, -1))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm3(x)[:, 0])


def grouped_query(self: Any, x: Tensor) -> Tensor:
    b, t, _ = x.shape
    x = self.stem(x)
    q = self.q(x).view(b, t, 4, 3).transpose(1, 2)
    k, v = (layer(x).view(b, t, 2, 3).transpose(1, 2) for layer in (self.k, self.v))
    y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return self.head(self.o(y.transpose(1, 2).reshape(b, t, 12)).mean(1))


def rotary(self: Any, x: Tensor) -> Tensor:
    b, t, _ = x.shape
    angles = torch.arange(t)[:, None] / torch.tensor([1.0, 10.0])
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))

    def turned(y: Tensor) -> Tensor:
        left, right = y.chunk(2, -1)
        return y * cos + torch.cat([-right, left], -1) * sin

    q, k, v = (layer(x).view(b, t, 3, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
    y = F.scaled_dot_product_attention(turned(q), turned(k), v)
    return self.o(y.transpose(1, 2).reshape(b, t, 12)).mean(1)


def interleaved_rotary(self: Any, x: Tensor) -> Tensor:
    b, t, _ = x.shape
    angles = torch.arange(t)[:, None] / torch.tensor([1.0, 10.0])

    def turned(y: Tensor) -> Tensor:
        even, odd = y[..., ::2], y[..., 1::2]
        pair = torch.stack([even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()], -1)
        return pair.flatten(-2)

    q, k, v = (layer(x).view(b, t, 3, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
    y = F.scaled_dot_product_attention(turned(q), turned(k), v)
    return self.o(y.transpose(1, 2).reshape(b, t, 12)).mean(1)


def windows(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x).permute(0, 2, 3, 1)
    x = torch.roll(x, (-1, -1), (1, 2))
    b, h, w, c = x.shape
    x = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
    q, k, v = (layer(x).view(-1, 4, 2, 3).transpose(1, 2) for layer in (self.q, self.k, self.v))
    index = torch.arange(4)[:, None] - torch.arange(4) + 3
    bias = self.table[index.view(-1)].view(4, 4, 2).permute(2, 0, 1)
    y = ((q @ k.transpose(-1, -2)) / 2 + bias).softmax(-1) @ v
    y = self.o(y.transpose(1, 2).reshape(-1, 4, 6)).view(b, h // 2, w // 2, 2, 2, c)
    y = torch.roll(y.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c), (1, 1), (1, 2))
    return self.head(y.mean((1, 2)))


def experts(self: Any, x: Tensor) -> Tensor:
    h = self.stem(x).relu()
    weights, chosen = self.router(h).softmax(-1).topk(2, -1)
    out = torch.zeros_like(h)
    for e in range(3):
        rows, place = torch.where(chosen == e)
        y = (h[rows] @ self.up[e]).relu() @ self.down[e]
        out.index_add_(0, rows, y * weights[rows, place, None])
    return self.head(h + out)


def film(self: Any, x: Tensor, condition: Tensor) -> Tensor:
    scale, shift = self.film(condition).chunk(2, 1)
    return self.head((self.stem(x) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]).relu().mean((2, 3)))


def looping(self: Any, x: Tensor) -> Tensor:
    h = self.stem(x)
    for _ in range(8):
        h = torch.tanh(self.inner(h))
        if h.abs().mean() < 0.01:
            break
    return self.head(h)


def in_place(self: Any, x: Tensor) -> Tensor:
    h = self.stem(x)
    h.relu_().mul_(self.gain)
    out = torch.empty(h.shape[0], 2, h.shape[1])
    out[:, 0] = h
    out[:, 1] = self.inner(h)
    out += 1
    return self.head(out.sum(1))


def class_token(self: Any, x: Tensor) -> Tensor:
    x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.stem(x)], 1)
    return self.head(self.norm(x + self.position[:, : x.shape[1]])[:, 0])


def split_parts(self: Any, x: Tensor) -> Tensor:
    a, b, c = self.stem(x).split([3, 4, 5], 1)
    return self.head(torch.cat([c.relu(), self.inner(b), a], 1))


def layer_scale(self: Any, x: Tensor) -> Tensor:
    h = self.stem(x)
    return self.head(h + self.gamma * self.inner(h).relu())


def pixel_shuffle(self: Any, x: Tensor) -> Tensor:
    return self.head(F.pixel_shuffle(self.up(self.stem(x).relu()), 2).relu()).mean((2, 3))


class Cells(nn.Module):
    """A GRU cell called step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], 7)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h)


class Recurrent(nn.Module):
    """A recurrent classifier over the last state."""

    def __init__(self, kind: type[nn.RNNBase], inputs: int = 5, hidden: int = 7, **options: Any) -> None:
        super().__init__()
        self.recurrent = kind(inputs, hidden, batch_first=True, **options)
        width = options.get("proj_size") or hidden
        self.head = nn.Linear(width * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


class Encoder(nn.Module):
    """nn.TransformerEncoder between two linear layers."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first)
        self.stem, self.encoder = nn.Linear(5, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.stem(x)).mean(1))


class Whole(nn.Module):
    """nn.Transformer: encoder, decoder, cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target, self.head = nn.Linear(5, 8), nn.Linear(4, 8), nn.Linear(8, 3)
        self.both = nn.Transformer(8, 2, 1, 1, 12, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.both(self.source(x), self.target(y)))


def wide_resnet() -> nn.Module:
    return ResNet(widths=(12, 20))


def vgg11() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width in (4, 0, 6, 0, 8, 8, 0, 10, 10, 0, 10, 10, 0):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(10, 5))


def resnet20() -> nn.Module:
    return ResNet(widths=(4, 6, 8))


CASES: dict[str, Case] = {
    "split": Case(
        lambda: Lambda(split_parts, stem=nn.Linear(5, 12), inner=nn.Linear(4, 6), head=nn.Linear(14, 2)),
        noise(3, 5),
        [3, 4, 5, 6],
    ),
    "unwrapped_parameters": Case(
        lambda: Lambda(lambda m, x: (x @ m.a).relu() @ m.b + m.c, a=parameter(5, 7), b=parameter(7, 2), c=parameter(2)),
        noise(3, 5),
        [7],
    ),
    "parameter_list_and_dict": Case(
        lambda: Lambda(
            lambda m, x: ((x @ m.many[0]).relu() @ m.many[1]).relu() @ m.named["last"],
            many=nn.ParameterList([parameter(5, 7), parameter(7, 6)]),
            named=nn.ParameterDict({"last": parameter(6, 2)}),
        ),
        noise(3, 5),
        [6, 7],
    ),
    "reshape_and_flatten": Case(
        lambda: Lambda(
            lambda m, x: m.head(m.conv(m.stem(x).view(-1, 4, 3, 3)).relu().flatten(1)),
            stem=nn.Linear(5, 36),
            conv=nn.Conv2d(4, 6, 2),
            head=nn.Linear(24, 2),
        ),
        noise(3, 5),
        [4, 6],
    ),
    "multi_head_attention": Case(
        lambda: Lambda(
            lambda m, x: m.head(m.attend(*[m.stem(x)] * 3)[0].mean(1)),
            stem=nn.Linear(5, 8),
            attend=nn.MultiheadAttention(8, 2, batch_first=True),
            head=nn.Linear(8, 2),
        ),
        noise(3, 4, 5),
        # queries, keys and values are stacked as [3, heads, channels]: they share their channels
        [2, 4, 8, 8],
    ),
    "multi_head_attention_without_weights": Case(
        lambda: Lambda(
            lambda m, x, y: m.head(m.attend(m.stem(x), m.other(y), m.other(y), need_weights=False)[0]),
            stem=nn.Linear(5, 8),
            other=nn.Linear(6, 8),
            attend=nn.MultiheadAttention(8, 2, batch_first=True, kdim=8, vdim=8),
            head=nn.Linear(8, 2),
        ),
        lambda: (noise(3, 4, 5)(), noise(3, 7, 6)()),
        # one packed projection reads both inputs, so their neurons move together
        [2, 4, 4, 8, 8],
    ),
    "grouped_query_attention": Case(
        lambda: Lambda(
            grouped_query,
            stem=nn.Linear(5, 8),
            q=nn.Linear(8, 12),
            k=nn.Linear(8, 6),
            v=nn.Linear(8, 6),
            o=nn.Linear(12, 7),
            head=nn.Linear(7, 2),
        ),
        noise(3, 4, 5),
        [2, 2, 3, 3, 7, 8],
    ),
    "rotary": Case(
        lambda: Lambda(rotary, q=nn.Linear(5, 12), k=nn.Linear(5, 12), v=nn.Linear(5, 12), o=nn.Linear(12, 2)),
        noise(3, 4, 5),
        [3, 4],
    ),
    "interleaved_rotary": Case(
        lambda: Lambda(
            interleaved_rotary, q=nn.Linear(5, 12), k=nn.Linear(5, 12), v=nn.Linear(5, 12), o=nn.Linear(12, 2)
        ),
        noise(3, 4, 5),
        [3, 4],
    ),
    # the four neighbours of a channel become image positions; the channels themselves stay free
    "pixel_shuffle": Case(
        lambda: Lambda(pixel_shuffle, stem=nn.Conv2d(3, 5, 1), up=nn.Conv2d(5, 12, 1), head=nn.Conv2d(3, 2, 1)),
        noise(2, 3, 4, 4),
        [3, 5],
    ),
    "lstm": Case(lambda: Recurrent(nn.LSTM), noise(3, 4, 5), [7]),
    "lstm_equal_sizes": Case(lambda: Recurrent(nn.LSTM, 6, 6, num_layers=2), noise(3, 4, 6), [6, 6]),
    "lstm_bidirectional": Case(lambda: Recurrent(nn.LSTM, bidirectional=True), noise(3, 4, 5), [7, 7]),
    "lstm_projected": Case(lambda: Recurrent(nn.LSTM, proj_size=4), noise(3, 4, 5), [4, 7]),
    "gru": Case(lambda: Recurrent(nn.GRU, num_layers=2), noise(3, 4, 5), [7, 7]),
    "rnn": Case(lambda: Recurrent(nn.RNN), noise(3, 4, 5), [7]),
    "gru_cell": Case(Cells, noise(3, 4, 5), [7]),
    "transformer_encoder": Case(lambda: Encoder(False), noise(3, 4, 5), [2, 2, 4, 4, 8, 12, 12]),
    "transformer_encoder_norm_first": Case(lambda: Encoder(True), noise(3, 4, 5), [2, 2, 4, 4, 8, 12, 12]),
    "transformer": Case(Whole, lambda: (noise(3, 4, 5)(), noise(3, 6, 4)()), [2, 2, 2, 4, 4, 4, 8, 12, 12]),
    "papers_vit": Case(PatchViT, noise(2, 3, 8, 8), [3, 4, 4, 12, 16]),
    "in_place": Case(
        lambda: Lambda(in_place, stem=nn.Linear(5, 8), gain=parameter(8), inner=nn.Linear(8, 8), head=nn.Linear(8, 2)),
        noise(3, 5),
        [8],
    ),
    "layer_scale": Case(
        lambda: Lambda(
            layer_scale, stem=nn.Linear(5, 8), gamma=parameter(8), inner=nn.Linear(8, 8), head=nn.Linear(8, 2)
        ),
        noise(3, 5),
        [8],
    ),
    "class_token": Case(
        lambda: Lambda(
            class_token,
            token=parameter(1, 1, 8),
            position=parameter(1, 9, 8),
            stem=nn.Linear(5, 8),
            norm=nn.LayerNorm(8),
            head=nn.Linear(8, 2),
        ),
        noise(3, 4, 5),
        [8],
    ),
    "windows_and_relative_bias": Case(
        lambda: Lambda(
            windows,
            stem=nn.Conv2d(3, 8, 1),
            q=nn.Linear(8, 6),
            k=nn.Linear(8, 6),
            v=nn.Linear(8, 6),
            o=nn.Linear(6, 8),
            table=parameter(7, 2),
            head=nn.Linear(8, 2),
        ),
        noise(2, 3, 4, 4),
        [2, 3, 3, 8, 8],
    ),
    # the experts in a loop over their numbers, the hidden neurons of each, the stream
    "experts": Case(
        lambda: Lambda(
            experts,
            stem=nn.Linear(5, 8),
            router=nn.Linear(8, 3),
            up=parameter(3, 8, 6),
            down=parameter(3, 6, 8),
            head=nn.Linear(8, 2),
        ),
        noise(9, 5),
        [3, 6, 8],
    ),
    "film": Case(
        lambda: Lambda(film, stem=nn.Conv2d(3, 6, 3), film=nn.Linear(4, 12), head=nn.Linear(6, 2)),
        lambda: (noise(2, 3, 5, 5)(), noise(2, 4)()),
        [6],
    ),
    "data_dependent_control_flow": Case(
        lambda: Lambda(looping, stem=nn.Linear(5, 8), inner=nn.Linear(8, 8), head=nn.Linear(8, 2)),
        noise(3, 5),
        [8],
    ),
    "spectral_norm": Case(
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 7)), nn.ReLU(), nn.Linear(7, 2)),
        noise(3, 5),
        [7],
    ),
    "bilinear": Case(
        lambda: Lambda(
            lambda m, x, y: m.head(m.mix(m.a(x), m.b(y)).relu()),
            a=nn.Linear(5, 6),
            b=nn.Linear(4, 7),
            mix=nn.Bilinear(6, 7, 8),
            head=nn.Linear(8, 2),
        ),
        lambda: (noise(3, 5)(), noise(3, 4)()),
        [6, 7, 8],
    ),
    "einsum": Case(
        lambda: Lambda(
            lambda m, x: torch.einsum("bi,io->bo", torch.einsum("bj,ji->bi", x, m.a).relu(), m.b),
            a=parameter(5, 7),
            b=parameter(7, 2),
        ),
        noise(3, 5),
        [7],
    ),
    "group_norm_and_instance_norm": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.Conv2d(8, 2, 3), nn.Flatten()
        ),
        noise(2, 3, 5, 5),
        [8],
    ),
    "rms_norm": Case(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.RMSNorm(8), nn.SiLU(), nn.Linear(8, 2)), noise(3, 5), [8]
    ),
    "embedding_bag": Case(
        lambda: Lambda(lambda m, x: m.head(m.embed(x).relu()), embed=nn.EmbeddingBag(13, 6), head=nn.Linear(6, 2)),
        tokens(),
        [6],
    ),
    "wide_resnet": Case(wide_resnet, noise(2, 3, 8, 8), [12, 12, 12, 20, 20, 20]),
    "resnet20": Case(resnet20, noise(2, 3, 8, 8), [4, 4, 4, 6, 6, 6, 8, 8, 8]),
    "vgg11": Case(vgg11, noise(2, 3, 32, 32), [4, 6, 8, 8, 10, 10, 10, 10]),
    "gated_linear_unit": Case(lambda: nn.Sequential(nn.Linear(5, 16), nn.GLU(), nn.Linear(8, 2)), noise(3, 5), [8]),
}


def roughened(model: nn.Module) -> nn.Module:
    """Eval mode, with noise on every parameter."""
    with torch.no_grad():
        for x in model.parameters():
            x.add_(0.1 * torch.randn_like(x))
    return model.eval()


def others(inputs: Any) -> Any:
    """Other inputs of the same shapes."""
    generator = torch.Generator().manual_seed(9)

    def other(x: Tensor) -> Tensor:
        if x.is_floating_point():
            return torch.randn(x.shape, generator=generator)
        return torch.randint(int(x.max()) + 1, x.shape, generator=generator)

    return pytree.tree_map_only(Tensor, other, inputs)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = roughened(CASES[name].make()), CASES[name].inputs()
    graph = ng.trace(model, inputs)
    assert graph.unruled == ()
    assert sorted(group.size for group in graph.free) == CASES[name].units, str(graph)
    assert free_share(model, graph) >= 0.95
    proof = ng.verify(model, graph, inputs, seed=4, deep=True)
    assert proof.passed, str(proof)
    assert ng.verify(model, graph, others(inputs), seed=5).passed


def test_channels_last_gives_the_same_groups() -> None:
    model, x = roughened(ResNet()), noise(2, 3, 8, 8)()
    plain = ng.trace(model, x)
    last = ng.trace(model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last))
    assert [(g.name, g.fixed, g.slots) for g in plain] == [(g.name, g.fixed, g.slots) for g in last]
    assert ng.permute(model, last, {}).conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["mlp_layer_norm", "resnet", "attention", "grouped", "squeeze_excite"])
def test_half_precision_gives_the_same_groups(name: str, dtype: torch.dtype) -> None:
    model, x = build(name), example(name)
    plain = ng.trace(model, x)
    half = ng.trace(model.to(dtype), x.to(dtype))
    assert half.proven.startswith("proven")
    assert [(g.name, g.fixed, g.slots) for g in plain] == [(g.name, g.fixed, g.slots) for g in half]


def test_dropout_and_train_only_branches_do_not_matter() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.drop, self.head = nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.drop(self.stem(x))
            return self.head(h.cumsum(-1) if self.training else h)

    graph = ng.trace(Branches().train(), noise(3, 5)())
    assert not graph["stem.weight:0"].fixed


def test_caches_that_are_returned_fix_nothing() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> dict[str, Any]:
            h = self.stem(x).relu()
            return {"scores": self.head(h), "past_key_values": ((h, h),)}

    assert not ng.trace(Caching(), noise(3, 5)())["stem.weight:0"].fixed


def test_buffers_along_neurons_move_with_them() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 2)
            self.register_buffer("mask", torch.rand(8))
            self.register_buffer("unsaved", torch.rand(8), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x) * self.mask)

    graph = ng.trace(Buffered(), noise(3, 5)())
    assert "mask" in {slot.tensor for slot in graph["stem.weight:0"].slots}
    assert "unsaved" not in graph.tensors


def test_buffers_that_are_not_saved_are_constants() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 2)
            self.register_buffer("table", torch.rand(8), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x) * self.table)

    graph = ng.trace(Fixed(), noise(3, 5)())
    assert graph["stem.weight:0"].reason is FixedReason.CONSTANT


def test_two_group_counts_that_do_not_nest_are_fixed_with_that_reason() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(4, 12), nn.GroupNorm(3, 12), nn.Flatten(), nn.Linear(48, 2))
    graph = ng.trace(model, noise(2, 3, 2, 2)())
    assert graph["0.weight:0"].reason is FixedReason.CONFLICT


def test_several_outputs_fix_what_each_of_them_shows() -> None:
    class Several(nn.Module):
        """Two heads, and the hidden state that one of them reads."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner = nn.Linear(5, 8), nn.Linear(8, 6)
            self.first, self.second = nn.Linear(6, 2), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            h = self.stem(x).relu()
            inner = self.inner(h).relu()
            return self.first(inner), {"second": self.second(h), "state": inner}

    model, x = roughened(Several()), noise(3, 5)()
    graph = ng.trace(model, x)
    assert [group.name for group in graph.free] == ["stem.weight:0"]
    assert graph["inner.weight:0"].reason is FixedReason.OUTPUT
    chosen = ng.trace(model, x, outputs=["0", "1.second"])
    assert [group.name for group in chosen.free] == ["stem.weight:0", "inner.weight:0"]


# what breaks tracers, and which network or test of this suite has it
CHECKLIST: dict[str, list[str]] = {
    "concatenation and split": ["split", "densenet", "unet"],
    "unwrapped parameters": ["unwrapped_parameters", "bare"],
    "group and depthwise convolutions": ["grouped", "depthwise", "depthwise_double"],
    "flatten and reshape": ["reshape_and_flatten", "lenet"],
    "multi-head attention": ["multi_head_attention", "attention"],
    "grouped-query attention": ["grouped_query_attention"],
    "fused qkv": ["papers_vit", "attention"],
    "pixel shuffle": ["pixel_shuffle"],
    "weight tying": ["tied", "tied_without_norm"],
    "several inputs": ["two_inputs", "film"],
    "several outputs": ["test_several_outputs_fix_what_each_of_them_shows"],
    "recurrent layers": ["lstm", "lstm_equal_sizes", "lstm_bidirectional", "lstm_projected", "gru", "rnn", "gru_cell"],
    "custom modules": ["split", "film"],
    "no-parameter models": ["test_a_network_without_parameters_has_no_groups"],
    "a head registered before the trunk": ["head_first"],
    "unused parameters": ["unused"],
    "the same module called twice": ["twice"],
    "in-place operations": ["in_place"],
    "buffers along neuron axes": ["test_buffers_along_neurons_move_with_them"],
    "ParameterList and ParameterDict": ["parameter_list_and_dict"],
    "weight norm": ["weight_norm"],
    "spectral norm": ["spectral_norm"],
    "LayerScale": ["layer_scale"],
    "squeeze-and-excite": ["squeeze_excite"],
    "positional embeddings": ["class_token", "mixer"],
    "class tokens": ["class_token", "papers_vit"],
    "relative position bias": ["windows_and_relative_bias"],
    "rolled and partitioned windows": ["windows_and_relative_bias"],
    "rotary embeddings": ["rotary", "interleaved_rotary"],
    "mixtures of experts": ["experts", "test_experts_are_units"],
    "channels-last tensors": ["test_channels_last_gives_the_same_groups"],
    "half precision": ["test_half_precision_gives_the_same_groups"],
    "models on the meta device": ["test_small_networks_give_the_same_graph"],
    "caches returned by default": ["test_caches_that_are_returned_fix_nothing"],
    "dropout and train-only branches": ["test_dropout_and_train_only_branches_do_not_matter"],
}


@pytest.mark.parametrize("entry", CHECKLIST)
def test_every_entry_of_the_checklist_has_a_test(entry: str) -> None:
    written = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    for name in CHECKLIST[entry]:
        assert name in CASES or name in NETWORKS or f"def {name}(" in written, name
