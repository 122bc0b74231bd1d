"""Products of parameters whose factors fuse apart are named by plan and by fuse."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import neurograft as ng


class Adapted(nn.Module):
    """A linear layer with a low-rank product beside it, named as PEFT or diffusers name it."""

    def __init__(self, a: str, b: str) -> None:
        super().__init__()
        self.base = nn.Linear(5, 7)
        for name, layer in ((a, nn.Linear(5, 2, bias=False)), (b, nn.Linear(2, 7, bias=False))):
            setattr(self, name, nn.ModuleDict({"default": layer}))
        self.a, self.b = a, b

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + getattr(self, self.b)["default"](getattr(self, self.a)["default"](x))


class Network(nn.Module):
    def __init__(self, a: str = "lora_A", b: str = "lora_B") -> None:
        super().__init__()
        self.q, self.head = Adapted(a, b), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.q(x).relu())


class LowRank(nn.Module):
    """A weight of low rank, made of two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v, self.head = nn.Parameter(torch.randn(7, 2)), nn.Parameter(torch.randn(2, 5)), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(x, self.u @ self.v).relu())


class Sum(nn.Module):
    """W + BA as a parametrisation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(7, 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


def parametrised() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    parametrize.register_parametrization(model[0], "weight", Sum())
    return model


KINDS = {
    "peft": (lambda: Network(), r"q\.lora_A\.default\.weight and q\.lora_B\.default\.weight are factors"),
    "diffusers": (lambda: Network("lora_down", "lora_up"), r"q\.lora_down\.default\.weight and q\.lora_up\.default"),
    "low rank": (LowRank, "u and v are factors|v and u are factors"),
    "parametrised": (
        parametrised,
        r"0\.parametrizations\.weight\.0\.a and 0\.param.*0\.b are factors",
    ),
}


@pytest.mark.filterwarnings("ignore:this is member")
@pytest.mark.parametrize("method", ["average", "transplant"])
@pytest.mark.parametrize("kind", KINDS)
def test_factors_are_named_by_plan_and_by_fuse(kind: str, method: str) -> None:
    make, message = KINDS[kind]
    nets, x = [make() for _ in range(2)], torch.randn(4, 5)
    plan = ng.plan(nets, x, method)
    assert any("fused apart" in note for note in plan.warnings)
    with pytest.warns(UserWarning, match=message):
        ng.fuse(nets, x, method)


def test_one_factor_that_all_share_fuses_exactly_and_without_a_warning() -> None:
    nets, x = [Network() for _ in range(2)], torch.randn(4, 5)
    nets[1].q.lora_A.load_state_dict(nets[0].q.lora_A.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused = ng.fuse(nets, x, "average")
    products = [net.q.lora_B["default"].weight @ net.q.lora_A["default"].weight for net in (*nets, fused)]
    torch.testing.assert_close(products[2], (products[0] + products[1]) / 2)


def test_ordinary_networks_get_no_warning() -> None:
    nets = [nn.Sequential(nn.Linear(5, 2), nn.Linear(2, 7), nn.ReLU(), nn.Linear(7, 3)) for _ in range(2)]
    assert not ng.Members(nets, torch.randn(4, 5)).factor_warnings
