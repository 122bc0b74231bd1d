"""What tracing costs: time per op over depth, and a forward pass beside it. Run: python benchmarks/tracing.py."""

import time
from collections.abc import Callable

import torch
from torch import nn

import neurograft as ng
from neurograft.tracing.recording import record


def mlp(depth: int) -> nn.Module:
    """Linear layers of width 64 with LayerNorm and ReLU."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10)).eval()


class Encoder(nn.Module):
    """nn.TransformerEncoder of any depth."""

    def __init__(self, depth: int):
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.stem, self.head = nn.Linear(16, 64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (batch, length, 16) to (batch, 10)."""
        return self.head(self.encoder(self.stem(x)).mean(1))


def seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """The best of some runs, in seconds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    """Print one line per network and depth."""
    torch.set_num_threads(1)
    print(f"{'network':<12}{'layers':>7}{'ops':>7}{'forward':>10}{'trace':>10}{'µs per op':>11}")
    cases = {
        "mlp": (mlp, torch.randn(4, 64)),
        "transformer": (lambda depth: Encoder(depth).eval(), torch.randn(2, 5, 16)),
    }
    for name, (make, x) in cases.items():
        for depth in (2, 6, 12, 24, 48, 96):
            model = make(depth)
            ops = len(record(model, x).ops)
            with torch.no_grad():
                forward = seconds(lambda model=model, x=x: model(x))
            traced = seconds(lambda model=model, x=x: ng.trace(model, x, verify=False))
            each = (traced - forward) / ops * 1e6
            print(f"{name:<12}{depth:>7}{ops:>7}{forward * 1e3:>8.1f}ms{traced * 1e3:>8.1f}ms{each:>11.0f}")


if __name__ == "__main__":
    main()
