import pytest
from tests.experiments.reports.plausible import labels, measured, study

from neurograft_experiments.reports.made import provenance_of
from neurograft_experiments.reports.panels import panels_of
from neurograft_experiments.reports.results import collect
from neurograft_experiments.reports.tables import comparison_table, cost_table, over_table, won_back_table


def table_of(entries, *, samples=10000, missing=(), failures=None):
    """The table of one setting; entries are (row, tuning, accuracies over seeds)."""
    expected, rows = [], {}
    for row, tuning, accuracies in entries:
        for seed, accuracy in enumerate(accuracies):
            of = labels(row, tuning=tuning, seed=seed)
            expected.append(of)
            if (row, tuning, seed) not in missing:
                rows[of["key"]] = measured(of, accuracy, samples=samples)
    gone = {of["key"]: "no memory" for of in expected if of["row"] in (failures or ())}
    results = collect(expected, rows, gone)
    (panel,) = panels_of(results, None)
    return comparison_table(panel)


def line(table, name):
    return next(row[1:] for row in table.rows if row[0] == name)


COMPARED = [
    ("best member", "none", (0.90, 0.90, 0.90)),
    ("ensemble", "none", (0.95, 0.95, 0.95)),
    ("continue the best member", "finetune", (0.92, 0.92, 0.92)),
    ("transplant", "none", (0.70, 0.72, 0.74)),
    ("transplant", "finetune", (0.925, 0.921, 0.917)),
    ("average", "finetune", (0.90, 0.90, 0.90)),
]


def test_cells_have_mean_deviation_and_standing_against_the_rival_of_the_same_budget():
    table = table_of(COMPARED)
    assert table.columns == ("network", "at once", "fine-tuned")
    assert line(table, "best member") == ("90.00 ± 0.00", "–")
    assert line(table, "ensemble") == ("95.00 ± 0.00 ↑", "–")
    assert line(table, "transplant") == ("72.00 ± 2.00 ↓", "92.10 ± 0.40 =")
    assert line(table, "average") == ("–", "90.00 ± 0.00 ↓")
    assert "3 seeds, 10,000 test images" in table.title


def test_what_is_not_distinguishable_from_the_best_single_network_is_bold():
    table = table_of(COMPARED)
    strong = {(table.rows[r][0], table.columns[c]) for r, c in table.strong}
    assert strong == {("transplant", "fine-tuned"), ("continue the best member", "fine-tuned")}


def test_few_test_images_have_no_second_decimal():
    assert line(table_of(COMPARED, samples=400), "transplant")[0] == "72.0 ± 2.0 ↓"


def test_one_seed_has_no_deviation():
    table = table_of([(row, tuning, values[:1]) for row, tuning, values in COMPARED])
    assert line(table, "transplant")[1] == "92.50 ="
    assert "one seed" in table.title


def test_what_is_missing_is_said():
    gone = [("transplant", "finetune", 1), *(("average", "finetune", seed) for seed in range(3))]
    table = table_of(COMPARED, missing=gone)
    assert line(table, "transplant")[1] == "92.10 ± 0.57 = (2 of 3)"
    assert line(table, "average") == ("–", "not run")
    failed = table_of(COMPARED, missing=gone, failures=["average"])
    assert line(failed, "average") == ("–", "failed")
    assert failed.note.endswith("Failed: no memory.")


def test_training_that_diverged_is_marked():
    of, best = labels("transplant", tuning="finetune"), labels("best member")
    rows = {best["key"]: measured(best, 0.9), of["key"]: measured(of, 0.5, tried=[[0.1, None], [1.0, None]])}
    results = collect([best, of], rows)
    (panel,) = panels_of(results, None)
    table = comparison_table(panel)
    assert line(table, "transplant")[-1] == "50.00 †"
    assert "† Training diverged at every learning rate" in table.note


def test_a_table_over_a_varied_quantity_has_a_column_per_value():
    expected, rows = study(varied=tuple({"network.width": width} for width in (64, 16)))
    results = collect(expected, rows)
    (panel,) = panels_of(results, "network.width")
    table = over_table(panel, "finetune")
    assert table.columns == ("width", "16", "64")
    assert [row[0] for row in table.rows][:2] == ["continue the best member", "average"]
    assert all("±" in cell for row in table.rows for cell in row[1:])
    epochs = over_table(panel, "finetune", "epochs")
    assert "=" not in "".join(cell for row in epochs.rows for cell in row)


def test_costs():
    expected, rows = study()
    results = collect(expected, rows)
    (panel,) = panels_of(results, None)
    table = cost_table(panel)
    assert table.columns[3:6] == ("fine-tuning, s", "learning rate", "epochs to best")
    assert line(table, "transplant")[:4] == ("0.1", "0", "9", "0.01")
    assert float(line(table, "transplant")[4]) == pytest.approx(11, abs=3)


def test_where_nothing_is_trained_recoveries_are_columns_and_say_what_they_won_back():
    expected, rows = [], {}
    for row, recovery, accuracies in [
        ("best member", "none", (0.90, 0.80)),
        ("ensemble", "none", (0.95, 0.95)),
        ("transplant", "none", (0.50, 0.85)),
        ("transplant", "repair", (0.40, 0.70)),
        ("transplant", "refit", (0.80, 0.82)),
    ]:
        for seed, accuracy in enumerate(accuracies):
            of = labels(row, recovery=recovery, seed=seed)
            expected.append(of)
            rows[of["key"]] = measured(of, accuracy)
    results = collect(expected, rows)
    (panel,) = panels_of(results, None)
    table = comparison_table(panel)
    assert table.columns == ("network", "as it is", "REPAIR", "refit")
    assert [text.split()[0] for text in line(table, "transplant")] == ["67.50", "55.00", "81.00"]
    # of seed 1 nothing was lost; of seed 0 0.4 were, of which 0.3 came back, and 0.1 more were lost
    assert won_back_table(panel).rows == (("transplant", "-25", "75"),)


def test_computing_time_counts_a_shared_member_once_and_every_step_size():
    def row(keys, members, **seconds):
        entries = [{"key": key} for key in keys]
        return measured(labels("transplant"), 0.9) | {
            "configuration": {"members": entries},
            "seconds": {"members": members, **seconds},
        }

    rows = [
        row("ab", 20.0, fuse=1.0, recover=2.0),  # members a and b took 10 s each
        row("ab", 20.0, fuse=1.0, tune=3.0, search=6.0),
        row("abcd", 40.0, fuse=1.0),
        row("a", 10.0),
        row("", 0.0, tune=5.0),
    ]
    assert provenance_of(rows)["time"] == "56 s of computing"  # 40 + 3 + 6 + 1 + 1 + 5
