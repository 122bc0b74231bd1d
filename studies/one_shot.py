"""What fusing gives at once, before recovery: every method, and members that saw other digits.

    python studies/one_shot.py --data ../shared/data      # everything that is not in results/one_shot yet
    python studies/one_shot.py --table                    # docs/one-shot.md from the rows there are

`--data` holds folders `mnist` and `cifar10` of parquet files. Rows are JSON lines under results/one_shot; a run that
is started again goes on where the last one ended. Members are trained on one part of the training images, the best
member is chosen on the other, and every row reads the test images once. With `--members FOLDER` trained members are
kept there and read back, so that the methods can be run again without training; a row says at which commit its members
were trained.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import neurograft as ng
from neurograft.experimenting.data import Images, Split, load_images
from neurograft.experimenting.networks import MLP
from neurograft.experimenting.provenance import provenance
from neurograft.planning.assignment import assign
from neurograft.planning.costs import Network, Products, WeightEvidence
from neurograft.planning.maps import NeuronMap
from neurograft.planning.matching import execution_order, match_forward
from neurograft.planning.members import state_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "results" / "one_shot", ROOT / "docs" / "one-shot.md"
COUNTS = (2, 4, 8)
SAMPLES = 1000
DIGIT = 4
STARTS = (1, 3, 10, 30)
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "average": ("average", {}),
    "permutation (weights, 3 starts)": ("permutation", {"restarts": 3}),
    "permutation (weights, 10 starts)": ("permutation", {"restarts": 10}),
    "permutation (activations)": ("permutation", {"metric": "activations"}),
    "optimal_transport (weights)": ("optimal_transport", {}),
    "optimal_transport (activations)": ("optimal_transport", {"metric": "activations"}),
    "transplant": ("transplant", {}),
    "transplant (activation)": ("transplant", {"importance": "activation"}),
    "zip": ("zip", {}),
}


class LeNet(nn.Module):
    """The papers' LeNet: two convolutions, three linear layers, no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 6, 5, bias=False), nn.Conv2d(6, 16, 5, bias=False)
        self.f1, self.f2, self.f3 = (nn.Linear(a, b, bias=False) for a, b in ((400, 120), (120, 84), (84, 10)))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.c2(self.pool(self.c1(x).relu())).relu()).flatten(1)
        return self.f3(self.f2(self.f1(x).relu()).relu())


NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"make": lambda: MLP((1, 28, 28), 10, 256), "data": "mnist", "epochs": 6, "lr": 0.02, "samples": None},
    "lenet": {"make": LeNet, "data": "cifar10", "epochs": 15, "lr": 0.02, "samples": 25_000},
}


def train(network: nn.Module, images: Images, split: Split, settings: dict[str, Any], seed: int) -> nn.Module:
    return ng.finetune(
        network,
        split.batches(64, shuffle=True),
        epochs=settings["epochs"],
        lr=settings["lr"],
        validation=images.validation.batches(),
        seed=seed,
        progress=False,
    )


def made(settings: dict[str, Any], seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return settings["make"]()


class Members:
    """Trained members, kept in a folder if there is one."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def member(self, name: str, images: Images, split: Split, own: int) -> tuple[nn.Module, str]:
        """The member of this network and seed, and the commit it was trained at."""
        settings = NETWORKS[name.partition("-")[0]]
        network, file = made(settings, own), self.folder and self.folder / f"{name}-{own}.pt"
        if file and file.exists():
            kept = torch.load(file, weights_only=True)
            network.load_state_dict(kept["state"])
            return network.eval(), kept["commit"]
        network = train(network, images, split, settings, own)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"state": network.state_dict(), "commit": provenance()["commit"]}, file)
        return network, provenance()["commit"]


class Rows:
    """Result rows in one file, each found again by what determines it."""

    def __init__(self, name: str) -> None:
        self.file = RESULTS / f"{name}.jsonl"
        self.rows = [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def has(self, **key: Any) -> bool:
        return any(all(row[k] == v for k, v in key.items()) for row in self.rows)

    def add(self, **row: Any) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.rows.append(row)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | provenance()) + "\n")
        shown = {k: v for k, v in row.items() if k not in ("configuration", "split")}
        print(shown, flush=True)


def one_shot(name: str, folder: Path, seeds: list[int], kept: Members) -> None:
    """All methods for 2, 4 and 8 members of one network; a seed is a set of eight members."""
    settings, rows = NETWORKS[name], Rows(name)
    configuration = {k: settings[k] for k in ("data", "epochs", "lr", "samples")} | {"calibration": SAMPLES}
    images: Images | None = None
    for seed in seeds:
        if rows.has(seed=seed, done=True):
            continue
        images = images or load_images(str(folder / settings["data"]), samples=settings["samples"])
        test = images.test.batches()
        members, scores, commits = [], [], set()
        for number in range(max(COUNTS)):
            started = time.perf_counter()
            own = 100 * seed + number
            member, commit = kept.member(name, images, images.train, own)
            members.append(member)
            commits.add(commit)
            scores.append(ng.evaluate(members[-1], images.validation.batches()).accuracy)
            print(
                f"{name} seed {seed}: member {number} {scores[-1]:.4f} {time.perf_counter() - started:.0f} s",
                flush=True,
            )
        calibration = [images.train.images[:SAMPLES].split(250)[i] for i in range(SAMPLES // 250)]
        accuracies = [ng.evaluate(member, test).accuracy for member in members]

        settled = {"seed": seed, "configuration": configuration, "trained": sorted(commits)}

        def add(row: str, members: int, accuracy: float, seconds: float, settled: dict[str, Any] = settled) -> None:
            rows.add(row=row, members=members, split="test", accuracy=accuracy, seconds=seconds, done=False, **settled)

        for count in COUNTS:
            chosen = members[:count]
            add("members, mean", count, statistics.mean(accuracies[:count]), 0.0)
            best = max(range(count), key=lambda m: scores[m])
            add("best member", count, accuracies[best], 0.0)
            add("ensemble", count, ng.evaluate(ng.Ensemble(chosen), test).accuracy, 0.0)
            for row, (method, options) in METHODS.items():
                started = time.perf_counter()
                fused = ng.fuse(chosen, images.train.images[:2], method, calibration=calibration, recover=None,
                                seed=seed, **options)  # fmt: skip
                add(row, count, ng.evaluate(fused, test).accuracy, time.perf_counter() - started)
        rows.add(row="all", members=0, split="test", accuracy=0.0, seconds=0.0, done=True, **settled)


def first_layer(folder: Path, seeds: list[int], kept: Members) -> None:
    """Why matching by weights goes wrong on a LeNet: starts of the descent, and who matches the 6 first filters."""
    settings, rows = NETWORKS["lenet"], Rows("first_layer")
    for seed in seeds:
        if rows.has(seed=seed, done=True):
            continue
        images = load_images(str(folder / settings["data"]), samples=settings["samples"])
        validation = images.validation.batches()
        found = [kept.member("lenet", images, images.train, 100 * seed + number) for number in range(max(COUNTS))]
        settled = {"seed": seed, "split": "validation", "trained": sorted({commit for _, commit in found}),
                   "configuration": {"data": settings["data"], "pairs": "0+1, 2+3, 4+5, 6+7"}}  # fmt: skip
        for a, b in ((0, 1), (2, 3), (4, 5), (6, 7)):
            pair, inputs = [found[a][0], found[b][0]], images.train.images[:2]
            graph = ng.trace(pair[0], inputs)
            plans = {
                f"permutation, {count} start{'s' if count > 1 else ''}": ng.plan(
                    pair, inputs, "permutation", graph=graph, reference=0, restarts=count, seed=seed
                )
                for count in STARTS
            }
            plain = ng.plan(pair, inputs, "optimal_transport", graph=graph, reference=0)
            best = plans[f"permutation, {STARTS[-1]} starts"]
            plans["optimal_transport"] = plain
            plans["optimal_transport, first layer as by permutation"] = first_as(best, plain, pair)
            for row, plan in plans.items():
                rows.add(row=row, pair=f"{a}+{b}", accuracy=ng.evaluate(ng.apply(plan, pair), validation).accuracy,
                         done=False, **settled)  # fmt: skip
        rows.add(row="all", pair="", accuracy=0.0, done=True, **settled)


def first_as(given: ng.FusionPlan, plain: ng.FusionPlan, pair: list[nn.Module]) -> ng.FusionPlan:
    """The plan of optimal transport between two members, but for the first group, which another plan has matched."""
    graph = plain.graphs[0]
    first, *_ = order = execution_order(graph)

    def solve(group: str, products: Products) -> NeuronMap:
        return (
            given.maps[first][1] if group == first else NeuronMap.permutation(assign(products.distances("euclidean")))
        )

    one, other = (Network(state_of(network), graph) for network in pair)
    maps = match_forward(WeightEvidence(one, other), graph, order, solve)
    return replace(plain, maps={name: (plain.maps[name][0], maps[name]) for name in plain.maps})


def other_digits(folder: Path, seeds: list[int], kept: Members) -> None:
    """Member A alone saw one digit and a tenth of the rest, member B nine tenths of the rest; fused over B's weight."""
    settings, rows = NETWORKS["mlp"], Rows("other_digits")
    configuration = {k: settings[k] for k in ("data", "epochs", "lr")} | {"digit": DIGIT, "rest of B": 0.9}
    images: Images | None = None
    for seed in seeds:
        if rows.has(seed=seed, done=True):
            continue
        images = images or load_images(str(folder / "mnist"))
        labels = images.train.labels
        rest = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        rest = rest[labels[rest] != DIGIT]
        cut = len(rest) // 10
        parts = [torch.cat([rest[:cut], (labels == DIGIT).nonzero().flatten()]), rest[cut:]]
        members, commits = [], set()
        for m, part in enumerate(parts):
            split = Split(images.train.images[part], labels[part])
            member, commit = kept.member("mlp-digits", images, split, 10 * seed + m)
            members.append(member)
            commits.add(commit)
        trained = sorted(commits)
        test = images.test.batches()
        for m, member in enumerate(members):
            rows.add(row=f"member {'AB'[m]}", weight=float(m), seed=seed, split="test",
                     accuracy=ng.evaluate(member, test).accuracy, configuration=configuration, trained=trained,
                     done=False)  # fmt: skip
        for step in range(11):
            weight = step / 10
            mixed = {"ensemble": ng.combine(members, images.train.images[:2], weights=(1 - weight, weight))}
            for row in ("average", "permutation", "optimal_transport"):
                mixed[row] = ng.fuse(members, images.train.images[:2], row, weights=(1 - weight, weight), seed=seed)
            mixed["transplant"] = ng.fuse(members, images.train.images[:2], fraction=weight)
            for row, network in mixed.items():
                rows.add(row=row, weight=weight, seed=seed, split="test", accuracy=ng.evaluate(network, test).accuracy,
                         configuration=configuration, trained=trained, done=False)  # fmt: skip
        rows.add(row="all", weight=-1.0, seed=seed, split="test", accuracy=0.0, configuration=configuration,
                 trained=trained, done=True)  # fmt: skip


def cell(values: list[float]) -> str:
    """Mean and standard deviation over seeds, in %."""
    if not values:
        return "–"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def origin(rows: list[dict[str, Any]]) -> str:
    """Commits, seeds, settings and hardware of the rows."""
    commits = sorted({row["commit"] for row in rows})
    seeds = sorted({row["seed"] for row in rows})
    hardware = sorted({f"{row['hardware']['cpu']}, {row['hardware']['threads']} threads" for row in rows})
    trained = sorted({commit for row in rows for commit in row.get("trained", [row["commit"]])})
    return (
        f"Commit {', '.join(commits)}; members trained at {', '.join(trained)}; seeds {', '.join(map(str, seeds))}; "
        f"torch {rows[0]['versions']['torch']}; "
        f"{' and '.join(hardware)}; settings {json.dumps(rows[0]['configuration'])}."
    )


def page() -> Iterator[str]:
    """The lines of docs/one-shot.md."""
    yield "# Fused at once"
    yield ""
    yield "Made by `python studies/one_shot.py` from the rows in `results/one_shot`. Test accuracy in %, mean and"
    yield "standard deviation over seeds, before any recovery. Nothing is trained after fusing, so continuing the best"
    yield "member for the same budget is the best member itself. [Recovery](recovery.md) shows what comes back."
    for name, settings in NETWORKS.items():
        rows = [row for row in Rows(name).rows if not row["done"]]
        if not rows:
            continue
        yield from ["", f"## {name} on {settings['data']}", ""]
        yield "| | " + " | ".join(f"{count} members" for count in COUNTS) + " |"
        yield "| --- |" + " ---: |" * len(COUNTS)
        for label in ("members, mean", "best member", "ensemble", *METHODS):
            found = [[r["accuracy"] for r in rows if (r["row"], r["members"]) == (label, count)] for count in COUNTS]
            if any(found):
                yield f"| {label} | " + " | ".join(cell(values) for values in found) + " |"
        yield from ["", origin(rows)]
    yield from why()
    rows = [row for row in Rows("other_digits").rows if not row["done"]]
    if rows:
        yield from ["", "## Members that saw other digits", ""]
        yield f"Member A alone saw the digit {DIGIT}, and a tenth of the rest; member B saw nine tenths of the rest"
        yield "(MLP, MNIST, other initialisations). `transplant` takes the weight as `fraction`."
        weights = sorted({row["weight"] for row in rows})
        yield ""
        yield "| weight of B | " + " | ".join(f"{w:g}" for w in weights) + " |"
        yield "| --- |" + " ---: |" * len(weights)
        for label in ("member A", "member B", "ensemble", "average", "permutation", "optimal_transport", "transplant"):
            found = [[r["accuracy"] for r in rows if (r["row"], r["weight"]) == (label, w)] for w in weights]
            if any(found):
                yield f"| {label} | " + " | ".join(cell(values) for values in found) + " |"
        yield from ["", origin(rows)]
    yield ""


def why() -> Iterator[str]:
    """What `first_layer` found: the section on methods that match by weights."""
    rows = [row for row in Rows("first_layer").rows if not row["done"]]
    if not rows:
        return
    yield from ["", "## Why matching by weights is worse on a LeNet", ""]
    yield "Pairs of the same members, validation accuracy in %. The first layer has 6 filters of 75 weights, which say"
    yield "little about which filter goes with which, and what is mismatched there misleads all layers behind it."
    yield "Optimal transport in weights mode decides it by incoming weights alone, as published. The last row gives"
    yield "it permutation's match (of the most starts) for this one layer and lets it decide the others. Permutation"
    yield "counts outgoing weights too; its descent ends in many optima, and the one of the best objective need not be"
    yield "the most accurate. By activations, as in the optimal transport paper's convolutional networks, both do"
    yield "better (above)."
    yield ""
    labels = list(dict.fromkeys(row["row"] for row in rows))
    counted = Counter((row["seed"], row["pair"]) for row in rows)
    pairs = sorted(pair for pair, count in counted.items() if count == len(labels))
    yield "| | " + " | ".join(f"seed {seed}: {pair}" for seed, pair in pairs) + " | mean |"
    yield "| --- |" + " ---: |" * (len(pairs) + 1)
    for label in labels:
        by_pair = {(r["seed"], r["pair"]): r["accuracy"] for r in rows if r["row"] == label}
        values = [by_pair[pair] for pair in pairs]
        yield (
            f"| {label} | " + " | ".join(f"{100 * v:.1f}" for v in values) + f" | {100 * statistics.mean(values):.1f} |"
        )
    yield from ["", origin(rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds mnist and cifar10")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS, "first_layer", "other_digits"])
    parser.add_argument("--members", type=Path, help="folder where trained members are kept and looked for")
    parser.add_argument("--table", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    if not arguments.table:
        if arguments.data is None:
            parser.error("--data is needed to run anything; --table writes the page from the rows there are")
        kept = Members(arguments.members)
        for seed in arguments.seeds:  # seed by seed, so that an early stop leaves whole sets
            for name in arguments.networks:
                if name == "other_digits":
                    other_digits(arguments.data, [seed], kept)
                elif name == "first_layer":
                    first_layer(arguments.data, [seed], kept)
                else:
                    one_shot(name, arguments.data, [seed], kept)
    PAGE.write_text("\n".join(page()), encoding="utf-8")


if __name__ == "__main__":
    main()
