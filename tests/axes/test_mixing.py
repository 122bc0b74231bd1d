"""Axes multiplied by sparse, dense and per-unit matrices, against whole matrices written out entry by entry."""

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from neurograft.axes.layout import Factor, Layout, layout_size, resize_layout, sizes_along, terms
from neurograft.axes.maps import Mixing, Pairs, PerUnit
from neurograft.axes.mixing import axis_order, axis_pairs, cell_positions, is_sparse, mix_along, unit_positions
from neurograft.errors import PlanError

MEMBER = {"a": 4, "b": 3, "d": 3, "e": 2}
FUSED = {"a": 5, "b": 2, "d": 3, "e": 2}

Place = tuple[tuple[tuple[int, ...], str | None, int], ...]
"""What a position is: along every factor (its path in the layout, its group) which number."""


def places(layout: Layout, path: tuple[int, ...] = ()) -> Iterator[Place]:
    """Every position of a layout in order."""
    for s, segment in enumerate(layout):
        found: list[Place] = [()]
        for p, part in enumerate(segment):
            here = (*path, s, p)
            options = [((here, part.group, i),) for i in range(part.size)] if isinstance(part, Factor) else list(places(part, here))  # fmt: skip  # noqa: E501
            found = [(*left, *right) for left in found for right in options]
        # an empty product in a sum is one position, told apart by its segment
        yield from [(*place, ((*path, s), None, 0)) for place in found]


def whole_matrix(own: Layout, new: Layout, mixings: dict[str, Mixing]) -> Tensor:
    """The matrix over the whole axis: the product over the factors of their matrices' entries."""
    rows, columns = list(places(new)), list(places(own))
    matrix = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            if [path for path, _, _ in row] == [path for path, _, _ in column]:
                matrix[i, j] = entry(row, column, mixings)
    return matrix


def entry(row: Place, column: Place, mixings: dict[str, Mixing]) -> float:
    value = 1.0
    for (_, group, fused), (_, _, member) in zip(row, column, strict=True):
        mixing = mixings.get(group or "")
        if isinstance(mixing, PerUnit):
            (unit,) = [number for _, other, number in column if other == mixing.outer]
            mixing = mixing.unit(unit)
        if mixing is None:
            value *= fused == member
        else:
            value *= float((mixing if isinstance(mixing, Tensor) else mixing.dense())[fused, member])
    return value


def plain(chance: random.Random, fused: int, member: int) -> Pairs | Tensor:
    kind = chance.choice(("dense", "selection", "weighted"))
    if kind == "dense":
        return torch.rand(fused, member, dtype=torch.float64)
    if kind == "selection":
        n = min(fused, member)
        return Pairs(torch.randperm(fused)[:n], torch.randperm(member)[:n], fused, member)
    weight = torch.rand(member, dtype=torch.float64)
    return Pairs(torch.randint(fused, (member,)), torch.randperm(member), fused, member, weight)


def random_layout(chance: random.Random) -> Layout:
    """Sums of products; d and e stand only beside a, left or right of it, in the same product or a nested sum."""

    def part(name: str | int) -> Factor:
        return Factor(None, name) if isinstance(name, int) else Factor(name, MEMBER[name])

    def segment() -> tuple[Factor | Layout, ...]:
        names: list[str | int | tuple[str | int, ...]] = [chance.choice(("a", "a", "b", 2))]
        if names == ["a"]:
            names += chance.choice((["d"], ["d", "e"], [("d", 2)], [("d", "e", "b")], []))
        names.append(chance.choice((1, 2, "b")))
        chance.shuffle(names)
        return tuple(tuple((part(x),) for x in name) if isinstance(name, tuple) else part(name) for name in names)

    return tuple(segment() for _ in range(chance.choice((1, 1, 2))))


def random_mixings(chance: random.Random) -> dict[str, Mixing]:
    found: dict[str, Mixing] = {}
    for group in (group for group in "abde" if chance.random() < 0.8):
        if group in "ab" or chance.random() < 0.2:
            found[group] = plain(chance, FUSED[group], MEMBER[group])
        elif chance.random() < 0.5:
            orders = [torch.randperm(MEMBER[group]) for _ in range(MEMBER["a"])]
            found[group] = PerUnit.permutations("a", torch.stack(orders))
        else:
            units = [plain(chance, FUSED[group], MEMBER[group]) for _ in range(MEMBER["a"])]
            found[group] = PerUnit.stacked("a", units)
    return found


@pytest.mark.parametrize("seed", range(120))
def test_random_axes(seed: int) -> None:
    torch.manual_seed(seed)
    chance = random.Random(seed)
    own = random_layout(chance)
    mixings = random_mixings(chance)
    fused = resize_layout(own, {group: FUSED[group] for group in mixings})
    matrix = whole_matrix(own, fused, mixings)
    x = torch.randn(3, layout_size(own), 2, dtype=torch.float64)
    expected = torch.einsum("ij,ajb->aib", matrix, x)
    torch.testing.assert_close(mix_along(x, 1, own, fused, mixings), expected)
    torch.testing.assert_close(mix_along(x.transpose(0, 2), 1, own, fused, mixings), expected.transpose(0, 2))
    used = {g: m for g, m in mixings.items() if g in sizes_along(own)}
    if is_sparse(used):
        pairs = axis_pairs(own, fused, used)
        torch.testing.assert_close(pairs.dense().double(), matrix)
        assert bool((pairs.target[1:] >= pairs.target[:-1]).all())


@pytest.mark.parametrize("seed", range(40))
def test_terms_and_units_cover_an_axis_once(seed: int) -> None:
    own = random_layout(random.Random(seed))
    covered = torch.cat([term.positions().flatten() for term in terms(own)])
    assert sorted(covered.tolist()) == list(range(layout_size(own)))
    positions = list(places(own))
    for group, size in sizes_along(own).items():
        found = unit_positions(own, group)
        assert found.shape[0] == size
        for unit, row in enumerate(found.tolist()):
            expected = [i for i, place in enumerate(positions) if any(g == group and n == unit for _, g, n in place)]
            assert sorted(set(row)) == expected
        cells = cell_positions(own, group, ["d", "e"])
        assert sorted(i for places in cells.values() for i in places.flatten().tolist()) == sorted(
            found.flatten().tolist()
        )


def test_an_order_of_its_own_in_every_head() -> None:
    """Two heads of three channels, swapped as wholes and reversed inside the member's second."""
    layout = ((Factor("heads", 2), Factor("channels", 3)),)
    mixings: dict[str, Mixing] = {
        "heads": Pairs.permutation(torch.tensor([1, 0])),
        "channels": PerUnit.permutations("heads", torch.tensor([[0, 1, 2], [2, 1, 0]])),
    }
    assert axis_order(layout, mixings).tolist() == [5, 4, 3, 0, 1, 2]


def test_insides_without_their_units_are_refused() -> None:
    per_unit = PerUnit.permutations("heads", torch.tensor([[0, 1], [1, 0]]))
    alone, three = ((Factor("channels", 2),),), ((Factor("heads", 3), Factor("channels", 2)),)
    with pytest.raises(PlanError, match="the matrix of channels varies with heads, which does not lie beside it"):
        mix_along(torch.zeros(2), 0, alone, alone, {"channels": per_unit})
    with pytest.raises(PlanError, match="heads has 3 units but 2 matrices for their insides"):
        axis_pairs(three, three, {"channels": per_unit})


def test_units_of_unlike_matrices_become_dense() -> None:
    some = Pairs(torch.tensor([0]), torch.tensor([1]), 2, 2)
    assert isinstance(PerUnit.stacked("a", [some, Pairs.permutation(torch.tensor([1, 0]))]).inner, Tensor)
    assert isinstance(PerUnit.stacked("a", [some, some]).inner, Pairs)
