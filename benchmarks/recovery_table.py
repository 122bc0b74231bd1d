"""docs/recovery.md and its picture, from the rows of `benchmarks/recovery.py`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from recovery_notes import Findings, notes

FEW = 50

HEAD = """# Recovery without training

What comes back of what one-shot fusion loses, from unlabelled images and without a gradient step. Test accuracy in per
cent, each row read once; mean over the seeds. `bare` is the fused network as it comes; `BatchNorm` re-estimates the
running statistics, `REPAIR` gives every neuron the planned mean and deviation (`without data` from the members' own
statistics), `refit` solves every layer towards what the members say (`to the plain mean`: without weighting merged
neurons by how far the members agree on them). Calibration: {samples} training images without
labels. "member 0's neurons" is the control: nothing is fused, member 0 keeps its neurons and is solved towards the
members' mean output, so it shows what distilling in closed form alone would give. Made by

    python benchmarks/recovery.py && python benchmarks/recovery.py --table

from the rows in `results/recovery`, which record commit, versions and hardware. Nothing is trained after fusing, so
"continue the best member for the same number of epochs" is the best member itself. Two figures closer than about 1.4
points (two standard errors on 10,000 test images near 50 %; 0.5 near 97 %) are equal.
"""
COLUMNS = (
    ("bare", "bare"),
    ("batch_norm", "BatchNorm"),
    ("repair without data", "REPAIR without data"),
    ("repair", "REPAIR"),
    ("refit to the plain mean", "refit to the plain mean"),
    ("refit", "refit"),
)


def write_table(
    rows: Mapping[str, Sequence[Any]], titles: Mapping[str, str], folder: Path, seconds: Mapping[str, float], where: str
) -> None:
    """Write the page, and the picture where there is a curve."""
    samples = max((row.samples for found in rows.values() for row in found if row.recovery == "repair"), default=0)
    findings = {
        name: [
            Findings(titles[name], found, count, samples)
            for count in sorted({row.members for row in found if row.method == "ensemble"})
        ]
        for name, found in rows.items()
    }
    parts = [HEAD.format(samples=f"{samples:,}")]
    missing = [titles[name] for name, found in findings.items() if not found]
    parts += [f"No rows yet: {'; '.join(missing)}.\n"] if missing else []
    parts += [_section(found) for group in findings.values() for found in group]
    curves = {titles[name]: _curve(found) for name, found in rows.items()}
    curves = {title: curve for title, curve in curves.items() if len(curve) > 1}
    if curves:
        _draw(curves, folder / "recovery.svg")
        parts.append(_curve_section(curves))
    parts.append(notes(findings, {titles[name]: spent for name, spent in seconds.items()}, where))
    (folder / "recovery.md").write_text("\n".join(parts), encoding="utf-8")


def _section(found: Findings) -> str:
    shown = [(key, name) for key, name in COLUMNS if any(r.recovery == key for r in found.rows)]
    seeds = f"seed{'s' if len(found.seeds) > 1 else ''} {', '.join(map(str, found.seeds))}"
    lines = [
        f"## {found}, {seeds}\n",
        f"Members {', '.join(_percent(r.accuracy) for r in found.singles)}; best {_percent(found.best)}; "
        f"ensemble {_percent(found.ensemble)}.\n",
        f"| method | {' | '.join(name for _, name in shown)} | refit, 50 images | won back by refit | refit, seconds |",
        "| --- |" + " ---: |" * (len(shown) + 3),
    ]
    for method in dict.fromkeys(r.method for r in found.rows if r.method != "ensemble"):
        cells = [found.get(method, key) for key, _ in shown] + [found.get(method, "refit", FEW)]
        share = found.share(method, "refit")
        spent = [r.seconds for r in found.rows if (r.method, r.recovery, r.samples) == (method, "refit", found.samples)]
        numbers = " | ".join("" if cell is None else _percent(cell) for cell in cells)
        won, took = "" if share is None else f"{share:.0%}", f"{mean(spent):.1f}" if spent else ""
        lines.append(f"| {method} | {numbers} | {won} | {took} |")
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
