"""Rows that look like those of a real study, without training anything."""

import itertools
import random
from types import SimpleNamespace

STARTS = ("average", "transplant", "optimal_transport")
MADE = {
    "commit": "0123456789ab",
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "hardware": {"cpu": "a CPU", "cores": 2, "threads": 1, "gpu": None, "system": "Linux x86_64"},
}


def about(claims=(), x="row", measure="accuracy"):
    plot = SimpleNamespace(x=x, measure=measure)
    return SimpleNamespace(
        title="Comparison", question="Which way is best?", paper="neuron transplantation", claims=claims, plot=plot
    )


def labels(row, *, recovery="none", tuning="none", seed=0, network="mlp", data="mnist", members=2, varied=None):
    found = {"row": row, "recovery": recovery, "tuning": tuning, "seed": seed, "network": network, "data": data}
    found |= {"study": "comparison", "preset": "small", "case": "", "members": members, "varied": varied or {}}
    return found | {"key": "/".join(map(str, found.values()))}


def measured(of, accuracy, *, samples=10000, curve=None, validation=None, method=None, **more):
    """A row with the labels `of` that scored `accuracy` on the test images."""
    scores = {"accuracy": accuracy, "loss": 1 - accuracy, "calibration_error": 0.02, "samples": samples}
    own = scores | {"accuracy": accuracy if validation is None else validation, "samples": 1000}
    tuned = of["tuning"] != "none"
    return {
        **of,
        "lr": 0.01 if tuned else None,
        "epoch": len(curve) - 1 if curve else 0,
        "curve": curve if curve else [own["accuracy"]],
        "validation": own,
        "test": scores,
        "seconds": {"members": 60.0, "fuse": 0.1, "recover": 0.0, "tune": 9.0 if tuned else 0.0},
        "configuration": {"start": {"method": method or of["row"]}, "data": {"samples": 6000}},
        **MADE,
        **more,
    }


def study(*, seeds=3, varied=({},), networks=("mlp",), data=("mnist",), recoveries=("none", "refit"), level=0.94):
    """All labels of a study that compares, and a row for each."""
    expected, rows = [], {}
    for network, source, at, seed in itertools.product(networks, data, varied, range(seeds)):
        place = {"network": network, "data": source, "varied": at, "seed": seed}
        draw = random.Random(f"{place}")
        best = level - 0.03 * len(expected) / 1000 + draw.gauss(0, 0.003)
        entries = [(f"member {m}", "none", "none", best - draw.random() / 200) for m in range(2)]
        entries += [("best member", "none", "none", best), ("ensemble", "none", "none", best + 0.008)]
        for tuning in ("finetune", "distill"):
            gain = 0.002 if tuning == "finetune" else 0.004
            entries.append(("continue the best member", "none", tuning, best + gain + draw.gauss(0, 0.002)))
        for start, recovery in itertools.product(STARTS, recoveries):
            loss = {"average": 0.5, "transplant": 0.1, "optimal_transport": 0.05}[start] * (recovery == "none") + 0.01
            entries.append((start, recovery, "none", best - loss - draw.random() / 50))
            entries.append((start, recovery, "finetune", best + draw.gauss(0, 0.003)))
            entries.append((start, recovery, "distill", best + 0.006 + draw.gauss(0, 0.003)))
        for row, recovery, tuning, accuracy in entries:
            of = labels(row, recovery=recovery, tuning=tuning, **place)
            first = next((a for r, c, t, a in entries if (r, c, t) == (row, recovery, "none")), best)
            curve = [accuracy - (accuracy - first) * 0.7**epoch for epoch in range(11)] if tuning != "none" else None
            expected.append(of)
            rows[of["key"]] = measured(of, accuracy, curve=curve)
    return expected, rows
