"""What fusing costs: seconds and memory of one method on untrained networks, in a process of its own."""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neurograft.applying.application import apply
from neurograft.errors import StudyError
from neurograft.methods.planner import plan
from neurograft.tracing.tracer import trace
from neurograft_experiments.data.loading import shape_of
from neurograft_experiments.networks import make_network
from neurograft_experiments.trials import JSON, Task

TURNS, ENOUGH = 5, 5.0
"""A fusion is repeated for the median, until it took that many seconds altogether."""


def costs_trial(task: Task, threads: int) -> JSON:
    """Measure the fusion in a new process, whose memory nothing else has touched.

    Raises:
        StudyError: if that process fails, with the end of what it printed.
    """
    given = json.dumps({**task.settings, "threads": threads})
    command = [sys.executable, "-W", "ignore", "-m", "neurograft_experiments.costs"]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StudyError(f"{task.label}: measuring failed: {done.stderr.strip()[-500:] or f'exit {done.returncode}'}")
    found: JSON = json.loads(done.stdout.splitlines()[-1])
    seconds = {"members": 0.0, "trace": found["trace"], "fuse": found["fuse"], "recover": 0.0, "tune": 0.0}
    return {"seconds": seconds, "memory": found["memory"], "member_bytes": found["member_bytes"]}


def measure(settings: JSON) -> JSON:
    """Seconds of tracing and fusing (medians), and the peak of memory beyond members and result, in bytes.

    Example:
        >>> network = {"name": "mlp", "width": 8, "depth": 2}
        >>> given = {"costs": "average", "options": {}, "data": {"source": "digits"}, "network": network}
        >>> found = measure(given | {"count": 2, "seed": 0, "threads": 1})
        >>> found["fuse"] > 0, found["member_bytes"]
        (True, 2624)
    """
    torch.set_num_threads(settings["threads"])
    shape, _ = shape_of(settings["data"]["source"])
    example = torch.zeros(2, *shape)
    _fused([_network(settings, shape, seed, narrow=True) for seed in range(2)], example, settings)  # first calls
    members = [_network(settings, shape, settings["seed"] + number) for number in range(settings["count"])]
    size = sum(tensor.nbytes for tensor in members[0].state_dict().values())
    started = time.perf_counter()
    graph = trace(members[0], example, verify=False)
    tracing = time.perf_counter() - started
    _start_peak_anew()
    before = _memory("VmRSS")
    times: list[float] = []
    extra = 0
    while len(times) < TURNS and sum(times) < ENOUGH:
        started = time.perf_counter()
        fused = _fused(members, example, settings, graph=graph)
        times.append(time.perf_counter() - started)
        extra = extra if len(times) > 1 else max(0, _memory("VmHWM") - before - size)
        del fused
    return {"trace": tracing, "fuse": statistics.median(times), "memory": extra, "member_bytes": size}


def _network(settings: JSON, shape: tuple[int, int, int], seed: int, *, narrow: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    network = settings["network"]
    if narrow and "width" in network:
        network = {**network, "width": 8}
    return make_network(network, shape, 10).eval()


def _fused(members: list[nn.Module], example: torch.Tensor, settings: JSON, **traced: Any) -> nn.Module:
    return apply(plan(members, example, settings["costs"], **traced, **settings["options"]), members)


def _start_peak_anew() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # no Linux: the peak is that of the whole process
        return


def _memory(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its peak."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(json.loads(sys.stdin.read()))) + "\n")
