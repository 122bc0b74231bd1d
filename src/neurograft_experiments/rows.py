"""Which rows a comparison has: one place for all studies."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from neurograft_experiments.claims import TuningKind
from neurograft_experiments.study import RecoveryKind, Start, StudySettings

BEST, ENSEMBLE, CONTINUE = "best member", "ensemble", "continue the best member"
ALONE = {"continue", "prune", "untrained", "ensemble", "combine", "sequence", "pooled"}
"""Starts that no fusion plan was made for: there is nothing to recover."""


@dataclass(frozen=True, slots=True)
class Row:
    """A network of a comparison.

    Attributes:
        row: its name in tables.
        start: how it is made.
        recovery: without training.
        tuning: how it is trained on.
    """

    row: str
    start: Start
    recovery: RecoveryKind = "none"
    tuning: TuningKind = "none"


def rows_of(settings: StudySettings) -> Iterator[Row]:
    """The rows that every comparison has (docs/design.md, "Honest numbers"), and those of the study's own starts.

    Every member, the best one, the ensemble, the vanilla average where the members' shapes allow it, the study's
    starts, and "continue the best member"; every start with every recovery, as it is and trained on in every way.
    """
    for number in range(settings.members.count):
        yield Row(f"member {number}", _start("continue", member=number))
    yield Row(BEST, _start("continue"))
    yield Row(ENSEMBLE, Start.model_construct(method="ensemble"))
    tunings = tunings_of(settings)
    for tuning in tunings:
        if tuning != "none":
            yield Row(CONTINUE, _start("continue"), tuning=tuning)
    for name, start in starts_of(settings).items():
        recoveries = start.recoveries if start.recoveries is not None else settings.recoveries
        if start.method == "keep":  # as it is, it is the member, which has a row of its own
            recoveries = tuple(recovery for recovery in recoveries if recovery != "none")
        for recovery in ("none",) if start.method in ALONE else recoveries:
            for tuning in tunings:
                if start.tunings is None or tuning in start.tunings:
                    yield Row(name, start, recovery, tuning)


def starts_of(settings: StudySettings) -> Mapping[str, Start]:
    """The study's starts, and the vanilla average if all members have the same shapes."""
    own = settings.starts
    alike = settings.members.networks is None and settings.members.copies != "pruned"
    return {"average": _start("average"), **own} if alike and "average" not in own else own


def looks_at_images(method: str, options: Mapping[str, Any]) -> bool:
    """Whether a start needs calibration images, before any recovery.

    Example:
        >>> looks_at_images("transplant", {}), looks_at_images("transplant", {"importance": "variance"})
        (False, True)
    """
    from neurograft.methods import METHODS, method_of

    return method in METHODS and method_of(method, options).needs_data


def tunings_of(settings: StudySettings) -> tuple[TuningKind, ...]:
    """No training, and every way in which the study trains further."""
    found: list[TuningKind] = ["none"]
    if settings.tuning.finetune is not None:
        found.append("finetune")
    if settings.tuning.distill is not None:
        found.append("distill")
    return tuple(found)


def _start(method: str, **settings: Any) -> Start:
    return Start(method=method, **settings)
