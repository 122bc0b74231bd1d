"""Every family of ops between two layers: a rule exists, and the deep proof holds on the op's own result."""

import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import neurograft as ng
from neurograft.tracing.algebra import free
from neurograft.tracing.labels import Labels
from neurograft.tracing.rules import RULES
from neurograft.tracing.tape import Op

Step = Callable[[Tensor], Tensor]


class Around(nn.Module):
    """A layer that makes (batch, 4, 6), a step, a layer that reads the step's last dim, the mean over the others."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.stem, self.step = nn.Linear(5, 24), step
        with torch.no_grad():
            width = self.made(torch.randn(3, 5)).shape[-1]
        self.head = nn.Linear(width, 2)

    def made(self, x: Tensor) -> Tensor:
        y = self.step(self.stem(x).view(-1, 4, 6))
        return y if y.is_floating_point() else y.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(torch.tanh(self.made(x)))
        return y.mean(tuple(range(1, y.dim() - 1))) if y.dim() > 2 else y


INDEX = torch.tensor([2, 0, 3])

# name -> step, and the free groups' units in ascending order
STEPS: dict[str, tuple[Step, list[int]]] = {
    "transpose": (lambda h: h.transpose(1, 2), [4, 6]),
    "permute": (lambda h: h[None].permute(1, 3, 0, 2), [4, 6]),
    "flatten": (lambda h: h.flatten(1), [4, 6]),
    "unsqueeze_expand": (lambda h: h[:, None].expand(-1, 7, -1, -1), [4, 6]),
    "repeat": (lambda h: h.repeat(1, 1, 3), [3, 4, 6]),
    "repeat_interleave": (lambda h: h.repeat_interleave(2, -1), [2, 4, 6]),
    "narrow": (lambda h: h.narrow(2, 1, 3), [2, 3, 4]),
    "every_second": (lambda h: h[..., ::2], [3, 4]),
    "select": (lambda h: h[:, 2], [6]),
    "chunk_and_swap": (lambda h: torch.cat(h.chunk(2, -1)[::-1], -1), [3, 3, 4]),
    "unbind_and_stack": (lambda h: torch.stack(h.unbind(1), -2), [6]),
    "stack_interleaved": (lambda h: torch.stack([h, -h], -1).flatten(-2), [4, 6]),
    "pad": (lambda h: F.pad(h, (1, 2)), [2, 4, 6]),
    "pad_negative": (lambda h: F.pad(h, (-1, -2)), [2, 3, 4]),
    "cat_with_zeros": (lambda h: torch.cat([h, torch.zeros(h.shape[0], 4, 2)], -1), [2, 4, 6]),
    "cumsum": (lambda h: h.cumsum(-1), [4]),
    "flip": (lambda h: h.flip(-1), [4]),
    "roll": (lambda h: h.roll(1, -1), [4]),
    # what is sorted does not depend on the order it had; its ranks have a meaning
    "sort": (lambda h: h.sort(-1).values, [4, 6]),
    "topk": (lambda h: h.topk(3, -1).values, [4, 6]),
    "topk_put_back": (lambda h: torch.zeros_like(h).scatter(-1, h.topk(3, -1).indices, h.topk(3, -1).values), [4, 6]),
    "topk_looked_up": (lambda h: h.gather(-1, h.abs().topk(3, -1).indices), [4, 6]),
    "topk_numbers": (lambda h: h.topk(3, -1).indices, [4]),
    "argmax": (lambda h: h.argmax(1), [6]),
    "max_over_dim": (lambda h: h.max(1).values, [4, 6]),
    "one_hot": (lambda h: F.one_hot(h.argmax(-1), 6), [4, 6]),
    "one_hot_wider": (lambda h: F.one_hot(h.argmax(-1), 8), [2, 4, 6]),
    "compared_with_places": (lambda h: h.argmax(-1)[..., None] == torch.arange(6), [4, 6]),
    "compared_with_another": (lambda h: h * (h.argmax(-1) == h.argmin(-1))[..., None], [4]),
    "amax": (lambda h: h.amax(1), [4, 6]),
    "mean": (lambda h: h.mean(1, keepdim=True), [4, 6]),
    "variance": (lambda h: h.var(1), [4, 6]),
    "norm": (lambda h: h.norm(dim=1), [4, 6]),
    "logsumexp": (lambda h: h.logsumexp(1), [4, 6]),
    "softmax": (lambda h: h.softmax(-1), [4, 6]),
    "log_softmax": (lambda h: h.log_softmax(1), [4, 6]),
    "triangle": (lambda h: h.tril(), []),
    "diagonal": (lambda h: h.diagonal(dim1=1, dim2=2), []),
    "matrix_product": (lambda h: h @ h.transpose(1, 2), [4, 6]),
    "outer_product": (lambda h: torch.einsum("bij,bik->bijk", h, h).flatten(2), [4, 6]),
    "constant_matrix": (lambda h: h @ torch.linspace(-1, 1, 42).view(6, 7), [4]),
    "gather": (lambda h: h.gather(2, torch.arange(4).expand(h.shape[0], 4, 4) % 3), [4]),
    "index_run": (lambda h: h[:, :, torch.tensor([1, 2, 3])], [2, 3, 4]),
    "index_any": (lambda h: h[:, :, INDEX], [4]),
    "index_pairs": (lambda h: h[:, INDEX, INDEX], []),
    "index_select": (lambda h: h.index_select(1, INDEX), [6]),
    "index_put": (lambda h: torch.zeros(9, 4, 6).index_put((torch.arange(h.shape[0]),), h), [4, 6]),
    "index_add": (lambda h: torch.zeros(9, 4, 6).index_add(0, torch.arange(h.shape[0]), h), [4, 6]),
    "scatter": (lambda h: torch.zeros(h.shape[0], 4, 6).scatter(0, torch.zeros(h.shape).long(), h), [4, 6]),
    "write_into_slice": (lambda h: written(h), [4, 6]),
    "masked_fill": (lambda h: h.masked_fill(h > 0, 1.0), [4, 6]),
    "where": (lambda h: torch.where(h > 0.1, h, h * 2), [4, 6]),
    "clamp_and_round": (lambda h: (h * 9).clamp(-3, 3).round() + h, [4, 6]),
    "rope_like_complex": (
        lambda h: torch.view_as_real(torch.view_as_complex(h.unflatten(-1, (3, 2)))).flatten(-2),
        [3, 4],
    ),
    "unfold": (lambda h: h.unfold(2, 2, 2).flatten(2), [4]),
    "fft": (lambda h: torch.fft.rfft(h, dim=1).real, [6]),
    "fft_of_channels": (lambda h: torch.fft.fft2(h).imag, []),
    "fft_and_back": (lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=1) * 1j, n=7, dim=1), [6]),
    "complex": (lambda h: torch.complex(h[:, :2], h[:, 2:]).abs(), [2, 6]),
    "polar": (lambda h: torch.polar(h, h.exp()).real, [4, 6]),
    "upsample": (lambda h: F.interpolate(h, scale_factor=2), [4]),
    "average_pool": (lambda h: F.avg_pool1d(h, 2), [4]),
    "max_pool": (lambda h: F.max_pool1d(h.transpose(1, 2), 2), [6]),
    "adaptive_pool": (lambda h: F.adaptive_avg_pool1d(h, 3), [4]),
    "pooled_kernel_of_one": (lambda h: F.avg_pool2d(h, (1, 2)), [4]),
    "pixel_unshuffle": (lambda h: F.pixel_unshuffle(h[:, None], 2).flatten(2), []),
    "channel_shuffle": (lambda h: F.channel_shuffle(h[..., None], 2)[..., 0].transpose(1, 2), [2, 2, 6]),
    "normalize": (lambda h: F.normalize(h, dim=-1), [4, 6]),
    "cosine": (lambda h: F.cosine_similarity(h[:, :, None], h[:, None], dim=-1), [4, 6]),
    "distance": (lambda h: torch.cdist(h, h), [4, 6]),
    "local_response_norm": (lambda h: F.local_response_norm(h[..., None], 3)[..., 0], [6]),
    "dtype_and_back": (lambda h: h.double().float(), [4, 6]),
    "as_strided": (lambda h: h.contiguous().as_strided((h.shape[0], 6, 4), (24, 1, 6)), [4, 6]),
    "in_place_transpose": (lambda h: (h + 0).transpose_(1, 2), [4, 6]),
    "sum_read_by_python": (lambda h: h * float(h.sum().item() > 0), [4, 6]),
}


def written(h: Tensor) -> Tensor:
    out = torch.empty(h.shape[0], 3, 4, 6)
    for i in range(3):
        out[:, i] = h * (i + 1)
    return out


@pytest.mark.parametrize("name", STEPS)
def test_step(name: str) -> None:
    torch.manual_seed(0)
    step, units = STEPS[name]
    model, x = Around(step).double(), torch.randn(3, 5, dtype=torch.float64)
    if name in {
        "cat_with_zeros",
        "index_put",
        "index_add",
        "scatter",
        "topk_put_back",
        "one_hot",
        "one_hot_wider",
        "compared_with_places",
        "constant_matrix",
        "write_into_slice",
        "dtype_and_back",
    }:
        model, x = model.float(), x.float()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        graph = ng.trace(model, x, strict=True)
    assert sorted(group.size for group in graph.free) == units, str(graph)
    proof = ng.verify(model, graph, x, seed=1, deep=True)
    assert proof.passed, str(proof)


def test_every_rule_says_its_law_in_one_line() -> None:
    for name, rule in RULES.items():
        assert rule.__doc__, name
        assert len(rule.__doc__.strip().splitlines()) == 1, name


@pytest.mark.parametrize(
    ("name", "gates", "results"), [("_thnn_fused_lstm_cell", 4, 3), ("_thnn_fused_gru_cell", 3, 2)]
)
def test_cells_that_only_a_gpu_runs(name: str, gates: int, results: int) -> None:
    x, h, state = torch.randn(2, gates * 5), torch.randn(2, gates * 5), torch.randn(2, 5)
    made = (*tuple(torch.randn(2, 5) for _ in range(results - 1)), torch.randn(2, gates * 5))
    func = getattr(torch.ops.aten, name).default
    op = Op(name, "default", (x, h, state), {}, made, tuple(tuple(r.shape) for r in made), "cell", (), func)
    labels = Labels(Labels())
    labels.op = op
    for operand in (x, h, state):
        labels.axes[id(operand)] = tuple(free(n) for n in operand.shape)
    result = RULES[name](labels, op)
    hidden = labels.of(state)[1]
    assert isinstance(result, list)
    assert result[0] == labels.of(state)
    for operand in (x, h):
        (segment,) = labels.of(operand)[1]
        assert segment[0].fixed
        assert (segment[1:],) == hidden


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_random_chains_of_views_are_proven(seed: int) -> None:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    kinds = [int(k) for k in torch.randint(6, (5,), generator=generator)]

    def chain(h: Tensor) -> Tensor:
        for kind in kinds:
            rows, columns = h.shape[1], h.shape[2]
            if kind == 0:
                h = h.transpose(1, 2)
            elif kind == 1 and columns % 2 == 0:
                h = h.reshape(h.shape[0], rows * 2, columns // 2)
            elif kind == 2 and rows % 2 == 0:
                h = h.reshape(h.shape[0], rows // 2, columns * 2)
            elif kind == 3 and columns > 1:
                left, right = h.split([columns // 2, columns - columns // 2], 2)
                h = torch.cat([right.tanh(), left], 2)
            elif kind == 4 and rows * columns < 100:
                h = torch.cat([h, h * 2], 1)
            elif kind == 5 and rows % 2 == 0:
                h = h.unflatten(1, (2, rows // 2)).transpose(1, 2).flatten(1, 2)
        return h

    model, x = Around(chain).double(), torch.randn(3, 5, dtype=torch.float64)
    graph = ng.trace(model, x, strict=True)
    proof = ng.verify(model, graph, x, seed=seed, deep=True)
    assert proof.passed, str(proof)
