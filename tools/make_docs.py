"""Draw the README's picture from a real plan, and build the site of all pages and the API.

Usage: python tools/make_docs.py [picture]
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

import neurograft as ng
from neurograft_experiments.inside import shares_of
from neurograft_experiments.reports.figures import COLOURS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
NEURONS, LAYERS = 6, 3
WIDTH, HEIGHT = 780, 330
STEP, RADIUS, TOP = 62, 9, 66
INKS = (
    ":root { --ink: #1c2429; --soft: #5b6870; } "
    "@media (prefers-color-scheme: dark) { :root { --ink: #e8edf0; --soft: #9fadb5; } }"
)


def members() -> list[nn.Module]:
    """Two networks with three hidden layers, whose neurons differ enough in size to be told apart."""
    networks: list[nn.Module] = []
    for seed in (4, 9):
        torch.manual_seed(seed)
        sizes = [3, *[NEURONS] * LAYERS, 2]
        layers = [layer for n, m in pairwise(sizes) for layer in (nn.Linear(n, m), nn.ReLU())]
        networks.append(nn.Sequential(*layers[:-1]))
    return networks


def picture() -> str:
    """Both members with their kept neurons strong, an arrow, and the fused network in the members' colours."""
    plan = ng.plan(members(), torch.zeros(1, 3), method="transplant")
    shares = [[shares_of(mapping) for mapping in maps] for maps in plan.maps.values()]
    kept = [[[m if float(g) > 0 else None for g in layer[m][1]] for layer in shares] for m in range(2)]
    fused = [[0 if float(taken) > 0 else 1 for taken in layer[0][0]] for layer in shares]
    parts = [
        *(_network(20 + 200 * m, kept[m], m) for m in range(2)),
        _network(578, fused, 0),
        f'<path d="M440 {TOP + 2.5 * 36:.0f}h70m-10 -8l10 8l-10 8" class="arrow"/>',
        *(_text(102 + 200 * m, f"member {m}", 28) for m in range(2)),
        _text(660, "fused", 28),
        _text(202, "two trained networks; faint neurons are left out", HEIGHT - 14, "soft"),
        _text(660, "one network of the same size", HEIGHT - 14, "soft"),
    ]
    style = (
        f"<style>{INKS} text {{ font: 15px system-ui, sans-serif; text-anchor: middle; fill: var(--ink); }} "
        ".soft { fill: var(--soft); font-size: 13px; } line { opacity: .45; } "
        ".arrow { stroke: var(--soft); stroke-width: 3; fill: none; }</style>"
    )
    label = "Two networks side by side; the strong neurons of both end up in one network of the same size"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"{style}{''.join(parts)}</svg>\n"
    )


def _text(x: float, text: str, y: float, kind: str = "ink") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}">{text}</text>'


def _network(x: float, owners: Sequence[Sequence[int | None]], left_out: int) -> str:
    """Layers from left to right, a column of neurons each, coloured by their owner; None is left out and faint.

    Edges join neurons of one owner only: between owners the fused weights are zero before training.
    """
    edges, dots = [], []
    for index, layer in enumerate(owners):
        for n, owner in enumerate(layer):
            cx, cy = x + 20 + STEP * index, TOP + 36 * n
            fill, opacity = COLOURS[left_out if owner is None else owner], 0.16 if owner is None else 1
            dots.append(f'<circle cx="{cx:.0f}" cy="{cy}" r="{RADIUS}" fill="{fill}" opacity="{opacity}"/>')
            if owner is not None and index + 1 < len(owners):
                edges += [
                    f'<line x1="{cx:.0f}" y1="{cy}" x2="{cx + STEP:.0f}" y2="{TOP + 36 * m}" stroke="{fill}"/>'
                    for m, other in enumerate(owners[index + 1])
                    if other == owner
                ]
    return "".join(edges + dots)


def site() -> None:
    """The pages of docs/ and the API from the docstrings, as mkdocs.yml says; every warning is an error."""
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--quiet"], cwd=ROOT, env=environment, check=False)
    if built.returncode:
        sys.exit(built.returncode)


def main() -> None:
    """Write docs/idea.svg and, unless only the picture is asked for, the site."""
    (DOCS / "idea.svg").write_text(picture(), encoding="utf-8")
    print(f"wrote {DOCS / 'idea.svg'}")
    if sys.argv[1:] != ["picture"]:
        site()
        print(f"wrote {ROOT / 'site' / 'index.html'}")


if __name__ == "__main__":
    main()
