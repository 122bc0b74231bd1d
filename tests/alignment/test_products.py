"""Products of what lies inside units, and the orders that fit best, against brute force."""

from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from neurograft.alignment.products import Insides, Products, ProductSum


def brute(blocks: dict[tuple[str, ...], Tensor], sizes: dict[str, int]) -> float:
    """The largest summed product over all orders of all groups inside one pair of units."""
    best = -torch.inf
    for orders in product(*(permutations(range(n)) for n in sizes.values())):
        chosen = dict(zip(sizes, orders, strict=True))
        total = 0.0
        for key, cells in blocks.items():
            for target in product(*(range(sizes[name]) for name in key)):
                member = [chosen[name][i] for name, i in zip(key, target, strict=True)]
                total += float(cells[(*member, *target)])
        best = max(best, total)
    return best


@pytest.mark.parametrize("seed", range(5))
def test_the_best_orders_inside_pairs_against_brute_force(seed: int) -> None:
    torch.manual_seed(seed)
    sizes = {"d": 3, "e": 4}
    cells = {("d",): torch.randn(2, 3, 4, 3).double(), ("e",): torch.randn(2, 4, 4, 4).double()}
    found = Insides(cells)
    orders = found.orders(torch.tensor([1, 0]), torch.tensor([0, 3]))
    for s in range(2):
        for t in range(4):
            best = brute({key: x[s, :, t] for key, x in cells.items()}, sizes)
            assert float(found.best[s, t]) == pytest.approx(best)
    assert found.value(torch.tensor([1, 0]), torch.tensor([0, 3]), orders) == pytest.approx(
        float(found.best[1, 0] + found.best[0, 3])
    )


@pytest.mark.parametrize("seed", range(10))
def test_groups_beside_each_other_are_found_in_a_permuted_copy(seed: int) -> None:
    """Queries times channels, and channels alone: the planted orders of both, which are also the best there are."""
    torch.manual_seed(seed)
    both, alone = torch.randn(3, 4, 5, 50).double(), torch.randn(3, 5, 50).double()
    queries, channels = (torch.stack([torch.randperm(n) for _ in range(3)]) for n in (4, 5))
    total = ProductSum([3], [3])
    mixed = torch.stack([both[s][queries[s]][:, channels[s]] for s in range(3)])
    total.add(("q", "d"), both, mixed)
    total.add(("d",), alone, torch.stack([alone[s][channels[s]] for s in range(3)]))
    products = total.products()
    assert products is not None
    assert products.insides is not None
    units = torch.arange(3)
    orders = products.insides.orders(units, units)
    assert torch.equal(orders["q"], queries)
    assert torch.equal(orders["d"], channels)
    torch.testing.assert_close(products.cross.diagonal(), products.member)
    assert products.cross.argmax(0).tolist() == [0, 1, 2]


def test_neurons_of_every_unit_by_itself() -> None:
    own, other = torch.randn(2, 3, 6).double(), torch.randn(2, 3, 6).double()
    total = ProductSum([2, 3], [2, 3])
    total.add((), own, other)
    products = total.products()
    assert products is not None
    torch.testing.assert_close(products.cross, torch.einsum("uif,ujf->uij", own, other))
    expected = (own[:, :, None] - other[:, None]).square().sum(-1)
    torch.testing.assert_close(products.distances("squared"), expected)
    cosine = 1 - torch.nn.functional.cosine_similarity(own[:, :, None], other[:, None], dim=-1)
    torch.testing.assert_close(products.distances("cosine"), cosine)


def test_other_features_count_as_much_as_they_are_scaled() -> None:
    own, other = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    first, second, together = (ProductSum([3], [3]) for _ in range(3))
    first.add((), own, other)
    second.add((), 2 * own, other)
    together.add((), torch.cat([own, own], 1), torch.cat([other, other], 1))
    found, expected = first.plus(second, 0.5).products(), together.products()
    assert isinstance(found, Products)
    assert expected is not None
    torch.testing.assert_close(found.cross, expected.cross)
    assert ProductSum([3], [3]).products() is None
