"""Write docs/networks.md: what tracing finds in every network of the tests, and which methods work on it.

Usage: python tools/network_table.py [NAME …]   (with names: only their rows and notes are made anew)
"""

import copy
import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(ROOT))  # the networks of the tests

import torch
from tests.networks import NETWORKS, build
from tests.tracing.huggingface import HUGGINGFACE, made
from tests.tracing.test_checklist import CASES, roughened
from torch import nn

import neurograft as ng
from neurograft.errors import NeurograftError
from neurograft.inputs import call
from neurograft.tracing.recording import record

PAGE = ROOT / "docs" / "networks.md"
METHODS = ("average", "transplant", "permutation", "optimal_transport", "combine")
HEADS = ("network", "groups free / fixed", "free", "ops", "trace (ms)", "proof", *METHODS)
RUNS = 5


def other_member(model: nn.Module) -> nn.Module:
    """The same network with much noise on every parameter."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator) * parameter.abs().mean())
    return other


def free_share(model: nn.Module, graph: ng.NeuronGraph) -> float:
    """The share of the entries of all weights of two or more dimensions that lie on an axis of a free group."""
    weights = {name: p.numel() for name, p in model.named_parameters() if p.dim() > 1}
    free = {g.name for g in graph.free}
    lying = [
        n for name, n in weights.items() if name in graph.tensors and free & set().union(*graph.tensors[name].roles)
    ]
    return sum(lying) / max(1, sum(weights.values()))


def works(method: str, models: list[nn.Module], inputs: Any, graph: ng.NeuronGraph) -> str:
    """Say yes, or why not."""
    fixed = graph.unreached
    try:
        if method == "combine":
            ng.combine(models, inputs, graph=graph, fixed=fixed)
        else:
            call(ng.fuse(models, inputs, method=method, graph=graph, fixed=fixed), inputs)
    except NeurograftError as error:
        return str(error)
    return "yes"


def row(name: str, model: nn.Module, inputs: Any) -> tuple[str, list[str]]:
    """One row of the table, and the notes below it."""
    graph = ng.trace(model, inputs)
    times = []
    for _ in range(RUNS):
        started = time.process_time()
        ng.trace(model, inputs, verify=False)
        times.append(1e3 * (time.process_time() - started))
    models = [model, other_member(model)]
    verdicts = {method: works(method, models, inputs, graph) for method in METHODS}
    cells = [
        name,
        f"{len(graph.free)} / {len(graph.groups) - len(graph.free)}",
        f"{free_share(model, graph):.1%}",
        str(len(record(model, inputs).ops)),
        f"{min(times):.0f}",
        "yes" if ng.verify(model, graph, inputs, deep=True).passed else "no",
        *("yes" if verdict == "yes" else "no" for verdict in verdicts.values()),
    ]
    notes = [f"- {name}, {method}: {verdict}" for method, verdict in verdicts.items() if verdict != "yes"]
    if graph.unreached:
        notes.append(f"- {name}: not reached by the example inputs, named in `fixed`: {', '.join(graph.unreached)}")
    if free_share(model, graph) < 0.95:
        reasons = sorted({f"{g.name} ({g.why})" for g in graph.groups if g.fixed})
        notes.append(f"- {name}, fixed axes: {'; '.join(reasons)}")
    return f"| {' | '.join(cells)} |", notes


def networks() -> dict[str, Callable[[], tuple[nn.Module, Any]]]:
    """Hugging Face networks, the small ones that all tests share, and those of the tracer's checklist."""

    def case(name: str) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        return roughened(CASES[name].make()), CASES[name].inputs()

    found: dict[str, Callable[[], tuple[nn.Module, Any]]] = {name: partial(made, name) for name in HUGGINGFACE}
    found |= {name: partial(lambda name: (build(name), NETWORKS[name].inputs()), name) for name in NETWORKS}
    return found | {name: partial(case, name) for name in CASES if name not in found}


def main() -> None:
    """Make every row, or those asked for, and write the page."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    asked = sys.argv[1:]
    rows: dict[str, str] = {}
    notes: dict[str, list[str]] = {}
    if asked:
        rows, notes = written(PAGE.read_text(encoding="utf-8"))
    for name, make in networks().items():
        if asked and name not in asked:
            continue
        rows[name], notes[name] = row(name, *make())
        print("\n".join([rows[name], *notes[name]]), flush=True)
    PAGE.write_text(page(rows, notes), encoding="utf-8")


def written(text: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The rows and notes of the page as it is, by network."""
    lines = text.splitlines()
    rows = {line.split(" | ")[0][2:]: line for line in lines if line.startswith("| ") and not line.startswith("| ---")}
    rows.pop(HEADS[0])
    notes: dict[str, list[str]] = {name: [] for name in rows}
    for line in lines:
        if line.startswith("- "):
            notes[re.split("[,:]", line[2:])[0]].append(line)
    return rows, notes


def page(rows: dict[str, str], notes: dict[str, list[str]]) -> str:
    """The whole page."""
    return "\n".join(
        [
            "# Networks",
            "",
            "Made by `python tools/network_table.py`; tiny networks with random weights, CPU, one thread. *free*:",
            "entries of weights with two or more dims that lie on an axis of a free group. *ops*: ATen ops of a",
            "forward pass. *trace*: milliseconds without proof. *proof*: permutations, roles and every tensor between.",
            "A method works if it plans, applies and runs on two members; `combine` if it is exact.",
            "",
            f"| {' | '.join(HEADS)} |",
            "|" + " --- |" * len(HEADS),
            *rows.values(),
            "",
            "## Where something does not work, and why",
            "",
            *(note for name in rows for note in notes[name]),
            "",
        ]
    )


if __name__ == "__main__":
    main()
