"""Write the table of named networks into docs/data.md.

Usage: python tools/named_networks.py
"""

import inspect
import re
from pathlib import Path

import torch

from neurograft_experiments.networks import NAMED, make_network

PAGE = Path(__file__).resolve().parent.parent / "docs" / "data.md"
SHAPES = ((3, 32, 32), (1, 28, 28), (1, 8, 8))


def row(name: str) -> str:
    """A network's options with their defaults, and its parameters for images of each shape."""
    taken = inspect.signature(NAMED[name]).parameters.values()
    options = ", ".join(f"`{p.name}: {str(p.default).lower()}`" for p in taken if p.kind is p.KEYWORD_ONLY)
    counts = []
    for shape in SHAPES:
        with torch.device("meta"):
            counts.append(f"{sum(p.numel() for p in make_network({'name': name}, shape, 10).parameters()):,}")
    return f"| `{name}` | {options} | {' | '.join(counts)} |"


def table() -> str:
    """All named networks."""
    shapes = " | ".join("x".join(map(str, shape)) for shape in SHAPES)
    head = f"| name | options and their defaults | {shapes} |\n| --- | --- |{' ---: |' * len(SHAPES)}\n"
    return head + "\n".join(row(name) for name in NAMED) + "\n"


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(r"\| name \|.*\|\n(?=\n)", lambda _: table(), page, flags=re.DOTALL), encoding="utf-8")
