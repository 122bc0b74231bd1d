import math

import pytest
from tests.experiments.reports.plausible import labels, measured

from neurograft.errors import InputError
from neurograft_experiments.reports.measures import Summary, difference, summary
from neurograft_experiments.reports.results import Which, collect


def test_mean_and_sample_deviation():
    figure = Summary({0: 0.90, 1: 0.94, 2: 0.95})
    assert figure.mean == pytest.approx(0.93)
    assert figure.deviation == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.02**2) / 2))
    assert math.isnan(Summary({0: 0.9}).deviation)
    assert math.isnan(Summary({}).mean)


def test_noise_over_seeds_is_that_of_the_paired_differences():
    one, other = Summary({0: 0.50, 1: 0.70, 2: 0.90}), Summary({2: 0.80, 1: 0.60, 0: 0.40, 3: 0.0})
    found = difference(one, other)
    assert (found.mean, found.noise, found.seeds) == (pytest.approx(0.1), pytest.approx(0.0, abs=1e-12), 3)
    assert found.sign == 1

    found = difference(Summary({0: 0.1, 1: 0.2, 2: 0.6}), Summary({0: 0.0, 1: 0.0, 2: 0.0}))
    # mean 0.3, deviation 0.264575, Student's t for two degrees of freedom 4.30265
    assert found.noise == pytest.approx(4.30265 * 0.264575 / math.sqrt(3), rel=1e-4)
    assert found.sign == 0


def test_noise_of_the_test_set_shrinks_with_images_and_seeds():
    one, other = (Summary(dict.fromkeys(range(4), share), 100) for share in (0.8, 0.5))
    assert difference(one, other).noise == pytest.approx(2 * math.sqrt((0.8 * 0.2 + 0.5 * 0.5) / 400))
    assert difference(one, other).sign == 1
    close = Summary(dict.fromkeys(range(4), 0.46), 100)
    assert difference(other, close).sign == 0


def test_one_seed_has_the_noise_of_two_equal_test_sets():
    found = difference(Summary({0: 0.9}, 997), Summary({0: 0.9}, 997))
    assert found.noise == pytest.approx(2 * math.sqrt(2 * 0.9 * 0.1 / 997))


def test_figures_without_a_common_seed_have_no_difference():
    assert difference(Summary({0: 1.0}), Summary({1: 1.0})) is None


def test_epochs_until_validation_reaches_the_best_member():
    rows = {}
    best, quick, never = labels("best member"), labels("quick", tuning="finetune"), labels("never", tuning="finetune")
    rows[best["key"]] = measured(best, 0.9, validation=0.8)
    rows[quick["key"]] = measured(quick, 0.9, curve=[0.3, 0.7, 0.8, 0.9])
    rows[never["key"]] = measured(never, 0.9, curve=[0.3, 0.7, 0.75])
    found = collect([best, quick, never], rows)
    _, first, second = found
    assert summary(found, first, "epochs").mean == 2
    assert summary(found, second, "epochs").mean == 3
    assert summary(found, first, "seconds.tune").mean == 9
    assert summary(found, first, split="validation").samples == 1000


def test_a_measure_that_rows_do_not_have():
    of = labels("transplant")
    found = collect([of], {of["key"]: measured(of, 0.9)})
    with pytest.raises(InputError, match=r"rows of 'transplant' have no number 'memory.peak' \(found None\)"):
        summary(found, found.find(found.settings[0], Which("transplant")), "memory.peak")
