"""What refitting a full-size VGG11 costs, from 2,000 images and under memory limits

Usage: python benchmarks/refit_cost.py [limit in MB ...]     (default 2048 1024)

Two members (VGG11 for 32 x 32 images with BatchNorm, 9.2 million weights, fresh: what they know does not change the
work), 2,000 random images in batches of 500, two threads. "Transplant" solves the layers alone; "average" measures
before that how far the members agree. Every run has a process of its own; the memory is the peak of anonymous memory
beyond what the process holds when it starts to refit, copies of the network included, beside the limit it was given.
The matrices of a layer of 4,608 inputs take 540 MB: under a limit of 720 MB those layers are left out, and refit says
so. What the allocator keeps of freed blocks is in the figures too, so a tight limit may be passed by a few per cent.
"""

import subprocess
import sys
import time
import warnings

import torch
from _memory import watched
from torch import nn

import neurograft as ng

IMAGES, BATCH, THREADS = 2000, 500, 2
LIMITS = (2048, 1024)
METHODS = ("transplant", "average")


def vgg11() -> nn.Module:
    layers, channels = [], 3
    for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        if width:
            convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 10, bias=False)).eval()


def measure(method: str, limit: int) -> None:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    members = [vgg11() for _ in range(2)]
    batches = list(torch.randn(IMAGES, 3, 32, 32).split(BATCH))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fusion = ng.Fusion.of(ng.Members(members, batches[0][:2]), method)
    with watched() as peak:
        started, spent = time.perf_counter(), time.process_time()
        report = fusion.refit(batches, max_memory=limit << 20).report.recovery
        seconds, cpu = time.perf_counter() - started, time.process_time() - spent
    assert report is not None
    left_out = sum(layer.target == "left out" for layer in report.layers)
    extra = peak.extra >> 20
    print(f"{method:12}{limit:8}{seconds:10.0f}{cpu:13.0f}{report.passes:9}{extra:13} MB{left_out:12}", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], int(sys.argv[3]))
        return
    print(
        f"{'':12}{'limit':>8}{'seconds':>10}{'CPU seconds':>13}{'passes':>9}{'extra memory':>16}{'left out':>12}",
        flush=True,
    )
    for limit in [int(word) for word in sys.argv[1:]] or LIMITS:
        for method in METHODS:
            subprocess.run([sys.executable, __file__, "--measure", method, str(limit)], check=True)


if __name__ == "__main__":
    main()
