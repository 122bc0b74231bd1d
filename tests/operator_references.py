"""What every operator gives, entry by entry from its paper's formula in float64; nothing of the library is used."""

from collections.abc import Sequence
from math import acos, cos, exp, log, sin, sqrt

Vector = Sequence[float]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def norm(a: Vector) -> float:
    return sqrt(dot(a, a))


def added(vectors: Sequence[Vector], weights: Vector) -> list[float]:
    return [dot(column, weights) for column in zip(*vectors, strict=True)]


def moved(base: Vector, members: Sequence[Vector]) -> list[list[float]]:
    return [[x - b for x, b in zip(member, base, strict=True)] for member in members]


def linear(members: Sequence[Vector], weights: Vector, normalize: bool) -> list[float]:
    total = sum(weights) if normalize else 1.0
    return [value / total for value in added(members, weights)]


def task_arithmetic(members: Sequence[Vector], base: Vector, weights: Vector, scale: float) -> list[float]:
    return [b + scale * change for b, change in zip(base, added(moved(base, members), weights), strict=True)]


def elected(changes: Sequence[Vector], weights: Vector, votes: str, mean: bool) -> list[float]:
    found = []
    for column in zip(*changes, strict=True):
        parts = [w * x for w, x in zip(weights, column, strict=True)]
        total = sum(parts) if votes == "sum" else sum((p > 0) - (p < 0) for p in parts)
        inside = [(p, w) for p, w in zip(parts, weights, strict=True) if (p > 0 if total >= 0 else p < 0)]
        weight = sum(w for _, w in inside)
        found.append(sum(p for p, _ in inside) / (weight if mean and weight else 1.0))
    return found


def trimmed(change: Vector, density: float) -> list[float]:
    count = max(1, int(density * len(change)))
    least = sorted((abs(x) for x in change), reverse=True)[count - 1]
    return [x if abs(x) >= least else 0.0 for x in change]


def ties(
    members: Sequence[Vector], base: Vector, weights: Vector, densities: Vector, scale: float, votes: str, mean: bool
) -> list[float]:
    kept = [trimmed(change, d) for change, d in zip(moved(base, members), densities, strict=True)]
    return [b + scale * x for b, x in zip(base, elected(kept, weights, votes, mean), strict=True)]


def breadcrumbs(members: Sequence[Vector], base: Vector, weights: Vector, density: float, gamma: float) -> list[float]:
    kept = []
    for change in moved(base, members):
        order = sorted(range(len(change)), key=lambda i: abs(change[i]))
        top, count = int(gamma * len(change)), int(density * len(change))
        inside = set(order[max(0, len(change) - count - top) :][:count])
        kept.append([x if i in inside else 0.0 for i, x in enumerate(change)])
    return [b + x for b, x in zip(base, added(kept, weights), strict=True)]


def sce(members: Sequence[Vector], base: Vector, density: float) -> list[float]:
    changes = moved(base, members)
    columns = list(zip(*changes, strict=True))
    means = [sum(c) / len(c) for c in columns]
    variance = [sum((x - m) ** 2 for x in c) / len(c) for c, m in zip(columns, means, strict=True)]
    count = int(density * sum(v > 0 for v in variance))
    least = sorted(variance, reverse=True)[count - 1]
    chosen = [[x if v >= least else 0.0 for x, v in zip(change, variance, strict=True)] for change in changes]
    sizes = [dot(change, change) for change in chosen]
    found = []
    for b, column in zip(base, zip(*chosen, strict=True), strict=True):
        inside = [(x, s) for x, s in zip(column, sizes, strict=True) if (x > 0 if sum(column) >= 0 else x < 0)]
        found.append(b + (sum(x * s for x, s in inside) / sum(s for _, s in inside) if inside else 0.0))
    return found


def slerp(a: Vector, b: Vector, t: float) -> list[float]:
    angle = acos(dot(a, b) / norm(a) / norm(b))
    left, right = sin((1 - t) * angle) / sin(angle), sin(t * angle) / sin(angle)
    return [left * x + right * y for x, y in zip(a, b, strict=True)]


def multi_slerp(members: Sequence[Vector], weights: Vector) -> list[float]:
    weights = [w / sum(weights) for w in weights]
    units = [[x / norm(member) for x in member] for member in members]
    mean = added(units, weights)
    mean = [x / norm(mean) for x in mean]
    tangents = [[x - dot(unit, mean) * m for x, m in zip(unit, mean, strict=True)] for unit in units]
    tangent = added(tangents, weights)
    angle, length = norm(tangent), sum(w * norm(member) for w, member in zip(weights, members, strict=True))
    return [length * (cos(angle) * m + sin(angle) * x / angle) for m, x in zip(mean, tangent, strict=True)]


def model_stock(members: Sequence[Vector], base: Vector) -> list[float]:
    changes, k = moved(base, members), len(members)
    pairs = [(i, j) for i in range(k) for j in range(i)]
    cosine = sum(dot(changes[i], changes[j]) / norm(changes[i]) / norm(changes[j]) for i, j in pairs) / len(pairs)
    t = k * cosine / (1 + (k - 1) * cosine)
    return [t * x + (1 - t) * b for x, b in zip(added(members, [1 / k] * k), base, strict=True)]


def nearswap(a: Vector, b: Vector, t: float) -> list[float]:
    shares = [1.0 if abs(x - y) <= t else t / abs(x - y) for x, y in zip(a, b, strict=True)]
    return [s * y + (1 - s) * x for s, x, y in zip(shares, a, b, strict=True)]


def arcee_fusion(first: Sequence[Vector], second: Sequence[Vector]) -> list[list[float]]:
    scores = []
    for a, b in zip(first, second, strict=True):
        p, q = ([exp(x) / sum(map(exp, row)) for x in row] for row in (b, a))
        divergence = sum(x * log(x / y) for x, y in zip(p, q, strict=True))
        scores.append([abs(y - x) * divergence for x, y in zip(a, b, strict=True)])
    ordered = sorted(score for row in scores for score in row)
    low, middle, high = (ordered[int(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75))
    threshold = middle + 1.5 * (high - low)
    return [
        [y if score >= threshold else x for x, y, score in zip(a, b, row, strict=True)]
        for a, b, row in zip(first, second, scores, strict=True)
    ]
