"""Every operator against its paper's formula in float64, and what the formula says of order, blocks and depth."""

import pytest
import torch
from tests import operator_references as references
from torch import Tensor, nn

from neurograft.errors import BadWeights, OptionError
from neurograft.operators import OPERATORS, VARIANTS
from neurograft.operators.arcee_fusion import ArceeFusion
from neurograft.operators.block import Block
from neurograft.operators.breadcrumbs import Breadcrumbs
from neurograft.operators.dare import Dare
from neurograft.operators.della import Della
from neurograft.operators.depth import depths
from neurograft.operators.fisher import Fisher
from neurograft.operators.karcher import Karcher
from neurograft.operators.linear import Linear
from neurograft.operators.model_stock import ModelStock
from neurograft.operators.multi_slerp import MultiSlerp
from neurograft.operators.nearswap import NearSwap
from neurograft.operators.nuslerp import NuSlerp
from neurograft.operators.operator import Operator
from neurograft.operators.passthrough import Passthrough
from neurograft.operators.random_numbers import uniform
from neurograft.operators.regmean import RegMean, gram_matrices, input_rows
from neurograft.operators.sce import Sce
from neurograft.operators.settings import Gradient
from neurograft.operators.slerp import Slerp
from neurograft.operators.task_arithmetic import TaskArithmetic
from neurograft.operators.ties import Ties


def block_of(count: int = 3, shape: tuple[int, ...] = (6, 5), seed: int = 0, **fields: object) -> Block:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator, dtype=torch.double)
    members = [base + 0.3 * torch.randn(shape, generator=generator, dtype=torch.double) for _ in range(count)]
    return Block("layers.1.weight", members, (1 / count,) * count, base, **fields)  # type: ignore[arg-type]


def listed(tensors: Tensor | list[Tensor]) -> list:
    return tensors.flatten().tolist() if isinstance(tensors, Tensor) else [listed(tensor) for tensor in tensors]


WEIGHTS, DENSITIES = [0.5, 0.3, -0.4], [0.6, 0.5, 0.7]
B3, B2 = block_of(), block_of(2)
NO_BASE = Block("w", B2.members, (0.5, 0.5))
M3, M2, BASE = listed(list(B3.members)), listed(list(B2.members)), listed(B3.ancestor)
CHANGED = references.moved(listed(B2.ancestor), M2)
CASES = {
    "linear": (Linear(weights=WEIGHTS), B3, references.linear(M3, WEIGHTS, True)),
    "linear as they are": (Linear(weights=WEIGHTS, normalize=False), B3, references.linear(M3, WEIGHTS, False)),
    "task arithmetic": (
        TaskArithmetic(weights=WEIGHTS, scale=0.8),
        B3,
        references.task_arithmetic(M3, BASE, WEIGHTS, 0.8),
    ),
    "task arithmetic, mean": (
        TaskArithmetic(normalize=True),
        B3,
        references.task_arithmetic(M3, BASE, [1 / 3] * 3, 1.0),
    ),
    "ties": (
        Ties(weights=WEIGHTS, density=DENSITIES, scale=1.3),
        B3,
        references.ties(M3, BASE, WEIGHTS, DENSITIES, 1.3, "sum", True),
    ),
    "ties, by count, added": (
        Ties(density=0.4, consensus="count", normalize=False),
        B3,
        references.ties(M3, BASE, [1.0] * 3, [0.4] * 3, 1.0, "count", False),
    ),
    "breadcrumbs": (
        Breadcrumbs(weights=WEIGHTS, density=0.5, gamma=0.1),
        B3,
        references.breadcrumbs(M3, BASE, WEIGHTS, 0.5, 0.1),
    ),
    "sce": (Sce(density=0.4), B3, references.sce(M3, BASE, 0.4)),
    "slerp": (Slerp(t=0.3), NO_BASE, references.slerp(*M2, 0.3)),
    "nuslerp": (NuSlerp(weights=[3, 1]), NO_BASE, references.slerp(*M2, 0.25)),
    "nuslerp of changes": (
        NuSlerp(weights=[3, 1]),
        B2,
        [b + x for b, x in zip(listed(B2.ancestor), references.slerp(*CHANGED, 0.25), strict=True)],
    ),
    "nuslerp along rows": (
        NuSlerp(over="last"),
        NO_BASE,
        [x for a, b in zip(*(m.tolist() for m in B2.members), strict=True) for x in references.slerp(a, b, 0.5)],
    ),
    "multi-slerp": (
        MultiSlerp(weights=[0.5, 0.3, 0.4]),
        Block("w", B3.members, (1 / 3,) * 3),
        references.multi_slerp(M3, [0.5, 0.3, 0.4]),
    ),
    "model stock": (ModelStock(), B3, references.model_stock(M3, BASE)),
    "model stock of rows": (
        ModelStock(over="rows"),
        B3,
        [
            x
            for r in range(6)
            for x in references.model_stock([m[r].tolist() for m in B3.members], B3.ancestor[r].tolist())
        ],
    ),
    "nearswap": (NearSwap(t=0.2), NO_BASE, references.nearswap(*M2, 0.2)),
    "arcee fusion": (
        ArceeFusion(),
        NO_BASE,
        [x for row in references.arcee_fusion(*(m.tolist() for m in B2.members)) for x in row],
    ),
    "passthrough": (Passthrough(member=2, scale=0.5), B3, [0.5 * x for x in M3[2]]),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_is_its_formula(name: str) -> None:
    operator, block, expected = CASES[name]
    found = operator.combine(block)
    assert found.shape == block.members[0].shape
    # arcee's softmax is kept away from 0 by 1e-8, which moves nothing here but which entries are chosen by it
    torch.testing.assert_close(found.flatten(), torch.tensor(expected, dtype=torch.double), rtol=1e-10, atol=1e-10)


def test_the_karcher_mean_is_where_the_tangents_cancel() -> None:
    weights = [0.5, 0.3, 0.2]
    found = Karcher(weights=weights, iterations=200, tolerance=1e-9).combine(Block("w", B3.members, (1 / 3,) * 3))
    length = sum(w * float(m.norm()) for w, m in zip(weights, B3.members, strict=True))
    torch.testing.assert_close(float(found.norm()), length)
    mean, total = found / found.norm(), torch.zeros_like(found)
    for weight, member in zip(weights, B3.members, strict=True):
        unit = member / member.norm()
        cosine = (unit * mean).sum()
        total += weight * torch.acos(cosine) * (unit - cosine * mean) / (unit - cosine * mean).norm()
    assert float(total.norm()) < 1e-8


SYMMETRIC = [
    *(Linear(), TaskArithmetic(), Ties(), Breadcrumbs(), Sce(density=0.5), MultiSlerp(), Karcher(), ModelStock()),
    *(Ties(consensus="count"), Breadcrumbs(consensus="sum"), ModelStock(over="rows")),
]


@pytest.mark.parametrize("operator", SYMMETRIC, ids=str)
def test_the_order_of_members_does_not_matter(operator: Operator) -> None:
    block = B3 if operator.needs_base else Block("w", B3.members, (1 / 3,) * 3)
    other = Block("w", [B3.members[m] for m in (2, 0, 1)], block.weights, block.base)
    torch.testing.assert_close(operator.combine(other), operator.combine(block), rtol=1e-12, atol=1e-12)


ROW_LOCAL = [
    *(Linear(weights=WEIGHTS), TaskArithmetic(), Dare(density=0.4), Dare(consensus="sum"), Della(), Passthrough()),
    NearSwap(),
]


@pytest.mark.parametrize("operator", ROW_LOCAL, ids=str)
def test_rows_by_themselves_are_the_rows_of_the_whole(operator: Operator) -> None:
    block = block_of(operator.count or 3, (40, 7), seed=3)
    assert not operator.sees_whole
    whole = operator.combine(block)
    for start, stop in ((0, 13), (13, 14), (14, 40)):
        rows = [member[start:stop] for member in block.members]
        part = operator.combine(Block(block.name, rows, block.weights, block.ancestor[start:stop], start=start))
        assert torch.equal(part, whole[start:stop])


@pytest.mark.parametrize(
    "operator", [Dare(density=0.3), Della(density=0.3, epsilon=0.2, consensus="none", normalize=False)]
)
def test_random_operators_keep_the_expectation_and_so_many_entries(operator: Operator) -> None:
    block = block_of(1, (150, 200))
    changes = [
        operator.combine(Block(block.name, block.members, (1.0,), block.base, seed=seed)) - block.ancestor
        for seed in range(60)
    ]
    there = torch.stack([change != 0 for change in changes]).double()
    # 1.8 million draws of probability 0.3: four deviations are 0.0014
    assert abs(float(there.mean()) - 0.3) < 1.4e-3
    mean, change = torch.stack(changes).mean(0), block.changes[0]
    # the deviation of one entry's mean is at most |x| √((1−p)/(60 p)), p ≥ 0.1
    assert float(((mean - change) / change.abs()).mean().abs()) < 0.01
    large = change.abs() > change.abs().median(1, keepdim=True).values
    gap = float(there.mean(0)[large].mean() - there.mean(0)[~large].mean())
    assert abs(gap - (0.2 if isinstance(operator, Della) else 0.0)) < 3e-3


def test_norm_and_none_rescale_as_they_say() -> None:
    block = block_of(1, (50, 60))
    change = block.changes[0]
    by_norm = Dare(density=0.3, rescale="norm").combine(block) - block.ancestor
    torch.testing.assert_close(by_norm.abs().sum(), change.abs().sum())
    plain = Dare(density=0.3, rescale="none").combine(block) - block.ancestor
    kept = plain != 0
    torch.testing.assert_close(plain[kept], change[kept])


def test_random_numbers_are_uniform_independent_of_blocks_and_of_their_neighbours() -> None:
    numbers = uniform(torch.Size([1_000_000]), "key", 0, torch.device("cpu")).double()
    assert abs(float(numbers.mean()) - 0.5) < 1.5e-3
    assert abs(float(numbers.var()) - 1 / 12) < 1e-3
    for lag in (1, 2, 1000):
        assert abs(float(torch.corrcoef(torch.stack([numbers[lag:], numbers[:-lag]]))[0, 1])) < 5e-3
    other = uniform(torch.Size([1_000_000]), "other", 0, torch.device("cpu")).double()
    assert abs(float(torch.corrcoef(torch.stack([numbers, other]))[0, 1])) < 5e-3
    assert 0 <= float(numbers.min()) < float(numbers.max()) < 1


def test_fisher_weighs_entries_by_what_outputs_depend_on() -> None:
    members = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])]
    block = Block("w", members, (0.5, 0.5), statistics=[torch.tensor([3.0, 0.0]), torch.tensor([1.0, 4.0])])
    torch.testing.assert_close(Fisher(floor=1e-12).combine(block), torch.tensor([1.5, 6.0]))
    torch.testing.assert_close(Fisher(floor=1e-12, weights=[1, 3]).combine(block), torch.tensor([2.0, 6.0]))


def test_the_fisher_information_of_a_linear_classifier_is_known() -> None:
    # logits W x: (∂ log p / ∂W_ci)² is (1[y = c] − p_c)² x_i², of which p_c (1 − p_c) x_i² is the mean over y
    torch.manual_seed(0)
    network, count = nn.Sequential(nn.Linear(3, 4)).double(), 500
    x = torch.randn(count, 3, dtype=torch.double)
    (found,) = Fisher(samples=count).measured([network], [x], seed=0)
    p = network(x).softmax(-1).detach()
    mean = p * (1 - p)
    variance = p * (1 - p) ** 4 + (1 - p) * p**4 - mean**2
    powers = x.square()[:, None, :]
    deviation = (variance[:, :, None] * powers**2).sum(0).sqrt() / count
    assert bool(((found["0.weight"] - (mean[:, :, None] * powers).mean(0)).abs() < 4 * deviation).all())
    # normal distributions around W x: ε² x_i² with the variance 2 x_i⁴ for a normal ε
    (found,) = Fisher(samples=count, outputs="numbers").measured([network], [x], seed=0)
    expected, deviation = x.square().mean(0), (2 * x**4).sum(0).sqrt() / count
    assert bool(((found["0.weight"] - expected).abs() < 4 * deviation).all())


def test_regmean_gives_what_the_members_give_on_their_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(50, 4, generator=generator, dtype=torch.double) for _ in range(3)]
    members = [torch.randn(2, 4, generator=generator, dtype=torch.double) for _ in range(3)]
    grams = [(x.mT @ x)[None] / len(x) for x in inputs]
    found = RegMean(alpha=1.0).combine(Block("w", members, (1 / 3,) * 3, statistics=grams))
    # the least squares over all rows: no other matrix comes nearer to what members give
    rows, targets = torch.cat(inputs), torch.cat([x @ w.mT for x, w in zip(inputs, members, strict=True)])
    torch.testing.assert_close(found, torch.linalg.lstsq(rows, targets).solution.mT, rtol=1e-4, atol=1e-5)
    # without the off-diagonals each column is a mean weighted by how large its input is
    powers = torch.stack([gram[0].diagonal() for gram in grams])
    mean = (torch.stack(members) * powers[:, None, :]).sum(0) / powers.sum(0)
    torch.testing.assert_close(
        RegMean(alpha=0.0).combine(Block("w", members, (1 / 3,) * 3, statistics=grams)), mean, rtol=1e-4, atol=1e-5
    )


LAYERS = {
    "linear": (nn.Linear(5, 3), torch.randn(2, 4, 5)),
    "conv": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), torch.randn(2, 4, 9, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding="same", padding_mode="reflect"), torch.randn(2, 4, 7, 7)),
    "conv1d": (nn.Conv1d(4, 8, 3, groups=4, stride=2), torch.randn(3, 4, 11)),
    "conv3d": (nn.Conv3d(2, 3, 2), torch.randn(1, 2, 4, 5, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rows_of_inputs_times_weights_are_what_the_layer_computes(name: str) -> None:
    layer, x = LAYERS[name]
    layer, x = layer.double(), x.double()
    rows = input_rows(layer, x)
    groups = rows.shape[0]
    made = rows @ layer.weight.reshape(groups, -1, rows.shape[2]).mT  # (groups, rows, outputs of a group)
    out = layer(x) - (layer.bias if isinstance(layer, nn.Linear) else layer.bias.reshape(-1, *(1,) * (x.dim() - 2)))
    out = out.movedim(-1 if isinstance(layer, nn.Linear) else 1, -1).reshape(-1, layer.weight.shape[0])
    torch.testing.assert_close(made.permute(1, 0, 2).reshape(out.shape), out)
    (gram,) = gram_matrices(nn.Sequential(layer), [x]).values()
    torch.testing.assert_close(gram, rows.mT @ rows / rows.shape[1])


def test_settings_differ_by_pattern_by_member_and_over_the_depth() -> None:
    names = [
        "embed.weight",
        *(f"layers.{i}.{part}.weight" for i in range(3) for part in ("attn", "mlp")),
        "head.weight",
    ]
    deep = depths(names)
    t = {"*": 0.5, "*attn*": Gradient([0, 1]), "*mlp*": Gradient([1, 0])}

    def at(name: str) -> Block:
        return Block(name, [torch.ones(1)] * 2, (0.5, 0.5), depth=deep.get(name, 0.0))

    assert [at(name).value(t, 9.0) for name in names] == [0.5, 0.0, 1.0, 0.5, 0.5, 1.0, 0.0, 0.5]
    each = {"*": [1, Gradient([0, 1])], "layers.2.*": 4, "head.*": [{"*.weight": 7}, 8]}
    assert at("layers.1.mlp.weight").values(each, 9.0) == (1, 0.5)
    assert at("layers.2.mlp.weight").values(each, 9.0) == (4, 4)
    assert at("head.weight").values(each, 9.0) == (7, 8)
    assert at("head.weight").values({"embed.*": 3}, 9.0) == (9.0, 9.0)
    assert Linear(weights=[0, 1]).combine(at("head.weight")) == 1


def test_depth_goes_by_numbered_blocks_or_else_by_modules() -> None:
    resnet = ["conv1.weight", "layer1.0.conv1.weight", "layer1.1.conv1.weight", "layer2.0.conv1.weight", "fc.weight"]
    assert list(depths(resnet).values()) == [0, 0.5, 1]
    both = ["encoder.block.0.w", "encoder.block.1.w", "decoder.block.0.w", "decoder.block.1.w", "decoder.block.2.w"]
    assert list(depths(both).values()) == [0, 1, 0, 0.5, 1]
    assert depths([f"h.{i}.w" for i in range(11)])["h.10.w"] == 1
    assert depths(["h.0.w"]) == {"h.0.w": 1.0}
    assert depths(["0.weight", "0.bias", "2.weight"]) == {"0.weight": 0, "0.bias": 0, "2.weight": 1}
    assert depths(["bias"]) == {"bias": 1.0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ties(density=0), "density is above 0 and at most 1, got 0"),
        (lambda: Ties(density=[0.5, 1.5]), "density is above 0 and at most 1, got 1.5"),
        (lambda: Dare(density={"*": Gradient([0.5, 0])}), "density.* is above 0 and at most 1, got 0"),
        (lambda: Slerp(t=[0, 1]), r"t is one number for all members, got \[0, 1\]; Gradient\(\[0, 1\]\)"),
        (lambda: Slerp(t="half"), "t is a number, a Gradient, or patterns"),
        (lambda: Slerp(t=True), "t is a number, a Gradient, or patterns"),
        (lambda: Linear(weights=[1, float("nan")]), "weights is a number, a Gradient"),
        (lambda: Linear(weights=[1e308, 1e308]), "weights is a number, a Gradient"),  # their sum overflows
        (lambda: Linear(weights=[1, 10**400]), "weights is a number, a Gradient"),
        (lambda: Gradient([]), "a gradient is a list of numbers"),
        (lambda: Gradient([1, "a"]), "a gradient is a list of numbers"),  # type: ignore[list-item]
        (lambda: Ties(densty=0.5), "operator 'ties' has no option 'densty'; did you mean 'density'"),  # type: ignore[call-arg]
        (lambda: Ties(consensus="some"), "consensus='some' is not known"),  # type: ignore[arg-type]
        (lambda: Ties(weights={1: 2}), "patterns of tensor names are texts"),  # type: ignore[dict-item]
        (lambda: Karcher(iterations=0), "iterations is a whole number of at least 1"),
        (lambda: NearSwap(t=0), "t is a number above 0"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(make, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


NAMES = ["stem.weight", "layers.0.weight", "layers.1.weight"]


@pytest.mark.parametrize(
    ("operator", "error", "message"),
    [
        (Slerp(), OptionError, "slerp combines 2 members, got 3"),
        (Ties(weights=[1, 2]), BadWeights, "weights has 2 entries for 3 members"),
        (Ties(density=[0.1, 0.2]), OptionError, "density has 2 entries for 3 members"),
        (Ties(density={"layer.*": 0.1}), OptionError, "density fits no tensor: 'layer.*'; known: layers.0.weight"),
        (Linear(weights=[1, -1, 0]), BadWeights, "stem.weight: the weights .* sum to 0"),
        (Linear(weights=[1, Gradient([0, -1]), 0]), BadWeights, "layers.1.weight: the weights .* sum to 0"),
        (Della(density=0.1), OptionError, "probabilities from -0.05 to 0.25"),
        (Passthrough(member=3), OptionError, "member=3 is no member; there are 3"),
        (Passthrough(member={"layers.*": 0.5}), OptionError, "layers.0.weight: member=0.5 is no member"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_members_is_refused_before_any_work(operator, error, message: str) -> None:
    with pytest.raises(error, match=message):
        operator.check(3, NAMES, depths(NAMES))


def test_every_operator_is_in_the_table_under_its_name() -> None:
    import neurograft as ng

    made = {name: kind for name, kind in OPERATORS.items() if name not in ("mean", "owned")}
    assert all(getattr(ng, kind.__name__) is kind for kind in made.values())
    assert all(isinstance(kind(**options), Operator) for kind, options in VARIANTS.values())


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (0,), (3, 0)], ids=str)
@pytest.mark.parametrize("name", [name for name in OPERATORS if name not in ("mean", "owned")])
def test_scalars_and_tensors_without_entries_are_combined_too(name: str, shape: tuple[int, ...]) -> None:
    kind = OPERATORS[name]
    members = [torch.full(shape, value, dtype=torch.double) for value in (1.5, 2.0)]
    base = torch.ones(shape, dtype=torch.double) if kind.needs_base else None
    found = kind().combine(Block("scale", members, (0.5, 0.5), base))
    assert found.shape == shape
    assert bool(found.isfinite().all())
