"""What a paper claims, as a comparison of two figures that result rows can decide."""

from typing import Literal, TypeAlias

from pydantic import Field

from neurograft_experiments.strict import Strict

Scalar: TypeAlias = str | int | float | bool
Relation: TypeAlias = Literal["above", "below", "not above", "not below", "equal"]
TuningKind: TypeAlias = Literal["none", "finetune", "distill"]


class ClaimSide(Strict):
    """Which rows of a study a figure is taken from.

    Attributes:
        row: the rows' `row`, such as "transplant", "best member", "ensemble" or "continue the best member".
        recovery: their recovery without training.
        tuning: how they were trained on.
        where: further fields the rows must have: `network`, `data`, `members`, or a varied quantity such as
            `network.width`. A field that is named here for one side of a claim only is not matched between both.
        best_over: a varied quantity; of its values the one that validation prefers is taken.

    Example:
        >>> ClaimSide(row="transplant", tuning="finetune", where={"members": 4}).where
        {'members': 4}
    """

    row: str
    recovery: str = "none"
    tuning: TuningKind = "none"
    where: dict[str, Scalar] = Field(default_factory=dict)
    best_over: str | None = None


class Claim(Strict):
    """One claim of a paper: `figure` stands in relation `holds_if` to `against`, in every setting that has both.

    In a study file:

        claims:
          - text: a transplanted network, fine-tuned, beats every single member
            source: arXiv 2502.06849, section 5
            figure: {row: transplant, tuning: finetune}
            against: {row: best member}
            holds_if: above
          - text: it recovers within a few epochs
            source: arXiv 2502.06849, section 5
            measure: epochs
            figure: {row: transplant, tuning: finetune}
            against: 5
            holds_if: not above

    Attributes:
        text: the claim in words, without a number of the paper's.
        source: paper and section.
        figure: what the claim is about.
        against: what it is compared with: other rows, or a number of ours that gives a word such as "few" its meaning.
        holds_if: the claimed relation. "above" and "below" must exceed the noise, "equal" must not; "not above" and
            "not below" are met by equal figures.
        measure: "accuracy" on the test images; "epochs" of tuning until validation first reaches the best member;
            "won back", the share of what fusing lost that recovering brought back; or the path of another number in a
            row, such as `seconds.fuse`.
        margin: in units of the measure, added to `figure` before the two are compared: how far below still counts as
            equal.
        where: fields that both figures' rows must have, as in `ClaimSide.where`.
    """

    text: str
    source: str
    figure: ClaimSide
    against: ClaimSide | float
    holds_if: Relation
    measure: str = "accuracy"
    margin: float = 0.0
    where: dict[str, Scalar] = Field(default_factory=dict)
