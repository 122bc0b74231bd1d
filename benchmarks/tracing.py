"""What tracing costs: beside one forward pass per network, and over the depth of a network.

Usage: python benchmarks/tracing.py [runs]
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import neurograft as ng
from neurograft.tracing.tape import record
from tests.networks import NETWORKS, build


def median_ms(runs: int, *actions: Callable[[], object]) -> list[float]:
    """Median milliseconds of each action; the actions take turns, so that a slow moment hits all of them."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(runs):
        for i, action in enumerate(actions):
            started = time.perf_counter()
            action()
            times[i].append(1e3 * (time.perf_counter() - started))
    return [statistics.median(t) for t in times]


def row(name: str, model: nn.Module, inputs: object, runs: int) -> None:
    def forward() -> None:
        with torch.no_grad():
            model(inputs)

    def trace() -> None:
        ng.trace(model, inputs, verify=False)

    trace()
    ops = len(record(model, inputs).ops)
    run, traced = median_ms(runs, forward, trace)
    per_op = 1e3 * (traced - run) / ops
    print(f"{name:22} {ops:6} {run:10.2f} {traced:10.2f} {per_op:12.0f}")


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    print(f"{'network':22} {'ops':>6} {'forward ms':>10} {'trace ms':>10} {'µs per op':>12}   (trace minus one forward, per op)")
    for name in ("mlp", "lenet", "vgg_batch_norm", "resnet", "densenet", "unet", "attention"):
        row(name, build(name), NETWORKS[name].inputs(), runs)
    for depth in (2, 4, 8, 16, 32, 64, 96):
        layers = [layer for _ in range(depth) for layer in (nn.Linear(64, 64), nn.ReLU())]
        row(f"mlp, {depth} layers", nn.Sequential(*layers), torch.randn(2, 64), runs)


if __name__ == "__main__":
    main()
