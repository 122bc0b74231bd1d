"""What starting costs: `import neurograft` and `neurograft --help`, each in a process of its own.

Usage: python benchmarks/starting.py [turns]     (default 7)

The ways take turns, medians are shown; a bare `python -c pass` and `import torch` stand beside them. Processor seconds
are those of the process and are not lengthened much by other load.
"""

import resource
import statistics
import subprocess
import sys
import time

WAYS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import neurograft": [sys.executable, "-c", "import neurograft"],
    "neurograft --help": [sys.executable, "-m", "neurograft", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
    "neurograft.fuse looked up": [sys.executable, "-c", "import neurograft; neurograft.fuse"],
}


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(turns):
        for way, command in WAYS.items():
            found[way].append(measured(command))
    print(f"{'':28} {'seconds':>8} {'processor':>10}   ({turns} turns)")
    for way, runs in found.items():
        clock, processor = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{way:28} {clock:8.2f} {processor:10.2f}")


if __name__ == "__main__":
    main()
