"""What optimal transport in weights mode costs: ours beside one written with POT alone, for a two-layer MLP.

Usage: python benchmarks/optimal_transport.py [width ...]     (default 256 512 1024 2048 4096)

Two members of 3,072 inputs, two hidden layers of the given width, 10 outputs, no biases. Every row is measured in a
process of its own, so that the peak is its own: memory beyond the members and the fused network; "processor" is the
time that the threads computed, which other load does not lengthen much. The other
implementation does what the paper's code does, layer by layer with `ot.emd`, but takes distances from
`torch.cdist`; the paper's code builds a width x width x inputs tensor (14.6 s and 22 GB at width 1024, its authors'
figures), which is left out here.
"""

import resource
import subprocess
import sys
import time
from itertools import pairwise

import torch
from torch import nn

INPUTS, OUTPUTS = 3072, 10


def network(width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    sizes = (INPUTS, width, width, OUTPUTS)
    layers = [nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def ours(members: list[nn.Sequential]) -> nn.Module:
    import neurograft as ng

    x = torch.zeros(1, INPUTS)
    graph = ng.trace(members[0], x, verify=False)
    return ng.fuse(members, x, method="optimal_transport", graph=graph)


def with_pot(members: list[nn.Sequential]) -> nn.Module:
    import ot

    one, two = ([layer.weight.detach() for layer in net[::2]] for net in members)
    fused = network(one[0].shape[0], 0)
    moved = torch.eye(INPUTS)
    with torch.no_grad():
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            b = b @ moved
            if i < len(one) - 1:
                mass = torch.full((len(a),), 1 / len(a)).double().numpy()
                plan = torch.from_numpy(ot.emd(mass, mass, torch.cdist(b, a).double().numpy(), numItermax=10**7))
                moved = (plan * len(a)).float()
                b = moved.T @ b
            fused[2 * i].weight.copy_((a + b) / 2)
    return fused


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(how: str, width: int) -> None:
    """Fuse once and print seconds, peak bytes beyond members and result, and a number that both ways share."""
    fuse = {"neurograft": ours, "POT alone": with_pot}[how]
    fuse([network(8, seed) for seed in range(2)])  # imports and first-call costs
    members = [network(width, seed) for seed in range(2)]
    size = sum(p.numel() * 4 for p in members[0].parameters())
    before = peak_bytes()
    started, busy = time.perf_counter(), time.process_time()
    fused = fuse(members)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    total = sum(float(p.double().square().sum()) for p in fused.parameters())
    print(f"{seconds} {busy} {max(0, peak_bytes() - before - size)} {total}")


def row(how: str, width: int) -> None:
    command = [sys.executable, "-W", "ignore", __file__, "--measure", how, str(width)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{width:6}  {how:12} {(done.stderr.strip().splitlines() or ['killed'])[-1][:110]}")
        return
    seconds, busy, extra, total = map(float, done.stdout.split()[-4:])
    figures = f"{seconds:10.3f} s {busy:10.3f} s {extra / 2**20:10.0f} MB"
    print(f"{width:6}  {how:12} {figures}   |W|² {total:.6g}", flush=True)


def main() -> None:
    if "--measure" in sys.argv:
        measure(sys.argv[2], int(sys.argv[3]))
        return
    print(f"{'width':>6}  {'':12} {'time':>12} {'processor':>12} {'memory':>13}   ({torch.get_num_threads()} threads)")
    for width in [int(a) for a in sys.argv[1:]] or [256, 512, 1024, 2048, 4096]:
        for how in ("neurograft", "POT alone"):
            if how == "POT alone" and width > 4096:
                print(f"{width:6}  {how:12} left out: the network simplex takes minutes from here on")
                continue
            row(how, width)


if __name__ == "__main__":
    main()
