import pytest
from tests.experiments.reports.plausible import labels, measured

from neurograft.errors import StudyError
from neurograft_experiments.claims import Claim, ClaimSide
from neurograft_experiments.reports.results import collect
from neurograft_experiments.reports.verdicts import findings_table, judge


def results_of(entries):
    """Entries are (row, tuning, where, accuracy, validation); two seeds of each, alike but for a shift of both."""
    expected, rows = [], {}
    for row, tuning, where, accuracy, validation in entries:
        for seed in range(2):
            members = where.get("members", 2)
            varied = {name: value for name, value in where.items() if name != "members"}
            of = labels(row, tuning=tuning, members=members, varied=varied, seed=seed)
            expected.append(of)
            if accuracy is not None:
                shift = 0.01 * seed
                rows[of["key"]] = measured(of, accuracy + shift, validation=validation, curve=[0.1, 0.5, accuracy])
    return collect(expected, rows)


def claim(figure, against, holds_if="above", **more):
    return Claim(text="so it is", source="section 1", figure=figure, against=against, holds_if=holds_if, **more)


TRANSPLANT, BEST = ClaimSide(row="transplant"), ClaimSide(row="best member")


@pytest.mark.parametrize(
    ("gap", "above", "below", "not_above", "not_below", "equal"),
    [(0.05, True, False, False, True, False), (0.001, False, False, True, True, True)],
)
def test_relations(gap, above, below, not_above, not_below, equal):
    found = results_of([("transplant", "none", {}, 0.8 + gap, 0.8), ("best member", "none", {}, 0.8, 0.8)])
    answers = {"above": above, "below": below, "not above": not_above, "not below": not_below, "equal": equal}
    for relation, answer in answers.items():
        verdict = judge(claim(TRANSPLANT, BEST, relation), found)
        assert [finding.holds for finding in verdict.findings] == [answer], relation
        assert verdict.text == ("held" if answer else "did not hold")


def test_the_difference_and_its_noise_are_those_of_the_rows():
    found = results_of([("transplant", "none", {}, 0.85, 0.8), ("best member", "none", {}, 0.8, 0.8)])
    verdict = judge(claim(TRANSPLANT, BEST), found)
    # the seeds' differences are the same; shares 0.855 and 0.805 on 2 x 10,000 images: 2 √(0.280950 / 20000) = 0.0075
    assert verdict.difference_text == "+5.00 ± 0.75 points"


def test_every_setting_is_judged():
    entries = []
    for width, accuracy in ((8, 0.7), (16, 0.9), (32, 0.95), (64, None)):
        where = {"network.width": width}
        entries += [("transplant", "none", where, accuracy, 0.8), ("best member", "none", where, 0.8, 0.8)]
    verdict = judge(claim(TRANSPLANT, BEST), results_of(entries))
    assert [finding.holds for finding in verdict.findings] == [False, True, True, None]
    assert (verdict.state, verdict.text) == ("held in part", "held in 2 of 3 settings; 1 more not measured")
    assert verdict.difference_text == "−10.00 to +15.00 points"
    table = findings_table(results_of(entries), verdict)
    assert table.columns == ("setting", "transplant", "best member", "difference ± noise, points", "above?")
    assert [row[0] for row in table.rows] == ["width 8", "width 16", "width 32", "width 64"]
    assert table.rows[0][1:] == ("70.50 ± 0.71", "80.50 ± 0.71", "−10.00 ± 0.85", "no")
    assert table.rows[3][1:] == ("–", "80.50 ± 0.71", "–", "not measured")


def test_a_field_that_one_side_fixes_is_not_matched():
    entries = [("transplant", "none", {"members": k}, accuracy, 0.8) for k, accuracy in ((2, 0.8), (8, 0.7))]
    few, many = (ClaimSide(row="transplant", where={"members.count": k}) for k in (2, 8))
    verdict = judge(claim(many, few, "below"), results_of(entries))
    assert [finding.holds for finding in verdict.findings] == [True]


def test_validation_chooses_where_a_claim_lets_it():
    entries = [("best member", "none", {"mixing": m}, 0.8, 0.8) for m in (0.2, 0.5)]
    # validation prefers the second although the first has more on the test images
    entries += [("transplant", "none", {"mixing": 0.2}, 0.9, 0.5), ("transplant", "none", {"mixing": 0.5}, 0.85, 0.6)]
    figure, against = (ClaimSide(row=row, best_over="mixing") for row in ("transplant", "best member"))
    (finding,) = judge(claim(figure, against), results_of(entries)).findings
    assert (finding.chosen, finding.difference.mean) == ("0.5", pytest.approx(0.05))


def test_a_number_of_ours_says_what_few_means():
    entries = [("transplant", "finetune", {}, 0.9, 0.9), ("best member", "none", {}, 0.5, 0.5)]
    tuned = ClaimSide(row="transplant", tuning="finetune")
    verdict = judge(claim(tuned, 3, "not above", measure="epochs"), results_of(entries))
    assert (verdict.text, verdict.difference_text) == ("held", "−2.0 ± 0.0 epochs")


def test_what_was_not_measured_is_not_judged():
    verdict = judge(claim(TRANSPLANT, BEST), results_of([("transplant", "none", {}, None, 0.8)]))
    assert (verdict.text, verdict.difference_text) == ("not measured", "–")
    assert judge(claim(ClaimSide(row="zip"), BEST), results_of([])).text == "not measured"


def test_a_rival_that_does_not_vary_is_one_row_under_every_value():
    entries = [("transplant", "none", {"mixing": m}, 0.9, m) for m in (0.2, 0.5)]
    entries += [("best member", "none", {"mixing": m}, 0.8, 0.8) for m in (0.2, 0.5)]
    results = results_of(entries)
    for group in results:
        if group.which.row == "best member":
            for seed, row in group.rows.items():
                row["key"] = f"the same trial of seed {seed}"
    verdict = judge(claim(ClaimSide(row="transplant", best_over="mixing"), BEST), results)
    assert [finding.holds for finding in verdict.findings] == [True]


def test_several_rows_at_once_are_no_rival():
    entries = [("best member", "none", {"members": k}, 0.8, 0.8) for k in (2, 4)]
    entries.append(("transplant", "none", {"members": 2}, 0.9, 0.9))
    figure = ClaimSide(row="transplant", where={"members": 2})
    with pytest.raises(StudyError, match="'best member' stands for several rows at once .*name in its `where`"):
        judge(claim(figure, BEST), results_of(entries))


def test_a_margin_says_how_far_below_still_counts_as_equal():
    found = results_of([("transplant", "none", {}, 0.75, 0.8), ("best member", "none", {}, 0.8, 0.8)])
    assert judge(claim(TRANSPLANT, BEST, "not below"), found).text == "did not hold"
    assert judge(claim(TRANSPLANT, BEST, "not below", margin=0.04), found).text == "did not hold"
    assert judge(claim(TRANSPLANT, BEST, "not below", margin=0.05), found).text == "held"
