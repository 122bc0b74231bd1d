"""What another member costs: averaging and transplanting k checkpoints of one size from disk.

Usage: python benchmarks/members.py [k ...]     (default 2 4 8 16 32)

Each member is a float32 network of 1,024 inputs, two hidden layers of 1,024 and 10 outputs (8.4 MB). Every run has a
process of its own; the memory is the peak of anonymous memory beyond what the process holds after its imports. Time
should grow with k, memory should not.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from _memory import watched
from torch import nn

WIDTH = 1024


def network() -> nn.Module:
    layers = (nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
    return nn.Sequential(*layers).eval()


def fuse(method: str, files: list[Path], output: Path) -> float:
    import neurograft as ng
    from neurograft.applying.stored import fuse_stored, open_files
    from neurograft.applying.streaming import core_left_over
    from neurograft.plans.saving import SavedPlan

    started = time.perf_counter()
    stored = open_files(files, network, "benchmark", torch.zeros(1, WIDTH))
    with stored.hashing() as hashing, core_left_over():
        plan = ng.plan(stored, method=method, **({"order": "joint"} if method == "transplant" else {}))
        fuse_stored(stored, SavedPlan(plan, stored.name), output, hashing=hashing)
    return time.perf_counter() - started


def measure(method: str, files: list[Path], output: Path) -> None:
    fuse(method, files[:2], output)  # imports and first calls
    with watched(0.002) as peak:
        worked = time.process_time()
        seconds = fuse(method, files, output)
        worked = time.process_time() - worked
    print(json.dumps({"seconds": seconds, "work": worked, "extra": peak.extra}))


def main() -> None:
    if "--measure" in sys.argv:
        method, output, *files = sys.argv[2:]
        measure(method, [Path(file) for file in files], Path(output))
        return
    from neurograft.checkpoints import write_checkpoint

    counts = [int(a) for a in sys.argv[1:]] or [2, 4, 8, 16, 32]
    place = Path(tempfile.mkdtemp(prefix="neurograft-benchmark-"))
    try:
        files = [place / f"{m}.safetensors" for m in range(max(counts))]
        for m, file in enumerate(files):
            torch.manual_seed(m)
            write_checkpoint(network(), file, {})
        size = files[0].stat().st_size
        print(f"members of {size / 1e6:.1f} MB")
        print(f"{'':12} {'members':>8} {'seconds':>8} {'CPU seconds':>12} {'per member':>11} {'extra memory':>13}")
        for method in ("average", "transplant"):
            for k in counts:
                output = place / "out.safetensors"
                command = [sys.executable, "-W", "ignore", __file__, "--measure", method, str(output)]
                ended = subprocess.run([*command, *map(str, files[:k])], capture_output=True, text=True, check=False)
                if ended.returncode:
                    raise SystemExit(f"{method} of {k} failed:\n{ended.stderr}")
                run = json.loads(ended.stdout.splitlines()[-1])
                print(
                    f"{method:12} {k:8} {run['seconds']:8.2f} {run['work']:12.2f} {run['work'] / k:11.3f} "
                    f"{run['extra'] / 1e6:10.0f} MB",
                    flush=True,
                )
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
