"""The verdict in sentences: what to do, what it gains, at what cost, and what cannot be distinguished."""

from collections.abc import Sequence
from dataclasses import dataclass

from neurograft.advising.recipes import Candidate
from neurograft.evaluating.pairing import Gap


@dataclass(frozen=True, eq=False)
class Contender:
    """A network that the recommended one is compared with, or that one itself.

    Attributes:
        name: in words.
        candidate: how it was made; None for the ensemble.
        accuracy: on validation, where everything was chosen.
        ahead: how far the recommended network is above it there.
        test: its accuracy on the test samples, None without any.
        ahead_on_test: how far the recommended network is above it there.
    """

    name: str
    candidate: Candidate | None
    accuracy: float
    ahead: Gap
    test: float | None = None
    ahead_on_test: Gap | None = None

    @property
    def rival(self) -> bool:
        """Whether it is the best member, continued or not."""
        return self.candidate is not None and not self.candidate.recipe.fuses


def verdict_of(contenders: Sequence[Contender], fused: Candidate | None, gain: Gap, *, fuse: bool, members: int) -> str:
    """The verdict in sentences.

    Args:
        contenders: the recommended network first, then the best fused one, the rivals, and the ensemble.
        fused: the best fused network, None if nothing could be fused.
        gain: how far the ensemble is above the best member.
        fuse: whether it is the recommended one.
        members: how many there are.
    """
    chosen = contenders[0]
    sentences = [_recommendation(chosen, fuse=fuse)]
    strongest = max((c for c in contenders if c.rival), key=lambda c: c.accuracy)
    if fuse:
        sentences.append(f"On validation it is {_points(strongest.ahead)} {strongest.name}, the strongest rival.")
    elif fused is None:
        sentences.append("None of the methods could fuse these members.")
    else:
        best = next(c for c in contenders if c.candidate is fused)
        below = Gap(-best.ahead.points, best.ahead.noise)
        sentences.append(f"The best fused network ({best.name}) is {_against(below)} it on validation.")
    sentences.append(_ensemble(contenders, gain, members))
    if chosen.test is not None:
        sentences.append(_tested(contenders))
    return " ".join(sentences)


def _recommendation(chosen: Contender, *, fuse: bool) -> str:
    candidate = chosen.candidate
    assert candidate is not None
    if fuse:
        trained = f", {candidate.epochs} epochs" if candidate.epochs else ""
        return f"Fuse: {chosen.name}{trained} ({candidate.seconds:.0f} s)."
    if candidate.recipe.tuning == "none":
        return "Do not fuse: keep the best member as it is."
    how = {"finetune": "train the best member on", "distill": "let the ensemble teach the best member"}
    return f"Do not fuse: {how[candidate.recipe.tuning]}, {candidate.epochs} epochs (lr {candidate.recipe.lr:g})."


def _ensemble(contenders: Sequence[Contender], gain: Gap, members: int) -> str:
    """Whether the ensemble is worth its cost, and how the recommended network stands to it."""
    ensemble = next(c for c in contenders if c.candidate is None)
    worth = "there is something to win" if gain.sign > 0 else "there is little to win by fusing"
    return (
        f"The ensemble is {_against(gain)} the best member, so {worth}; it costs {members} times as much to run, and "
        f"the recommended network is {_against(ensemble.ahead)} it."
    )


def _tested(contenders: Sequence[Contender]) -> str:
    chosen = contenders[0]
    assert chosen.test is not None
    relations: dict[str, list[str]] = {}
    for c in contenders[1:]:
        if c.ahead_on_test is not None and c.test is not None:
            relations.setdefault(_against(c.ahead_on_test), []).append(f"{c.name} ({100 * c.test:.1f} %)")
    parts = [f"{relation} {', '.join(names)}" for relation, names in relations.items()]
    return f"On the test samples, read once: {100 * chosen.test:.1f} %; that is {'; '.join(parts)}."


def _points(gap: Gap) -> str:
    return f"{100 * gap.points:.1f} ± {100 * gap.noise:.1f} points above"


def _against(gap: Gap) -> str:
    """How the recommended network stands to another."""
    if gap.sign == 0:
        return "not distinguishable from"
    return f"{100 * abs(gap.points):.1f} points {'above' if gap.sign > 0 else 'below'}"
