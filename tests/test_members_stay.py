"""Members, random states, buffers and hooks come back bit for bit, whatever a network writes while it runs."""

import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import neurograft as ng
from neurograft.errors import NeurograftError
from neurograft.preserve_state import keeps_random_state, preserve_state
from tests.staying import FUNCTIONS, everything_stays, stays  # noqa: F401 - the fixture

pytestmark = [
    pytest.mark.filterwarnings("ignore:the outputs of .* do not repeat from call to call"),
    pytest.mark.filterwarnings("ignore:this is member"),
    pytest.mark.filterwarnings("ignore:these groups moved the outputs and are fixed now"),
]


class Writing(nn.Module):
    """Two layers; what a network writes to when it runs is for its children."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class Averaging(Writing):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.scale = 0.9 * self.scale + 0.1 * x.abs().mean()
        self.steps = self.steps + 1
        return super().forward(x) * self.scale


class Filling(Writing):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.ones(3)
        return super().forward(x) * self.mask


class Making(Writing):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "table"):
            self.register_buffer("table", torch.arange(3.0))
            self.extra = nn.Linear(3, 3)
        return super().forward(x) + self.table


class Keeping(Writing):
    """Keeps the last activation, in a buffer, an attribute, a list and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(1), persistent=False)
        self.kept, self.named = [], {}

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.shown = self.a(x).relu()
        self.kept.append(self.last)
        self.named[len(self.named)] = self.last
        return self.b(self.last)


class Resizing(Writing):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.plain = torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.resize_(x.shape).copy_(x)
        self.plain += 1
        return super().forward(x)


class Spectral(Writing):
    """Spectral norm as people write it by hand: vectors are parameters that each call writes to."""

    def __init__(self, anew: bool = False) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.randn(6), requires_grad=False)
        self.v = nn.Parameter(torch.randn(4), requires_grad=False)
        self.anew = anew

    def forward(self, x: Tensor) -> Tensor:
        weight = self.a.weight
        v, u = F.normalize(weight.data.t() @ self.u.data, dim=0), None
        u = F.normalize(weight.data @ v, dim=0)
        if self.anew:
            self.u.data, self.v.data = u, v
        else:
            self.u.data.copy_(u)
            self.v.data.copy_(v)
        return self.b(F.linear(x, weight / (self.u @ weight @ self.v), self.a.bias).relu())


class Constrained(Writing):
    """Projects its own weights, which is how non-negative and max-norm layers are written."""

    def forward(self, x: Tensor) -> Tensor:
        self.a.weight.data.clamp_(-0.1, 0.1)
        self.b.weight.data = torch.renorm(self.b.weight.data, 2, 0, 0.1)
        return super().forward(x)


class Merging(Writing):
    """Merges its low-rank product into the weight when it is put into eval mode, as loralib does."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.merged = nn.Parameter(torch.randn(6, 4)), False

    def train(self, mode: bool = True) -> "Merging":
        super().train(mode)
        if mode == self.merged:
            self.a.weight.data += -self.low.data if mode else self.low.data
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.b((self.a(x) + (0 if self.merged else x @ self.low.t())).relu())


class Drawing(Writing):
    """Draws in eval mode from every generator there is, also from its own."""

    def __init__(self) -> None:
        super().__init__()
        self.torch, self.numpy, self.python = torch.Generator(), numpy.random.default_rng(0), random.Random(0)

    def forward(self, x: Tensor) -> Tensor:
        drawn = [torch.rand(()), torch.rand((), generator=self.torch), numpy.random.rand(), self.numpy.random()]  # noqa: NPY002
        return super().forward(x) + 1e-3 * sum(map(float, [*drawn, random.random(), self.python.random()]))


def hooked() -> nn.Module:
    model = Writing()
    model.a.register_forward_hook(lambda module, _, out: setattr(module, "out", out))
    model.register_forward_pre_hook(lambda module, _: module.register_buffer("entered", torch.ones(1)))
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    kind.__name__.lower(): kind
    for kind in (Averaging, Filling, Making, Keeping, Resizing, Spectral, Constrained, Merging, Drawing)
} | {"spectral_anew": lambda: Spectral(anew=True), "hooked": hooked}
CALLS: dict[str, Callable[[list[nn.Module], Tensor, Any], object]] = {
    "trace": lambda nets, x, data: ng.trace(nets[0], x),
    "plan": lambda nets, x, data: ng.plan(nets, x),
    "fuse": lambda nets, x, data: ng.fuse(nets, x, "average"),
    "taylor": lambda nets, x, data: ng.fuse(nets, x, importance="taylor", calibration=data, recover=None),
    "zip": lambda nets, x, data: ng.fuse(nets, x, "zip", calibration=data, recover="repair"),
    "combine": lambda nets, x, data: ng.combine(nets, x),
    "prune": lambda nets, x, data: ng.prune(nets[0], x),
    "refit": lambda nets, x, data: ng.fuse(nets, x, calibration=data, recover="refit"),
    "evaluate": lambda nets, x, data: ng.evaluate(nets[0], data),
    "barrier": lambda nets, x, data: ng.barrier(*nets, data, points=2),
    "finetune": lambda nets, x, data: ng.finetune(nets[0], data, epochs=1, progress=False, lr=1e-4),
    "distill": lambda nets, x, data: ng.distill(nets[0], nets, data, epochs=1, progress=False, lr=1e-4),
}


@pytest.mark.usefixtures("everything_stays")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_that_write_while_they_run_come_back(network: str, call: str) -> None:
    nets = [NETWORKS[network]() for _ in range(2)]
    x, data = torch.randn(5, 4), [(torch.randn(40, 4), torch.randint(0, 3, (40,)))]
    try:
        CALLS[call](nets, x, data)
    except NeurograftError:
        assert (network, call) in REFUSED
    else:
        assert (network, call) not in REFUSED


# σ is one for all of a layer; what `eval()` makes of two weights, and a projected weight, is not that of two halves
REFUSED = {(network, "combine") for network in ("spectral", "spectral_anew", "constrained", "merging")}


def test_a_network_that_fails_comes_back() -> None:
    model = Keeping()
    with stays(model), pytest.raises(RuntimeError), preserve_state(model):
        model(torch.randn(2, 5))
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None

    class Interrupted(Constrained):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise KeyboardInterrupt

    model = Interrupted()
    with stays(model), pytest.raises(KeyboardInterrupt), preserve_state(model):
        model(torch.randn(2, 4))
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


FRESH = """
import random, numpy, torch
from torch import nn
random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
nets, x = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in "ab"], torch.randn(64, 4)
data = [(x, torch.randint(0, 2, (64,)))]
def states(): return random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
before = states()
import neurograft as ng
{call}
assert states() == before
"""


@pytest.mark.parametrize(
    "call",
    [
        "[getattr(ng, name) for name in ng.__all__]",
        'ng.fuse(nets, x, "optimal_transport", calibration=data), ng.finetune(nets[0], data, epochs=1, progress=False)',
    ],
)
def test_the_first_call_of_a_process_keeps_random_states_too(call: str) -> None:
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FRESH.format(call=call)], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr


def test_every_public_call_keeps_random_states() -> None:
    kept = keeps_random_state(len).__code__
    assert [name for name in FUNCTIONS if getattr(ng, name).__code__ is not kept] == []
