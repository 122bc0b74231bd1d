"""What is returned beside the logits, and what a branch of tiny scale hides."""

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import neurograft as ng
from neurograft.tracing import labelling
from neurograft.tracing.graph import FixedReason
from neurograft.tracing.rules import RULES
from neurograft.tracing.rules.pointwise import pointwise


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes, self.boxes = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x).relu()
        return {"logits": self.classes(hidden), "boxes": self.boxes(hidden), "hidden": hidden}


def test_outputs_beside_logits_that_nothing_reads_are_fixed() -> None:
    graph = ng.trace(Detector(), torch.randn(4, 5))
    assert [group.name for group in graph.free] == ["body.weight:0"]
    assert graph["boxes.weight:0"].reason is FixedReason.OUTPUT
    assert graph.outputs == ("logits", "boxes")


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.last = nn.Linear(5, 6), nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.full((6,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.scale * self.b(self.a(x).relu().cumsum(-1)))


@pytest.fixture
def wrong_rule() -> Iterator[None]:
    right = RULES["cumsum"]
    RULES["cumsum"] = pointwise
    labelling._FOUND.clear()
    yield
    RULES["cumsum"] = right
    labelling._FOUND.clear()


@pytest.mark.usefixtures("wrong_rule")
def test_a_wrong_rule_in_a_branch_of_tiny_scale_is_found() -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = ng.trace(Scaled(), torch.randn(4, 5))
    assert graph["a.weight:0"].fixed
