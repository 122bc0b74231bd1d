"""What `advise` returns, and the table of what was compared."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from torch import nn

from neurograft.advising.recipes import Candidate, Recipe
from neurograft.advising.verdict import Contender
from neurograft.escaping import terminal
from neurograft.evaluating.evaluation import Scores
from neurograft.evaluating.pairing import Gap
from neurograft.reporting.tables import Table, terminal_table

NOISE = (
    "Lead: of the recommended network, ± two standard errors of paired outputs for the same samples; = not "
    "distinguishable. Validation chose methods, learning rates and epochs: its figures flatter what was chosen among "
    "many."
)


def contenders_table(contenders: Sequence[Contender]) -> Table:
    """The recommended network, the best fused one, their rivals and the ensemble."""
    tested = any(contender.test is not None for contender in contenders)
    rows = []
    for number, contender in enumerate(contenders):
        candidate = contender.candidate
        row = [
            ("recommended: " if number == 0 else "") + contender.name,
            str(candidate.epochs) if candidate is not None else "–",
            f"{candidate.seconds:.1f}" if candidate is not None else "–",
            f"{100 * contender.accuracy:.1f}",
            _lead(contender.ahead) if number else "",
        ]
        if tested and contender.test is not None and contender.ahead_on_test is not None:
            row += [f"{100 * contender.test:.1f}", _lead(contender.ahead_on_test) if number else ""]
        rows.append(tuple(row))
    columns = ["network", "epochs", "seconds", "validation, %", "lead"]
    return Table(
        title="What was compared at the end",
        columns=(*columns, "test, %", "lead on test") if tested else tuple(columns),
        rows=tuple(rows),
        numeric=len(columns) - 1 + 2 * tested,
        note=NOISE,
    )


@dataclass(frozen=True, eq=False)
class Advice:
    """What to do with these members, and everything that was measured on the way.

    Attributes:
        fuse: whether a fused network is recommended.
        recipe: the recommended one.
        network: what it gave.
        verdict: what to do, in sentences.
        contenders: the recommended network, the best fused one, and what they must be compared with.
        members: validation scores of every member.
        candidates: everything that was tried, what was trained longest first.
        refused: method -> why it could not fuse these members.
        epochs: of training that every recipe had at most.
        searched: epochs that the search trained in all.
    """

    fuse: bool
    recipe: Recipe
    network: nn.Module
    verdict: str
    contenders: tuple[Contender, ...]
    members: tuple[Scores, ...]
    candidates: tuple[Candidate, ...]
    refused: dict[str, str]
    epochs: int
    searched: int

    def __str__(self) -> str:
        out = io.StringIO()
        console = Console(file=out, width=110, color_system=None)
        console.print(terminal(self.verdict) + "\n", highlight=False, markup=False, emoji=False)
        console.print(terminal_table(contenders_table(self.contenders)))
        return out.getvalue().rstrip()


def _lead(gap: Gap) -> str:
    text = f"{100 * gap.points:+.1f} ± {100 * gap.noise:.1f}".replace("-", "−")
    return text if gap.sign else f"{text} ="
