"""docs/recovery.md and its picture, from the rows of `benchmarks/recovery.py`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

HEAD = """# Recovery without training

What comes back of what one-shot fusion loses, from unlabelled images and without a gradient step. Test accuracy in per
cent, each row read once; mean over the seeds. `bare` is the fused network as it comes; `BatchNorm` re-estimates the
running statistics, `REPAIR` gives every neuron the planned mean and deviation (`without data` from the members' own
statistics), `refit` solves every layer towards what the members say. Calibration: {samples} training images without
labels. "member 0's neurons" is the control: nothing is fused, member 0 keeps its neurons and is solved towards the
members' mean output, so it shows what distilling in closed form alone would give. Made by

    python benchmarks/recovery.py && python benchmarks/recovery.py --table

from the rows in `results/recovery`, which record commit, versions and hardware.
"""
NOTES = """## What to read from it

- MNIST MLP: transplant + refit comes within 0.1 points of the ensemble. The vanilla average loses most and wins back
  most.
- The control is the honest bar. A member that keeps its own neurons and is solved towards the ensemble is as good as or
  better than every refitted fusion here: refit repairs what fusing broke, it does not pass the best member. Whoever can
  train should distil ([how to choose](how-to-choose.md)).
- LeNet misses two thirds for permutation and optimal transport, and for four members. Neither the ridge nor more
  positions per image change that (tried: ridge 0.001 to 0.1, 17 and 64 positions), more images help slowly. What is
  left is what the six filters of its first layer do not carry: their targets are met exactly, and all layers behind
  them keep relative errors of 0.2 to 0.4.
- REPAIR alone makes the transplanted LeNet worse. It has no biases, so the scale alone is set, and a neuron that lost
  the inputs it was made for is scaled up with what is wrong in it.
"""
COLUMNS = (
    ("bare", "bare"),
    ("batch_norm", "BatchNorm"),
    ("repair without data", "REPAIR without data"),
    ("repair", "REPAIR"),
    ("refit to the plain mean", "refit to the plain mean"),
    ("refit", "refit"),
)


def write_table(rows: Mapping[str, Sequence[Any]], titles: Mapping[str, str], folder: Path) -> None:
    """Write the page, and the picture where there is a curve."""
    samples = max((row.samples for found in rows.values() for row in found if row.recovery == "repair"), default=0)
    parts = [HEAD.format(samples=f"{samples:,}")]
    for name, found in rows.items():
        for count in sorted({row.members for row in found if row.members > 1}):
            parts.append(_section(titles[name], count, found, samples))
    curves = {titles[name]: _curve(found) for name, found in rows.items()}
    curves = {title: curve for title, curve in curves.items() if len(curve) > 1}
    if curves:
        _draw(curves, folder / "recovery.svg")
        parts.append(_curve_section(curves))
    parts.append(NOTES)
    (folder / "recovery.md").write_text("\n".join(parts), encoding="utf-8")


def _section(title: str, count: int, rows: Sequence[Any], samples: int) -> str:
    seeds = sorted({row.seed for row in rows if row.members == count})
    singles = [row for row in rows if row.members == 1 and row.seed in seeds and int(row.method.split()[1]) < count]
    best = mean(max(r.accuracy for r in singles if r.seed == seed) for seed in seeds)
    ensemble = mean(row.accuracy for row in rows if row.members == count and row.method == "ensemble")
    shown = [(key, name) for key, name in COLUMNS if any(r.members == count and r.recovery == key for r in rows)]
    lines = [
        f"## {title}: {count} members, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}\n",
        f"Members {', '.join(_percent(r.accuracy) for r in singles)}; best {_percent(best)}; "
        f"ensemble {_percent(ensemble)}.\n",
        f"| method | {' | '.join(name for _, name in shown)} | won back by refit | refit, seconds |",
        "| --- |" + " ---: |" * (len(shown) + 2),
    ]
    methods = dict.fromkeys(r.method for r in rows if r.members == count and r.method != "ensemble")
    for method in methods:
        own = [r for r in rows if r.members == count and r.method == method]
        cells = {}
        for key, _ in shown:
            found = [r.accuracy for r in own if r.recovery == key and r.samples in (0, samples)]
            cells[key] = mean(found) if found else None
        bare, refit = cells.get("bare"), cells.get("refit")
        share = "" if bare is None or refit is None or best <= bare else f"{(refit - bare) / (best - bare):.0%}"
        spent = [r.seconds for r in own if r.recovery == "refit" and r.samples == samples]
        numbers = " | ".join("" if cells[key] is None else _percent(cells[key]) for key, _ in shown)
        lines.append(f"| {method} | {numbers} | {share} | {f'{mean(spent):.1f}' if spent else ''} |")
    return "\n".join(lines) + "\n"


def _curve(rows: Sequence[Any]) -> dict[int, float]:
    """Calibration images -> accuracy of transplant and refit; 0 images is the bare network."""
    chosen = [r for r in rows if r.members == 2 and r.method == "transplant" and r.recovery in ("bare", "refit")]
    return {n: mean(r.accuracy for r in chosen if r.samples == n) for n in sorted({r.samples for r in chosen})}


def _curve_section(curves: Mapping[str, Mapping[int, float]]) -> str:
    counts = sorted({n for curve in curves.values() for n in curve})
    lines = [
        "## How many images?\n",
        "Transplant + refit, 2 members; 0 images is the bare network.\n",
        "![Accuracy over the number of calibration images](recovery.svg)\n",
        f"| images | {' | '.join(f'{n:,}' for n in counts)} |",
        "| --- |" + " ---: |" * len(counts),
    ]
    for title, curve in curves.items():
        lines.append(f"| {title} | {' | '.join(_percent(curve[n]) if n in curve else '' for n in counts)} |")
    return "\n".join(lines) + "\n"


def _draw(curves: Mapping[str, Mapping[int, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "recovery"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 3.8))
    for title, curve in curves.items():
        axes.plot(list(curve), [100 * a for a in curve.values()], marker="o", label=title)
    axes.set_xscale("symlog", linthresh=50)
    ticks = sorted({n for curve in curves.values() for n in curve})
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks], minor=False)
    axes.set_xlabel("calibration images, unlabelled")
    axes.set_ylabel("test accuracy, %")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
