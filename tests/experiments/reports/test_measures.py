import math

import pytest
from tests.experiments.reports.plausible import labels, measured

from neurograft.errors import InputError
from neurograft_experiments.reports.results import Which, collect


def results_of(samples=10000, **accuracies):
    """Rows by name, each with its accuracies by seed; and their groups."""
    expected, rows = [], {}
    for name, values in accuracies.items():
        for seed, accuracy in values.items():
            of = labels(name, seed=seed)
            expected.append(of)
            rows[of["key"]] = measured(of, accuracy, samples=samples)
    found = collect(expected, rows)
    return found, {group.which.row: group for group in found}


def difference(samples=10**9, **accuracies):
    found, groups = results_of(samples, **accuracies)
    (gap,) = found.differences([tuple(groups.values())])
    return gap


def test_mean_and_sample_deviation():
    found, groups = results_of(a={0: 0.90, 1: 0.94, 2: 0.95}, b={0: 0.9})
    figure = found.figure(groups["a"])
    assert figure.mean == pytest.approx(0.93)
    assert figure.deviation == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.02**2) / 2))
    assert math.isnan(found.figure(groups["b"]).deviation)
    assert not found.figure(None)


def test_noise_over_seeds_is_that_of_the_paired_differences():
    found = difference(one={0: 0.50, 1: 0.70, 2: 0.90}, other={2: 0.80, 1: 0.60, 0: 0.40, 3: 0.0})
    assert (found.mean, found.noise) == (pytest.approx(0.1), pytest.approx(0.0, abs=1e-4))
    assert found.sign == 1

    found = difference(one={0: 0.1, 1: 0.2, 2: 0.6}, other={0: 0.0, 1: 0.0, 2: 0.0})
    # mean 0.3, deviation 0.264575, Student's t for two degrees of freedom 4.30265
    assert found.noise == pytest.approx(4.30265 * 0.264575 / math.sqrt(3), rel=1e-4)
    assert found.sign == 0


def test_noise_of_the_test_set_shrinks_with_images_and_seeds():
    one, other, close = (dict.fromkeys(range(4), share) for share in (0.8, 0.5, 0.46))
    found = difference(100, one=one, other=other)
    assert found.noise == pytest.approx(2 * math.sqrt((0.8 * 0.2 + 0.5 * 0.5) / 400))
    assert found.sign == 1
    assert difference(100, one=other, other=close).sign == 0


def test_one_seed_has_the_noise_of_two_equal_test_sets():
    assert difference(997, one={0: 0.9}, other={0: 0.9}).noise == pytest.approx(2 * math.sqrt(2 * 0.9 * 0.1 / 997))


def test_figures_without_a_common_seed_have_no_difference():
    assert difference(one={0: 1.0}, other={1: 1.0}) is None


def test_against_a_number_there_is_only_the_noise_over_seeds():
    found, groups = results_of(a={0: 0.1, 1: 0.2, 2: 0.6})
    (gap,) = found.differences([(groups["a"], 0.0)], "seconds.fuse")
    assert (gap.mean, gap.noise) == (pytest.approx(0.1), pytest.approx(0.0, abs=1e-12))
    (gap,) = found.differences([(groups["a"], 0.2)])
    assert gap.noise == pytest.approx(4.30265 * 0.264575 / math.sqrt(3), rel=1e-4)


def test_epochs_until_validation_reaches_the_best_member():
    rows = {}
    best, quick, never = labels("best member"), labels("quick", tuning="finetune"), labels("never", tuning="finetune")
    rows[best["key"]] = measured(best, 0.9, validation=0.8)
    rows[quick["key"]] = measured(quick, 0.9, curve=[0.3, 0.7, 0.8, 0.9])
    rows[never["key"]] = measured(never, 0.9, curve=[0.3, 0.7, 0.75])
    found = collect([best, quick, never], rows)
    _, first, second = found
    assert found.figure(first, "epochs").mean == 2
    assert found.figure(second, "epochs").mean == 3
    assert found.figure(first, "seconds.tune").mean == 9
    assert found.figure(first, "validation").mean == pytest.approx(0.9)


def test_a_measure_that_rows_do_not_have():
    of = labels("transplant")
    found = collect([of], {of["key"]: measured(of, 0.9)})
    with pytest.raises(InputError, match="the rows of 'transplant' have no number 'memory.peak'"):
        found.figure(found.find(found.settings[0], Which("transplant")), "memory.peak")
