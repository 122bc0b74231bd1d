"""Transplanting beside the published way ("concatenate, then Torch-Pruning"), over widths.

Usage: python benchmarks/transplant_width.py [width ...]     (default 256 … 16384)

Two members: 3,072 inputs, two hidden layers of the given width, 10 outputs, no biases. Every measurement has a process
of its own; the two ways take turns; medians are shown. In the same process as ours a member is copied with
`copy.deepcopy`, turn by turn. "Extra" is the peak of resident memory beyond the members and the fused network, in
members. The published way is written here on the PyPI package torch-pruning: all members' neurons side by side in one
network with zeros between them, then group magnitude pruning back to the members' width. No process may take more
memory than is free when it starts, less 1 GB; one that would need more is shown as out of memory.
"""

import copy
import json
import resource
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

INPUTS, OUTPUTS, MEMBERS = 3072, 10, 2
WAYS = ("neurograft", "published")


def network(width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(a, b, bias=False) for a, b in pairwise((INPUTS, width, width, OUTPUTS))]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def published(members: list[nn.Sequential]) -> nn.Module:
    import torch_pruning as tp

    k, width = len(members), members[0][0].out_features
    wide = network(8, 0)
    with torch.no_grad():
        wide[0] = nn.Linear(INPUTS, k * width, bias=False)
        wide[2] = nn.Linear(k * width, k * width, bias=False)
        wide[4] = nn.Linear(k * width, OUTPUTS, bias=False)
        wide[2].weight.zero_()
        for m, net in enumerate(members):
            rows = slice(m * width, (m + 1) * width)
            wide[0].weight[rows] = net[0].weight
            wide[2].weight[rows, rows] = net[2].weight
            wide[4].weight[:, rows] = net[4].weight / k
    pruner = tp.pruner.MagnitudePruner(
        wide,
        torch.zeros(1, INPUTS),
        importance=tp.importance.GroupMagnitudeImportance(p=2, normalizer=None),
        pruning_ratio=1 - 1 / k,
        ignored_layers=[wide[4]],
    )
    pruner.step()
    return wide


def memory(field: str) -> int:
    """Resident bytes of this process: VmRSS now, VmHWM at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def free_bytes() -> int:
    """What a process may take without pushing others out of memory."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return available - 1_000_000_000


def measure(way: str, width: int, turns: int) -> dict[str, object]:
    """Seconds of each step, turn by turn, and the peak beyond members and result."""
    import neurograft as ng

    def transplanted(members: list[nn.Sequential]) -> tuple[nn.Module, dict[str, float]]:
        x, marks = torch.zeros(1, INPUTS), [time.perf_counter()]
        graph = ng.trace(members[0], x, verify=False)
        marks.append(time.perf_counter())
        plan = ng.plan(members, x, "transplant", graph=graph, order="joint")
        marks.append(time.perf_counter())
        fused = ng.apply(plan, members)
        marks.append(time.perf_counter())
        return fused, dict(zip(("trace", "plan", "apply"), (b - a for a, b in pairwise(marks)), strict=True))

    def torch_pruned(members: list[nn.Sequential]) -> tuple[nn.Module, dict[str, float]]:
        started = time.perf_counter()
        return published(members), {"all": time.perf_counter() - started}

    fuse = transplanted if way == "neurograft" else torch_pruned
    fuse([network(8, seed) for seed in range(MEMBERS)])  # imports and first calls
    members = [network(width, seed) for seed in range(MEMBERS)]
    size = sum(p.nbytes for p in members[0].parameters())
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    times: dict[str, list[float]] = {}
    extra = 0.0
    for turn in range(turns):
        fused, steps = fuse(members)
        if turn == 0:
            extra = max(0, memory("VmHWM") - before - size) / size
        total = sum(float(p.detach().square().sum(dtype=torch.float64)) for p in fused.parameters())
        del fused
        if way == "neurograft":
            started = time.perf_counter()
            copied = copy.deepcopy(members[0])
            steps["copy"] = time.perf_counter() - started
            del copied
        for name, seconds in steps.items():
            times.setdefault(name, []).append(seconds)
    return {"times": times, "extra": extra, "size": size, "total": total}


def run(way: str, width: int, turns: int) -> dict[str, object] | None:
    command = [sys.executable, "-W", "ignore", __file__, "--measure", way, str(width), str(turns)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def row(width: int) -> None:
    turns = 5 if width <= 4096 else 3
    rounds = 3 if width <= 2048 else 2 if width <= 4096 else 1
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            result = run(way, width, turns if way == "neurograft" else 1)
            if result is not None:
                found[way].append(result)
    ours = {
        step: statistics.median(t for result in found["neurograft"] for t in result["times"][step])
        for step in ("trace", "plan", "apply", "copy")
    }
    extra = max(result["extra"] for result in found["neurograft"])
    fused = ours["plan"] + ours["apply"]
    line = (
        f"{width:6} {ours['copy']:8.3f} {ours['trace']:8.3f} {ours['plan']:8.3f} {ours['apply']:8.3f} "
        f"{fused / ours['copy']:7.1f} {extra:7.2f}"
    )
    if not found["published"]:
        print(f"{line}   out of memory", flush=True)
        return
    theirs = statistics.median(result["times"]["all"][0] for result in found["published"])
    memory_ratio = max(result["extra"] for result in found["published"])
    total = sum(ours[step] for step in ("trace", "plan", "apply"))
    first, second = (found[way][0]["total"] for way in WAYS)
    same = "same" if abs(first - second) <= 1e-5 * abs(second) else f"|W|² {first:.6g} and {second:.6g}"
    print(f"{line} {theirs:10.3f} {memory_ratio:7.2f} {theirs / total:7.1f}   {same}", flush=True)


def main() -> None:
    if "--measure" in sys.argv:
        way, width, turns = sys.argv[2:5]
        resource.setrlimit(resource.RLIMIT_DATA, (free_bytes(),) * 2)
        print(json.dumps(measure(way, int(width), int(turns))))
        return
    print(
        f"seconds, {torch.get_num_threads()} threads; extra memory in members; torch-pruning transplants jointly (1.6)"
    )
    print(f"{'':6} {'':8} {'neurograft':^26} {'':7} {'':7} {'published way':>18} {'times':>7}")
    print(
        f"{'width':>6} {'copy':>8} {'trace':>8} {'plan':>8} {'apply':>8} {'/ copy':>7} {'extra':>7} "
        f"{'all':>10} {'extra':>7} {'faster':>7}   results"
    )
    for width in [int(a) for a in sys.argv[1:]] or [1 << n for n in range(8, 15)]:
        row(width)


if __name__ == "__main__":
    main()
