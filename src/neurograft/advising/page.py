"""Advice as a page."""

from collections.abc import Mapping, Sequence

from neurograft.advising.recipes import WORDS, Candidate
from neurograft.advising.result import Advice, contenders_table
from neurograft.advising.search import rounds_of
from neurograft.reporting.document import Document, Facts, Paragraph, Part, Section
from neurograft.reporting.tables import Table

SHOWN = 11
"""Of a curve about so many epochs are shown."""


def candidates_table(advice: Advice) -> Table:
    """Everything that was tried, as far as it came."""
    rows = tuple(
        (
            candidate.recipe.start.replace("_", " "),
            candidate.recipe.recovery,
            WORDS[candidate.recipe.tuning],
            "–" if candidate.recipe.lr is None else f"{candidate.recipe.lr:g}",
            str(candidate.epochs),
            "diverged" if candidate.diverged else f"{100 * candidate.validation.accuracy:.1f}",
            f"{candidate.seconds:.1f}",
        )
        for candidate in advice.candidates
    )
    steps = rounds_of(advice.epochs)
    sorted_out = (
        f" After {' and '.join(map(str, steps[:-1]))} epochs the best third stayed in." if len(steps) > 1 else ""
    )
    return Table(
        title="Everything that was tried",
        columns=("start", "recovered", "trained on", "learning rate", "epochs", "validation, %", "seconds"),
        rows=rows,
        numeric=4,
        note=f"{advice.searched} epochs in all.{sorted_out}",
    )


def advice_document(advice: Advice, made: Mapping[str, str]) -> Document:
    """The page: the verdict, what was compared, the curves, everything that was tried.

    Args:
        advice: what `advise` found.
        made: names and values for the end of the page: command, data, commit, versions, hardware.
    """
    verdict: list[Part] = [Paragraph(advice.verdict, "takeaway"), contenders_table(advice.contenders)]
    shown = [c.candidate for c in advice.contenders if c.candidate is not None and len(c.candidate.curve) > 1]
    if shown:
        verdict.append(curves_table(shown))
    tried: list[Part] = [candidates_table(advice)]
    tried += [Paragraph(f"{method} cannot fuse these members: {why}", "note") for method, why in advice.refused.items()]
    members = ", ".join(f"{100 * scores.accuracy:.1f}" for scores in advice.members)
    return Document(
        "Does fusing pay?",
        f"{len(advice.members)} members, {members} % on validation, at most {advice.epochs} epochs for every recipe.",
        (
            Section("The verdict", tuple(verdict)),
            Section("What was tried", tuple(tried)),
            Section("How this was made", (Facts(made),)),
        ),
    )


def curves_table(shown: Sequence[Candidate]) -> Table:
    """Validation accuracy over the epochs of training, at a dozen of them; the chosen epoch stands out."""
    last = max(len(candidate.curve) for candidate in shown) - 1
    epochs = sorted({round(last * part / SHOWN) for part in range(SHOWN + 1)} | {c.epoch for c in shown})
    rows = [
        (c.recipe.name, *(f"{100 * c.curve[epoch]:.1f}" if epoch < len(c.curve) else "–" for epoch in epochs))
        for c in shown
    ]
    return Table(
        title="Validation accuracy in % over the epochs of training",
        columns=("network", *map(str, epochs)),
        rows=tuple(rows),
        numeric=len(epochs),
        strong=frozenset((r, 1 + epochs.index(c.epoch)) for r, c in enumerate(shown)),
    )
