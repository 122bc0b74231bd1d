"""How much of what one-shot fusion loses comes back without training: one row per network, method and recovery.

    python benchmarks/recovery.py --data ../shared/data             # everything that is not in results/recovery yet
    python benchmarks/recovery.py --networks mlp lenet --seeds 0 1  # a part of it
    python benchmarks/recovery.py --table                           # docs/recovery.md from the rows there are

Members are trained once and kept under --cache; rows are JSON lines under results/recovery, one file per network; a run
that is started again goes on where the last one ended. Calibration images come from the training split, without labels;
nothing is chosen on the test split, which every row reads once.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

import neurograft as ng
from neurograft.experimenting.data import Images, load_images
from neurograft.experimenting.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("average", "permutation", "optimal_transport", "transplant")
RECOVERIES = ("bare", "batch_norm", "repair", "refit to the plain mean", "refit")
MERGING = ("average", "permutation", "optimal_transport")
FEW = 50
CURVE = (50, 200, 500, 1000, 2000, 5000)
CALIBRATION = 2000
CONTROL = "member 0's neurons"


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 6, 5, bias=False), nn.Conv2d(6, 16, 5, bias=False)
        self.f1, self.f2, self.f3 = (nn.Linear(a, b, bias=False) for a, b in ((400, 120), (120, 84), (84, 10)))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.c2(self.pool(self.c1(x).relu())).relu()).flatten(1)
        return self.f3(self.f2(self.f1(x).relu()).relu())


class Block(nn.Module):
    def __init__(self, a: int, b: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b)
        self.conv2, self.norm2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b)
        same = stride == 1 and a == b
        convolution = nn.Conv2d(a, b, 1, stride, bias=False)
        self.shortcut = nn.Identity() if same else nn.Sequential(convolution, nn.BatchNorm2d(b))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class ResNet(nn.Module):
    """ResNet8 for 32 x 32 images (He et al. 2015, section 4.2, n = 1)."""

    def __init__(self, width: int = 16, depth: int = 1):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        blocks, channels = [], width
        for stage in range(3):
            for number in range(depth):
                blocks.append(Block(channels, width << stage, 2 if stage and not number else 1))
                channels = width << stage
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.norm(self.conv(x)).relu()).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.project(y.transpose(1, 2).reshape(n, length, -1))


class Encoder(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self, width: int = 64, depth: int = 4, heads: int = 4):
        super().__init__()
        self.patch, self.position = nn.Conv2d(3, width, 4, 4), nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.blocks = nn.Sequential(*(Encoder(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


def mlp() -> nn.Module:
    sizes = (784, 512, 512, 512)
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b, bias=False), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(512, 10, bias=False))


def vgg11(share: float = 0.25) -> nn.Module:
    """VGG11 with BatchNorm and without biases, every width times `share`."""
    layers, channels = [], 3
    for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        if not width:
            layers.append(nn.MaxPool2d(2))
            continue
        own = int(width * share)
        layers += [nn.Conv2d(channels, own, 3, padding=1, bias=False), nn.BatchNorm2d(own), nn.ReLU()]
        channels = own
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 10, bias=False))


@dataclass(frozen=True)
class Study:
    """A network, its data, and how its members are trained."""

    title: str
    data: str
    make: Callable[[], nn.Module]
    samples: int | None
    epochs: int
    lr: float
    weight_decay: float = 0.0
    batch: int = 128


STUDIES = {
    "mlp": Study("MLP 784-512³-10, MNIST", "mnist", mlp, None, 8, 0.01, batch=256),
    "lenet": Study("LeNet, CIFAR-10", "cifar10", LeNet, 15_000, 12, 0.02, 5e-4, 64),
    "vgg11": Study("VGG11 x 1/4, BatchNorm, CIFAR-10", "cifar10", vgg11, 15_000, 6, 0.05, 5e-4),
    "resnet8": Study("ResNet8, BatchNorm, CIFAR-10", "cifar10", ResNet, 15_000, 6, 0.1, 5e-4),
    "vit": Study("ViT 64 x 4, CIFAR-10", "cifar10", ViT, 15_000, 8, 0.05, 0.0, 64),
}


@dataclass(frozen=True)
class Row:
    network: str
    seed: int
    members: int
    method: str
    recovery: str
    samples: int
    accuracy: float
    seconds: float
    passes: int = 0

    @property
    def key(self) -> tuple:
        return self.network, self.seed, self.members, self.method, self.recovery, self.samples


class Book:
    """The rows of one network: read at the start, appended one by one."""

    def __init__(self, folder: Path, network: str, cache: Path):
        self.cache = cache
        self.path = folder / f"{network}.jsonl"
        self.rows = read_rows(self.path)
        self.keys = {row.key for row in self.rows}

    def has(self, *key) -> bool:
        return key in self.keys

    def add(self, row: Row) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            trained = {"members_trained_at": trained_at(self.cache, row.network, 100 * row.seed)}
            file.write(json.dumps(asdict(row) | trained | provenance()) + "\n")
        self.rows.append(row)
        self.keys.add(row.key)
        print(
            f"{row.network:8} seed {row.seed} k={row.members} {row.method:18} {row.recovery:10} {row.samples:5} "
            f"{100 * row.accuracy:6.2f} % {row.seconds:7.1f} s",
            flush=True,
        )


def read_rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    names = Row.__dataclass_fields__
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Row(**{name: line[name] for name in names}) for line in lines]


def hardware(folder: Path) -> str:
    """Which machine, how many threads and which commits the rows were made on, network by network."""
    said = []
    for path in sorted(folder.glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        own = [line["hardware"] for line in lines]
        threads = " or ".join(sorted({str(h["threads"]) for h in own}))
        commits = ", ".join(sorted({line["commit"] for line in lines}))
        trained = ", ".join(sorted({line.get("members_trained_at", "the same") for line in lines}))
        said.append(
            f"{path.stem}: {own[0]['cpu']}, {own[0]['cores']} cores, threads {threads}, rows of commit {commits}, "
            f"members of {trained}"
        )
    return "; ".join(said) if said else "no rows yet"


def accuracy(network: nn.Module, images: Images) -> float:
    return ng.evaluate(network, images.test.batches(500)).accuracy


def train(study: Study, network: str, seed: int, images: Images, cache: Path) -> nn.Module:
    path = member_path(cache, network, seed)
    torch.manual_seed(seed)
    model = study.make()
    if path.exists():
        model.load_state_dict(torch.load(path))
        return model.eval()
    schedule = [(0.5, study.lr), (0.3, study.lr / 5), (0.2, study.lr / 25)]
    for share, lr in schedule:
        model = ng.finetune(
            model,
            images.train.batches(study.batch, shuffle=True),
            epochs=max(1, round(share * study.epochs)),
            lr=lr,
            weight_decay=study.weight_decay,
            seed=seed,
            progress=False,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(provenance()), encoding="utf-8")
    torch.save(model.state_dict(), path)
    return model.eval()


@cache
def loaded(source: str, samples: int | None) -> Images:
    return load_images(source, samples=samples)


def member_path(cache: Path, network: str, seed: int) -> Path:
    return cache / f"{network}-{seed}.pt"


def trained_at(cache: Path, network: str, seed: int) -> str:
    """The commit that trained a member of the cache."""
    found = member_path(cache, network, seed).with_suffix(".json")
    return str(json.loads(found.read_text(encoding="utf-8"))["commit"]) if found.exists() else "unknown"


def recovered(recovery: str, fused, plan, members, batches) -> nn.Module:
    if recovery == "batch_norm":
        return ng.reestimate_batch_norm(fused, batches)
    if recovery == "repair":
        return ng.repair(fused, plan, members, batches)
    if recovery == "repair without data":
        return ng.repair(fused, plan, members)
    if recovery == "refit to the plain mean":
        return ng.refit(fused, plan, members, batches, agree=False)
    return ng.refit(fused, plan, members, batches) if recovery == "refit" else fused


def study_one(name: str, seed: int, counts: list[int], images: Images, book: Book, cache: Path) -> None:
    study = STUDIES[name]
    pool = images.train.images[torch.randperm(len(images.train), generator=torch.Generator().manual_seed(seed))]
    members: list[nn.Module] = []
    for m in range(max(counts)):
        started = time.perf_counter()
        members.append(train(study, name, 100 * seed + m, images, cache))
        if not book.has(name, seed, 1, f"member {m}", "bare", 0):
            score = accuracy(members[-1], images)
            book.add(Row(name, seed, 1, f"member {m}", "bare", 0, score, time.perf_counter() - started))
    for count in counts:
        chosen = members[:count]
        if not book.has(name, seed, count, "ensemble", "bare", 0):
            book.add(Row(name, seed, count, "ensemble", "bare", 0, accuracy(ng.Ensemble(chosen), images), 0.0))
        start: Start | None = None
        for method, recovery, samples in wanted(members[0], count):
            if not book.has(name, seed, count, method, recovery, samples):
                if start is None or start.method != method:
                    start = Start.of(method, chosen, pool, seed)
                book.add(measured(name, seed, start, recovery, samples, pool, images))


def wanted(member: nn.Module, count: int) -> Iterator[tuple[str, str, int]]:
    """Method, recovery and calibration images of every row."""
    normed = any(isinstance(m, nn.BatchNorm2d) for m in member.modules())
    for method in (*METHODS, CONTROL):
        for recovery in RECOVERIES:
            possible = {"batch_norm": normed, "refit to the plain mean": method in MERGING}
            if possible.get(recovery, True):
                yield method, recovery, 0 if recovery == "bare" else CALIBRATION
        if normed:
            yield method, "repair without data", 0
        for samples in CURVE if count == 2 and method == "transplant" else (FEW,):
            yield method, "refit", samples


@dataclass(frozen=True, eq=False)
class Start:
    """A fused network as it comes, and how long it took: the same for every recovery."""

    method: str
    members: list[nn.Module]
    plan: ng.FusionPlan
    fused: nn.Module
    seconds: float

    @classmethod
    def of(cls, method: str, members: list[nn.Module], pool: Tensor, seed: int) -> "Start":
        started = time.perf_counter()
        options = {"method": method}
        if method == CONTROL:
            k = len(members)
            options = {"method": "transplant", "quota": [1.0] + [0.0] * (k - 1), "weights": [1 / k] * k}
        plan = ng.plan(members, pool[:2], **options, seed=seed)
        return cls(method, members, plan, ng.apply(plan, members), time.perf_counter() - started)


def measured(name: str, seed: int, start: Start, recovery: str, samples: int, pool: Tensor, images: Images) -> Row:
    batches = [pool[first : min(samples, first + 500)] for first in range(0, samples, 500)]
    started = time.perf_counter()
    result = recovered(recovery, start.fused, start.plan, start.members, batches)
    seconds = start.seconds + time.perf_counter() - started
    report = ng.recovery_report(result)
    passes = report.passes if report else 0
    score = accuracy(result, images)
    return Row(name, seed, len(start.members), start.method, recovery, samples, score, seconds, passes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "recovery")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "recovery")
    parser.add_argument("--networks", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--members", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="write docs/recovery.md and stop")
    parser.add_argument("--train", action="store_true", help="train the members and stop")
    asked = parser.parse_args()
    if asked.table:
        from recovery_table import write_table

        titles = {name: study.title for name, study in STUDIES.items()}
        rows = {name: read_rows(asked.results / f"{name}.jsonl") for name in STUDIES}
        spent = {name: sum(r.seconds for r in found if r.members > 1) for name, found in rows.items() if found}
        write_table(rows, titles, ROOT / "docs", spent, hardware(asked.results))
        return
    torch.set_num_threads(asked.threads)
    for seed in asked.seeds:
        for name in asked.networks:
            images = loaded(str(asked.data / STUDIES[name].data), STUDIES[name].samples)
            if asked.train:
                for m in range(max(asked.members)):
                    train(STUDIES[name], name, 100 * seed + m, images, asked.cache)
                continue
            study_one(name, seed, asked.members, images, Book(asked.results, name, asked.cache), asked.cache)


if __name__ == "__main__":
    main()
