"""What a recovery did, layer by layer."""

from dataclasses import dataclass
from math import inf, isnan, nan

from torch import nn

from neurograft.plans.plan import FusionPlan
from neurograft.text_table import paragraph, text_table

NUMBERS = ("before", "after", "ridge", "norm", "rows", "seconds")


@dataclass(frozen=True, slots=True)
class LayerRecovery:
    """One layer.

    Attributes:
        tensor: the weight's name.
        target: what it was brought towards: "layer" (what the members' layer gives), "stream" (the sum it is added to)
            or "statistics"; "left out" where it stays as it is.
        before: relative error of its pre-activations against the planned ones, before: |z − t| / |t|.
        after: the same afterwards, on the same samples.
        ridge: the λ that was used; infinity where the planned weights were kept, nan where none is needed.
        norm: the norm of the new weights over that of the planned ones.
        rows: how many rows (samples x positions) it was solved from.
        seconds: for its regression alone.
        note: why it was left out, "" otherwise.
    """

    tensor: str
    target: str
    before: float = nan
    after: float = nan
    ridge: float = nan
    norm: float = nan
    rows: int = 0
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What a recovery did to a fused network; prints as a table.

    Attributes:
        recovery: "refit", "repair", "repair without data" or "batch_norm".
        layers: in execution order; those left out have a note.
        samples: calibration samples.
        passes: how often the samples went through the fused network.
        seconds: all in all.
        notes: what limits the result.
        held_out: how many of the samples took no part, to judge by.
        before: on those, |y − t| / |t| of the fused outputs y against the members' mean t; nan without any.
        after: the same of the recovered network's outputs.
    """

    recovery: str
    layers: tuple[LayerRecovery, ...]
    samples: int
    passes: int
    seconds: float
    notes: tuple[str, ...] = ()
    held_out: int = 0
    before: float = nan
    after: float = nan

    def __str__(self) -> str:
        passes = "1 pass" if self.passes == 1 else f"{self.passes} passes"
        head = f"{self.recovery}: {self.samples} samples, {passes}, {self.seconds:.1f} s"
        columns = ("layer", "towards", *NUMBERS, "note")
        rows = []
        for layer in self.layers:
            numbers = (layer.before, layer.after, layer.ridge, layer.norm)
            cells = ["kept" if x == inf else "" if isnan(x) else f"{x:.3g}" for x in numbers]
            rows.append((layer.tensor, layer.target, *cells, str(layer.rows), f"{layer.seconds:.2f}", layer.note))
        table = text_table(columns, rows, numbers=NUMBERS)
        lines = []
        if self.held_out:
            errors = f"relative error {self.before:.3g} before, {self.after:.3g} after"
            lines.append(f"outputs on {self.held_out} held-out samples: {errors}")
        return "\n".join([head, table, *lines, *(paragraph(f"note: {note}") for note in self.notes)])


@dataclass(frozen=True, eq=False, slots=True)
class Recovered:
    """A recovered network.

    Attributes:
        model: a copy of the one that was given, changed.
        report: what was done to it.
        plan: which plan it follows now, where that is another than before.
    """

    model: nn.Module
    report: RecoveryReport
    plan: FusionPlan | None = None
