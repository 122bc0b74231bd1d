import copy

import pytest
import torch

import neurograft as ng
from neurograft.advising.advice import advise
from neurograft.advising.page import advice_document
from neurograft.advising.search import epochs_in_all, rounds_of
from neurograft.errors import OptionError
from neurograft.evaluating.ensemble import Ensemble
from neurograft.reporting.document import html_page
from neurograft_experiments.data import Split, load_images
from neurograft_experiments.networks import digits_mlp


class Once:
    """Batches that count how often they are gone through."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


@pytest.fixture(scope="module")
def splits(digits):
    return digits.train.batches(32, shuffle=True), digits.validation.batches(), digits.test.batches()


@pytest.fixture(scope="module")
def converged(splits):
    """Two members that have seen the same images: on a task so easy, training on is as good as any fusion."""
    return [ng.finetune(digits_mlp(), splits[0], seed=seed, epochs=20, lr=0.03) for seed in (1, 2)]


@pytest.fixture(scope="module")
def related(digits, splits):
    """Four members from one ancestor, each trained further on its own quarter of the images."""
    torch.manual_seed(0)
    ancestor = ng.finetune(digits_mlp(), splits[0], seed=0, epochs=2, lr=0.03)
    parts = [Split(digits.train.images[n::4], digits.train.labels[n::4]).batches(16, shuffle=True) for n in range(4)]
    return [ng.finetune(ancestor, part, seed=n, epochs=10, lr=0.05) for n, part in enumerate(parts)]


@pytest.fixture(scope="module")
def refusal(converged, splits):
    train, validation, test = splits
    return advise(converged, train, validation, test, epochs=3, methods=["average", "transplant"], lr=[0.01, 0.03])


def test_converged_members_of_an_easy_task_are_not_worth_fusing(refusal, converged, splits):
    assert not refusal.fuse
    assert refusal.verdict.startswith("Do not fuse: ")
    assert refusal.recipe.start == "best member"
    kept = ng.evaluate(refusal.network, splits[1]).accuracy
    assert kept >= max(ng.evaluate(member, splits[1]).accuracy for member in converged)


def test_members_of_one_ancestor_that_saw_different_images_are_worth_fusing_where_nobody_can_train(related, splits):
    train, validation, test = splits
    advice = advise(related, train, validation, test, epochs=0, methods=["average", "transplant"], recoveries=["none"])
    assert advice.fuse
    assert advice.recipe.name == "average, as it is"
    assert advice.verdict.startswith("Fuse: average, as it is")
    best = max(ng.evaluate(member, test).accuracy for member in related)
    assert ng.evaluate(advice.network, test).accuracy > best
    assert advice.contenders[0].ahead.sign == 0
    rival = next(contender for contender in advice.contenders if contender.rival)
    assert rival.ahead.points > rival.ahead.noise


def test_every_rival_had_the_whole_budget(refusal):
    names = [contender.name.partition(" (")[0] for contender in refusal.contenders]
    for name in ("best member, as it is", "best member, fine-tuned", "best member, distilled", "ensemble"):
        assert name in names
    trained = [c.candidate for c in refusal.contenders if c.candidate is not None and c.candidate.recipe.lr]
    assert {candidate.epochs for candidate in trained if not candidate.recipe.fuses} == {3}
    assert all(len(candidate.curve) == candidate.epochs + 1 for candidate in refusal.candidates)


def test_the_search_costs_what_it_says(refusal):
    # 2 methods x bare and refitted x 2 tunings x 2 learning rates, and 2 x 2 rivals of which one per tuning goes on
    assert refusal.searched == epochs_in_all(16, 2, 3) + 2 * rounds_of(3)[0] == (16 + 4) * 1 + (6 + 2) * 2


def test_the_test_samples_are_read_once_per_network_and_change_nothing(converged, splits):
    train, validation, test = splits
    counted = Once(list(test))
    found = advise(converged, train, validation, counted, epochs=1, methods=["transplant"], lr=0.03)
    assert counted.passes == len(found.contenders)
    without = advise(converged, train, validation, epochs=1, methods=["transplant"], lr=0.03)
    assert (without.recipe, without.fuse) == (found.recipe, found.fuse)
    assert [c.accuracy for c in without.contenders] == [c.accuracy for c in found.contenders]
    assert all(contender.test is None for contender in without.contenders)
    for contender, network in zip(found.contenders, [found.network], strict=False):
        assert contender.test == pytest.approx(ng.evaluate(network, test).accuracy)


def test_the_ensemble_is_the_members_mean(refusal, converged, splits):
    ensemble = next(contender for contender in refusal.contenders if contender.candidate is None)
    assert ensemble.accuracy == pytest.approx(ng.evaluate(Ensemble(converged), splits[1]).accuracy)


def test_members_stay_as_they_were(converged, splits):
    before = [copy.deepcopy(member.state_dict()) for member in converged]
    advise(converged, *splits[:2], epochs=1, methods=["average"], recoveries=["none"], lr=0.03)
    for member, state in zip(converged, before, strict=True):
        torch.testing.assert_close(member.state_dict(), state, rtol=0, atol=0)


def test_a_method_that_cannot_fuse_them_says_why(splits):
    from neurograft_experiments.networks import MLP

    widths = [MLP((1, 8, 8), 10, width) for width in (8, 12)]
    found = advise(widths, *splits[:2], epochs=0, methods=["average", "transplant"], recoveries=["none"])
    assert list(found.refused) == ["average"]
    assert "average cannot fuse these members: " in html_page(advice_document(found, {}))


def test_training_that_diverges_is_out_of_the_race(converged, splits):
    found = advise(converged, *splits[:2], epochs=1, methods=["average"], recoveries=["none"], lr=1e6)
    assert any(candidate.diverged for candidate in found.candidates)
    assert "diverged" in html_page(advice_document(found, {"command": "neurograft advise"}))
    assert found.recipe.tuning == "none"


def test_text_and_page_say_the_same(refusal):
    text, page = str(refusal), html_page(advice_document(refusal, {"command": "neurograft advise a b"}))
    for words in ("Do not fuse", "best member, distilled", "ensemble"):
        assert words in text
        assert words in page
    assert "neurograft advise a b" in page
    assert "Validation accuracy in % over the epochs of training" in page
    assert "<strong>" in page


def test_minutes_are_turned_into_epochs(converged, splits):
    found = advise(
        converged, *splits[:2], minutes=0.02, methods=["average"], recoveries=["none"], tunings=["finetune"], lr=0.03
    )
    assert found.epochs >= 1
    assert found.searched == epochs_in_all(1, 1, found.epochs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["transplnt"]}, "unknown method 'transplnt'; did you mean 'transplant'"),
        ({"recoveries": ["refitt"]}, "unknown recovery 'refitt'; did you mean 'refit'"),
        ({"tunings": ["distil"]}, "unknown tuning 'distil'; did you mean 'distill'"),
        ({"methods": []}, "must name at least one each"),
        ({"epochs": -1}, "epochs=-1: must be an integer, 0 or more"),
        ({"minutes": 0}, "minutes=0: must be above 0"),
        ({"lr": (0.1, -1)}, "learning rates above 0"),
    ],
)
def test_settings_that_cannot_be_meant(converged, splits, options, message):
    with pytest.raises(OptionError, match=message):
        advise(converged, *splits[:2], **options)
