"""Write docs/published-ensembles.md: two ensembles that others trained and published, each fused into one network.

Usage: python tools/published_ensembles.py [splice] [ani] [--seconds 60] [--divisions 3] [--methods average …]

The weights and inputs are read from $NEUROGRAFT_SHARED/real; without them nothing is done. Named parts are made anew,
the other stays as the page has it.
"""

import argparse
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F

import neurograft as ng

PAGE = Path(__file__).resolve().parent.parent / "docs" / "published-ensembles.md"
METHODS = ("average", "permutation", "optimal_transport", "transplant", "zip")
BASES = 4
CONTEXT = 40
"""Positions on each side that a splice network reads and gives nothing for."""
WINDOW = 1000
ELEMENTS = "HCNO"
WIDTHS = {"H": (160, 128, 96), "C": (144, 112, 96), "N": (128, 112, 96), "O": (128, 112, 96)}
KCAL = 627.509
"""Kilocalories per mole in one Hartree."""


class FrozenNorm(nn.BatchNorm1d):
    """A BatchNorm that keeps its statistics in training: with those of a batch a student is no longer the member."""

    def train(self, mode: bool = True) -> "FrozenNorm":  # noqa: ARG002
        """Stay in eval mode whatever is asked for."""
        return super().train(False)


class ResidualUnit(nn.Module):
    """Twice BatchNorm, LeakyReLU and a convolution, added to the input."""

    def __init__(self, channels: int = 32, width: int = 11) -> None:
        super().__init__()
        self.batchnorm1, self.batchnorm2 = FrozenNorm(channels), FrozenNorm(channels)
        self.conv1 = nn.Conv1d(channels, channels, width, padding=width // 2)
        self.conv2 = nn.Conv1d(channels, channels, width, padding=width // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Shape `(samples, channels, positions)`, in and out."""
        inner = self.conv1(F.leaky_relu(self.batchnorm1(x), 0.1))
        return x + self.conv2(F.leaky_relu(self.batchnorm2(inner), 0.1))


class Skip(nn.Module):
    """A 1x1 convolution into the skip sum."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape `(samples, channels, positions)`, in and out."""
        return self.conv(x)


class SpliceNetwork(nn.Module):
    """OpenSpliceAI, 80 nt of context: DNA `(N, 4, L + 80)` -> logits `(N, 3, L)`: no site, acceptor, donor."""

    def __init__(self) -> None:
        super().__init__()
        self.initial_conv = nn.Conv1d(BASES, 32, 1)
        self.initial_skip = Skip()
        self.residual_units = nn.ModuleList([*(ResidualUnit() for _ in range(4)), Skip()])
        self.final_conv = nn.Conv1d(32, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.initial_conv(x)
        skip = self.initial_skip(x)
        *units, last = self.residual_units
        for unit in units:
            x = unit(x)
        return self.final_conv((skip + last(x))[..., CONTEXT:-CONTEXT])


def atom_network(element: str) -> nn.Sequential:
    """The network of one element of ANI-1ccx: 384 numbers -> the energy of an atom in Hartree."""
    a, b, c = WIDTHS[element]
    layers = [nn.Linear(384, a), nn.CELU(0.1), nn.Linear(a, b), nn.CELU(0.1), nn.Linear(b, c), nn.CELU(0.1)]
    return nn.Sequential(*layers, nn.Linear(c, 1))


class Potential(nn.Module):
    """One ANI potential: what surrounds atoms, `(atoms, 384)`, and their elements -> their energies in kcal/mol."""

    def __init__(self, nets: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(nets or {element: atom_network(element) for element in ELEMENTS})

    def forward(self, aev: Tensor, element: Tensor) -> Tensor:
        """Shape `(atoms,)`."""
        energies = aev.new_zeros(len(aev))
        for number, name in enumerate(ELEMENTS):
            atoms = (element == number).nonzero().flatten()
            if len(atoms):
                energies = energies.index_copy(0, atoms, self.nets[name](aev[atoms])[:, 0])
        return energies * KCAL


def folder() -> Path | None:
    """Where the weights and inputs lie, None where they do not."""
    found = Path(os.environ.get("NEUROGRAFT_SHARED", "")) / "real"
    return found if os.environ.get("NEUROGRAFT_SHARED") and (found / "ani" / "atoms.npz").is_file() else None


def members(path: Path, make: Callable[[], nn.Module]) -> list[nn.Module]:
    """All members of an ensemble, in eval mode."""
    found = []
    for file in sorted(path.glob("member-*.safetensors")):
        net = make()
        net.load_state_dict(load_file(file))
        found.append(net.eval())
    return found


Row = tuple[str, tuple[float, ...]]


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def table(heads: Sequence[str], runs: Sequence[Sequence[Row]], digits: Sequence[int]) -> str:
    """Rows that every run has, as a Markdown table."""
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    for number, (name, values) in enumerate(runs[0]):
        cells = [spread([run[number][1][k] for run in runs], digits[k]) for k in range(len(values))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def taught(student: nn.Module, batches: Sequence[object], loss: Callable[..., Tensor], lr: float, seconds: float):
    """The student after so many CPU seconds of `ng.finetune` towards the ensemble's outputs, a cosine schedule."""
    common = {"loss": loss, "optimizer": lambda p: torch.optim.Adam(p, lr), "progress": False}
    started = time.process_time()
    ng.finetune(student, batches, epochs=1, **common)
    each = time.process_time() - started
    return ng.finetune(student, batches, epochs=max(1, round(seconds / each)), schedule="cosine", **common)


# splice sites


@dataclass(frozen=True, eq=False)
class Region:
    """Windows of both strands of one half of the region: one-hot `(windows, 4, length + 80)` and labels."""

    bases: Tensor
    labels: Tensor


def halves(path: Path, window: int = WINDOW) -> tuple[Region, Region]:
    """The half to calibrate on and the half to judge by, each the same on both strands."""
    data = np.load(path / "arab1.npz")
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    labels: tuple[list[Tensor], list[Tensor]] = ([], [])
    for strand, first in (("forward", 0), ("reverse", 1)):
        hot = F.one_hot(torch.from_numpy(data[strand].astype(np.int64)), BASES).float()
        if strand == "forward":
            hot = hot * torch.from_numpy(data["forward_known"])[:, None]
        said = torch.from_numpy(data[f"{strand}_label"].astype(np.int64))
        middle = len(hot) // 2
        for part, (start, end) in enumerate(((CONTEXT, middle), (middle, len(hot) - CONTEXT))):
            half = part ^ first  # the reverse strand runs backwards: its last half is the first of the region
            for at in range(start, end - window + 1, window):
                parts[half].append(hot[at - CONTEXT : at + window + CONTEXT].T)
                labels[half].append(said[at : at + window])
    calibrate, judge = (Region(torch.stack(p), torch.stack(s)) for p, s in zip(parts, labels, strict=True))
    return calibrate, judge


@torch.no_grad()
def probabilities(net: nn.Module, bases: Tensor) -> Tensor:
    """Softmax of the logits, `(windows, 3, length)`."""
    return torch.cat([net(part).softmax(1) for part in bases.split(16)])


def splice_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """KL(ensemble ‖ network), the mean over positions."""
    return F.kl_div(logits.log_softmax(1), wanted, reduction="none").sum(1).mean()


def splice_row(found: Tensor, wanted: Tensor, labels: Tensor) -> tuple[float, ...]:
    """1000 · KL to the ensemble, and the average precision of acceptors and donors."""
    p, q = wanted.double().clamp_min(1e-12), found.double().clamp_min(1e-12)
    kl = float((p * (p / q).log()).sum(1).mean())
    scores = [average_precision_score(labels.flatten() == k, found[:, k].flatten()) for k in (1, 2)]
    return 1e3 * kl, *scores


def splice(path: Path, methods: Sequence[str], seconds: float) -> Iterator[Row]:
    """Every row of the splice networks' table."""
    nets = members(path, SpliceNetwork)
    calibrate, judge = halves(path)
    seen = [probabilities(net, judge.bases) for net in nets]
    wanted = torch.stack(seen).mean(0)
    known = [probabilities(net, calibrate.bases) for net in nets]
    target = torch.stack(known).mean(0)
    batches = list(zip(calibrate.bases.split(8), target.split(8), strict=True))

    def judged(name: str, found: Tensor) -> Row:
        return name, splice_row(found, wanted, judge.labels)

    for m, found in enumerate(seen):
        yield judged(f"member {m}", found)
    yield judged("ensemble of 2 (members 0, 1)", (seen[0] + seen[1]) / 2)
    yield judged("ensemble of 4 (members 0 to 3)", torch.stack(seen[:4]).mean(0))
    yield judged(f"ensemble of {len(nets)}", wanted)
    best = min(range(len(nets)), key=lambda m: splice_row(known[m], target, calibrate.labels)[0])
    student = taught(nets[best], batches, splice_loss, 1e-5, seconds)
    yield judged(f"member {best}, the nearest on the calibration half, distilled", probabilities(student, judge.bases))
    half = ng.fuse([nets[best], student], calibrate.bases[:2], "average", recover=None)
    yield judged("half way from it to the distilled one", probabilities(half.eval(), judge.bases))
    every = ng.Members(nets, calibrate.bases[:2], calibration=[calibrate.bases])
    for method in methods:
        fusion = ng.Fusion.of(every, method)
        refitted = fusion.refit()
        student = taught(refitted.model, batches, splice_loss, 1e-3, seconds)
        steps = {"": fusion.model, ", REPAIR": fusion.repair(every.calibration).model, ", refit": refitted.model}
        for name, net in {**steps, ", refit, distilled": student}.items():
            yield judged(method + name, probabilities(net.eval(), judge.bases))


# energies of molecules


@dataclass(frozen=True, eq=False)
class Atoms:
    """Atoms with what surrounds them, their element, conformation and molecule."""

    aev: Tensor
    element: Tensor
    conformation: Tensor
    molecule: Tensor

    @classmethod
    def read(cls, path: Path) -> "Atoms":
        """All of them."""
        data = np.load(path / "atoms.npz")
        numbers = (torch.from_numpy(data[n].astype(np.int64)) for n in ("element", "conformation", "molecule"))
        return cls(torch.from_numpy(data["aev"].astype(np.float32)), *numbers)

    def of(self, chosen: Tensor) -> "Atoms":
        """Some of them."""
        return Atoms(self.aev[chosen], self.element[chosen], self.conformation[chosen], self.molecule[chosen])

    def energies(self, atoms: Tensor) -> Tensor:
        """The sums over conformations."""
        numbers = self.conformation.unique(return_inverse=True)[1]
        return atoms.new_zeros(int(numbers.max()) + 1).index_add(0, numbers, atoms)


def energy_loss(energies: Tensor, wanted: Tensor) -> Tensor:
    """Smooth L1 of the atoms' and of the conformations' energies; `wanted`: energy and conformation, `(atoms, 2)`."""
    away = energies - wanted[:, 0]
    numbers = wanted[:, 1].long().unique(return_inverse=True)[1]
    sums = away.new_zeros(int(numbers.max()) + 1).index_add(0, numbers, away)
    return sum(F.smooth_l1_loss(d, torch.zeros_like(d)) for d in (away, sums))


@torch.no_grad()
def atom_energies(net: nn.Module, atoms: Atoms) -> Tensor:
    """kcal/mol, shape `(atoms,)`."""
    return net(atoms.aev, atoms.element)


def fused_potentials(nets: Sequence[Potential], atoms: Atoms, method: str) -> dict[str, Potential]:
    """One method, bare and recovered: every element's network is fused by itself, its atoms are the samples."""
    found: dict[str, dict[str, nn.Module]] = {name: {} for name in ("", ", REPAIR", ", refit", ", refit by molecules")}
    for number, element in enumerate(ELEMENTS):
        own = atoms.of(atoms.element == number)
        every = ng.Members([net.nets[element] for net in nets], own.aev[:2], calibration=[own.aev])
        fusion = ng.Fusion.of(every, method)
        found[""][element] = fusion.model
        found[", REPAIR"][element] = fusion.repair(every.calibration).model
        found[", refit"][element] = fusion.refit().model
        found[", refit by molecules"][element] = fusion.refit(groups=own.molecule).model
    return {name: Potential(networks) for name, networks in found.items()}


def ani(path: Path, methods: Sequence[str], seconds: float, division: int) -> Iterator[Row]:
    """Every row of the potentials' table for one random division of the molecules."""
    nets = members(path, Potential)
    every = Atoms.read(path)
    molecules = int(every.molecule.max()) + 1
    order = torch.randperm(molecules, generator=torch.Generator().manual_seed(division))
    known = torch.isin(every.molecule, order[: molecules // 2])
    calibrate, judge = every.of(known), every.of(~known)
    seen = torch.stack([atom_energies(net, every) for net in nets])
    wanted = seen.mean(0)
    targets = torch.stack([wanted[known], calibrate.conformation.float()], 1)
    shuffled = calibrate.conformation.unique()
    shuffled = shuffled[torch.randperm(len(shuffled), generator=torch.Generator().manual_seed(division))]
    batches = []
    for part in shuffled.split(60):
        rows = torch.isin(calibrate.conformation, part)
        batches.append(((calibrate.aev[rows], calibrate.element[rows]), targets[rows]))

    def judged(name: str, found: Tensor) -> Row:
        off = found - wanted
        pairs = ((judge, ~known), (calibrate, known))
        return name, tuple(float(atoms.energies(off[rows]).abs().mean()) for atoms, rows in pairs)

    rows = [judged(f"member {m}", found) for m, found in enumerate(seen)]
    yield from rows
    for count in (2, 4):
        yield judged(f"ensemble of {count} (members 0 to {count - 1})", seen[:count].mean(0))
    best = min(range(len(nets)), key=lambda m: rows[m][1][1])
    yield "nearest member on the calibration molecules", rows[best][1]
    student = taught(nets[best], batches, energy_loss, 3e-5, seconds)
    yield judged("the same distilled", atom_energies(student, every))
    half = halfway(nets[best], student)
    yield judged("half way from it to the distilled one", atom_energies(half, every))
    for method in methods:
        found = fused_potentials(nets, calibrate, method)
        for name, net in found.items():
            yield judged(method + name, atom_energies(net, every))
        student = taught(found[", refit by molecules"], batches, energy_loss, 3e-4, seconds)
        yield judged(f"{method}, refit by molecules, distilled", atom_energies(student, every))


def halfway(start: nn.Module, end: nn.Module) -> Potential:
    """The network in the middle of the line between two."""
    x = torch.zeros(2, 384)
    pairs = {element: [start.nets[element], end.nets[element]] for element in ELEMENTS}
    return Potential({element: ng.fuse(pair, x, "average") for element, pair in pairs.items()})


def splice_section(path: Path, options: argparse.Namespace) -> str:
    """The part of the page about splice sites."""
    heads = ("network", "1000 · KL to the ensemble", "acceptor, average precision", "donor, average precision")
    rows = list(splice(path / "splice", options.methods, options.seconds))
    return f"{table(heads, [rows], (3, 3, 3))}\n\nDistilled: {options.seconds:g} CPU seconds on one thread each."


def ani_section(path: Path, options: argparse.Namespace) -> str:
    """The part of the page about potentials."""
    heads = ("network", "new molecules, kcal/mol", "calibration molecules, kcal/mol")
    runs = [list(ani(path / "ani", options.methods, options.seconds, n)) for n in range(options.divisions)]
    note = f"Mean ± standard deviation over {options.divisions} random divisions of the 72 molecules; distilled: "
    return f"{table(heads, runs, (2, 2))}\n\n{note}{options.seconds:g} CPU seconds on one thread each."


SECTIONS = {"splice": splice_section, "ani": ani_section}
BLOCK = "(<!-- {0} -->\n).*?(<!-- end of {0} -->)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the parts asked for and put them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="splice, ani; default both")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of distilling, each")
    parser.add_argument("--divisions", type=int, default=3, help="random divisions of the molecules")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    path = folder()
    if unknown := [part for part in options.parts if part not in SECTIONS]:
        parser.error(f"unknown parts {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if path is None:
        print("skipped: set NEUROGRAFT_SHARED to the folder that holds real/ani and real/splice", file=sys.stderr)
        return 0
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for part in options.parts or SECTIONS:
        text = SECTIONS[part](path, options)
        page = options.page.read_text(encoding="utf-8")
        block = re.compile(BLOCK.format(part), re.DOTALL)
        options.page.write_text(block.sub(lambda found, text=text: f"{found[1]}\n{text}\n\n{found[2]}", page), "utf-8")
        print(text, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
