import pytest
from tests.experiments.reports.plausible import labels, measured, study

from neurograft.errors import InputError
from neurograft_experiments.reports.panels import panels_of
from neurograft_experiments.reports.results import Which, collect
from neurograft_experiments.reports.settings import named


def test_rows_are_grouped_over_seeds():
    expected, rows = study(seeds=3, networks=("mlp", "lenet"))
    found = collect(expected, rows)
    assert [dict(setting)["network"] for setting in found.settings] == ["mlp", "lenet"]
    assert found.varying == ("network",)
    assert all(sorted(group.rows) == [0, 1, 2] and not group.missing for group in found)
    group = found.find(found.settings[1], Which("transplant", "refit", "distill"))
    assert [row["network"] for row in group.rows.values()] == ["lenet"] * 3
    assert [row["key"] for row in group.rows.values()] == [
        of["key"] for of in expected if of["key"] in rows and _is(of)
    ]


def _is(of):
    return (of["network"], of["row"], of["recovery"], of["tuning"]) == ("lenet", "transplant", "refit", "distill")


def test_missing_rows_keep_their_place():
    first, second = labels("transplant"), labels("transplant", seed=1)
    other = labels("average")
    found = collect([first, second, other], {first["key"]: measured(first, 0.9)}, {other["key"]: "out of memory"})
    transplant, average = found
    assert (sorted(transplant.rows), transplant.missing) == ([0], {1: "not run"})
    assert (average.rows, average.missing) == ({}, {0: "out of memory"})
    assert found.missing == 2


def test_two_trials_of_one_name_are_refused():
    first = labels("transplant")
    with pytest.raises(
        InputError, match="two trials are both called 'transplant', mlp, mnist, 2 members, seed 0; give"
    ):
        collect([first, {**first, "key": "another"}], {})


def test_the_study_says_what_a_shared_row_is_called():
    first = labels("balanced transplant")
    found = collect([first], {first["key"]: measured(labels("transplant"), 0.9)})
    (group,) = found
    assert group.rows[0]["row"] == "balanced transplant"


def test_a_varied_quantity_is_the_axis_of_a_panel_and_the_rest_are_panels():
    varied = [{"members.count": k, "network.width": w} for w in (64, 8) for k in (16, 2)]
    expected, rows = [], {}
    for at in varied:
        of = labels("transplant", members=at["members.count"], varied=at)
        expected.append(of)
        rows[of["key"]] = measured(of, 0.9)
    found = collect(expected, rows)
    assert found.varying == ("members", "network.width")
    narrow, wide = sorted(panels_of(found, "network.width"), key=lambda panel: panel.title)
    assert (narrow.title, narrow.ticks, narrow.x_label) == ("16 members", ("8", "64"), "width")
    assert wide.title == "2 members"
    assert [panel.ticks for panel in panels_of(found, "members.count")] == [("2", "16")] * 2
    assert len(panels_of(found, None)) == 4
    assert named(found.settings[0]) == "mlp, mnist, 16 members, width 64"


def test_of_two_names_for_one_thing_the_first_is_the_panel():
    expected = [labels("a", network=n, data=d) for n, d in (("mlp", "mnist"), ("vgg11", "cifar10"))]
    assert collect(expected, {}).varying == ("network",)
