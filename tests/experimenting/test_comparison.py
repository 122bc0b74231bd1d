import pytest
import torch

from neurograft.evaluating.ensemble import Ensemble
from neurograft.evaluating.evaluation import evaluate
from neurograft.experimenting.comparison import BEST, CONTINUE, ENSEMBLE, Budget, compare, noise
from neurograft.experimenting.data import load_images
from neurograft.experimenting.networks import digits_mlp

METHODS = ("average", "transplant")
BUDGET = Budget(members=2, member_epochs=3, recovery_epochs=2, seed=5)


@pytest.fixture(scope="module")
def images():
    return load_images("digits")


@pytest.fixture(scope="module")
def comparison(images):
    return compare(digits_mlp, images, BUDGET, methods=METHODS, tick=lambda what: None)


def test_every_row_of_an_honest_comparison_is_there(comparison):
    rows = [(outcome.row, outcome.recovery) for outcome in comparison.outcomes]
    assert rows == [
        ("member 0", "none"),
        ("member 1", "none"),
        (BEST, "none"),
        (ENSEMBLE, "none"),
        (CONTINUE, "finetune"),
        (CONTINUE, "distill"),
        *((method, recovery) for method in METHODS for recovery in ("none", "refit", "finetune", "distill")),
    ]


def test_the_best_member_is_the_one_validation_prefers(comparison):
    members = [comparison.find(f"member {number}", "none") for number in range(2)]
    best = max(members, key=lambda outcome: (outcome.validation.accuracy, -outcome.validation.loss))
    assert comparison.find(BEST, "none").test.accuracy == best.test.accuracy


def test_rows_are_what_they_say(comparison, images):
    test = images.test.batches()
    ensemble = evaluate(Ensemble(comparison.members), test)
    assert comparison.find(ENSEMBLE, "none").test.accuracy == ensemble.accuracy
    for method in METHODS:
        assert comparison.find(method, "none").test.accuracy == evaluate(comparison.fused[method], test).accuracy


def test_the_same_budget_for_every_start(comparison):
    lengths = {len(o.curve) for o in comparison.outcomes if o.recovery in ("finetune", "distill")}
    assert lengths == {BUDGET.recovery_epochs + 1}


def test_validation_chose_the_epoch(comparison):
    for outcome in comparison.outcomes:
        assert outcome.curve[outcome.epoch] == max(outcome.curve) == outcome.validation.accuracy


def test_recovery_starts_from_the_fused_network(comparison):
    for method in METHODS:
        at_once = comparison.find(method, "none").validation.accuracy
        assert comparison.find(method, "finetune").curve[0] == at_once
        assert comparison.find(method, "distill").curve[0] == at_once


def test_same_seed_same_figures_other_seed_others(images):
    def figures(seed):
        budget = Budget(members=2, member_epochs=1, recovery_epochs=1, seed=seed)
        torch.rand(seed + 1)
        found = compare(digits_mlp, images, budget, methods=("average",), tick=lambda what: None)
        return [(o.row, o.recovery, o.curve, o.test.accuracy, o.test.loss) for o in found.outcomes]

    assert figures(1) == figures(1)
    assert figures(1) != figures(2)


def test_noise_shrinks_with_the_root_of_the_samples():
    assert noise(0.9, 400) == pytest.approx(noise(0.9, 100) / 2)
