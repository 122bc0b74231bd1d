"""Where the time of a transplant goes, beside a copy of one member.

Usage: python benchmarks/transplant_profile.py [width ...]     (default 1024 4096 16384)

The networks are those of the comparison with the published way. First what no way around is known of, measured on the
same memory: each member must be read once to be scored, and the fused network must be written. Then the functions of
planning and applying by their own time (cProfile, without what they call), summed over some turns. "Copies" is the time
in copies of one member (`copy.deepcopy`, median of the turns between which it is measured).

What is above reading and writing is, at the widths where it counts: scoring down the columns in two passes over a block
(`square`, `sum`), where one kernel that squares while it sums would read it once (`torch.linalg.vector_norm` does that,
but is many times slower down the columns); and making the fused tensor as zeros (`zeros`) to which blocks of gathered,
widened rows are then added (`_scatter`, `_put`), where a kernel that gathers several members' rows straight into fresh
memory would write it once. Two such compiled kernels are what we expect to close the gap; nobody has written them.
"""

import copy
import cProfile
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transplant_width import INPUTS, MEMBERS, network

import neurograft as ng

SHOWN = 8


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def read(members: list[nn.Sequential]) -> None:
    """One pass over every weight."""
    for member in members:
        for parameter in member.parameters():
            torch.linalg.vector_norm(parameter.detach())


def written(member: nn.Sequential) -> list[torch.Tensor]:
    """A network's worth of zeros."""
    return [torch.zeros_like(p, requires_grad=False) for p in member.parameters()]


def name(function: tuple[str, int, str]) -> str:
    file, line, own = function
    return own if file == "~" else f"{Path(file).stem}.{own}" if line else own


def profile(width: int) -> None:
    turns = 7 if width <= 4096 else 3
    members = [network(width, seed) for seed in range(MEMBERS)]
    x = torch.zeros(1, INPUTS)
    graph = ng.trace(members[0], x, verify=False)

    def transplant() -> nn.Module:
        return ng.apply(ng.plan(members, x, "transplant", graph=graph, order="joint"), members)

    transplant()
    copies, reads, writes, wholes = [], [], [], []
    profiler = cProfile.Profile()
    for _ in range(turns):
        copies.append(seconds(lambda: copy.deepcopy(members[0])))
        reads.append(seconds(lambda: read(members)))
        writes.append(seconds(lambda: written(members[0])))
        wholes.append(seconds(transplant))
        profiler.enable()
        transplant()
        profiler.disable()
    copied = statistics.median(copies)
    size = sum(p.nbytes for p in members[0].parameters())
    print(f"width {width}, members of {size / 1e6:.0f} MB; a copy takes {copied:.4f} s")
    rows = [
        ("reading both members once", statistics.median(reads)),
        ("writing zeros of one member's size", statistics.median(writes)),
        ("plan + apply", statistics.median(wholes)),
    ]
    functions = pstats.Stats(profiler).stats.items()  # type: ignore[attr-defined]
    own = sorted(((figures[2] / turns, function) for function, figures in functions), reverse=True)
    rows += [(f"  in {name(function)}", spent) for spent, function in own[:SHOWN]]
    for label, spent in rows:
        print(f"  {label:46} {spent:9.4f} s {spent / copied:7.2f} copies", flush=True)


def main() -> None:
    print(f"{torch.get_num_threads()} threads")
    for width in [int(a) for a in sys.argv[1:]] or [1024, 4096, 16384]:
        profile(width)


if __name__ == "__main__":
    main()
