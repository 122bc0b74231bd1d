"""`advise`: the recipe that suits these members, or "do not fuse"."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neurograft.advising.recipes import Candidate, Starts
from neurograft.advising.result import Advice
from neurograft.advising.search import Race, StageProgress, TrainingKind, affordable, halving
from neurograft.advising.verdict import Contender, verdict_of
from neurograft.errors import OptionError, closest
from neurograft.evaluating.ensemble import Ensemble
from neurograft.evaluating.evaluation import Scores, evaluate, labelled
from neurograft.evaluating.pairing import correct_predictions, gap
from neurograft.inputs import Batches, Inputs, check_batches
from neurograft.members.checks import check_models
from neurograft.methods import METHODS
from neurograft.preserve_state import keeps_random_state

TUNINGS: tuple[TrainingKind, ...] = ("finetune", "distill")
RECOVERIES = ("none", "refit")
USUAL = tuple(name for name, kind in METHODS.items() if not kind().needs_data)


@keeps_random_state
def advise(
    models: Sequence[nn.Module],
    train: Batches,
    validation: Batches,
    test: Batches | None = None,
    *,
    epochs: int = 20,
    minutes: float | None = None,
    methods: Sequence[str] = USUAL,
    recoveries: Sequence[str] = RECOVERIES,
    tunings: Sequence[TrainingKind] = TUNINGS,
    lr: Sequence[float] | float = (0.01, 0.03),
    temperature: float = 2.0,
    example_inputs: Inputs | None = None,
    calibration: Batches | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: StageProgress = lambda _: None,
) -> Advice:
    """Find out on your own members and data whether fusing pays, and by which recipe.

    Every method fuses the members, bare and refitted; every start is fine-tuned and distilled from the ensemble at
    every learning rate for a ninth of the budget, the best third of them for a third, a third of those for all of it.
    "Continue the best member", fine-tuned and distilled on the same budget, stays in to the end. Validation alone
    chooses; fusing is recommended only if the fused network is above every rival by more than two standard errors of
    their paired outputs. The test samples are read once, for the networks in the final table.

    Args:
        models: at least two trained networks of one class that classify; they are only read.
        train: labelled batches to train on; shuffle them.
        validation: labelled batches that choose.
        test: labelled batches that are read once at the end.
        epochs: how long the recommended recipe, and every rival, may train; 0: what can be done without training.
        minutes: of the whole search, instead of `epochs`: as many epochs as fit, by the time of the first one.
        methods: which fusion methods to try; one that cannot fuse these members is left out, with the reason.
        recoveries: "none", "refit".
        tunings: "finetune", "distill".
        lr: learning rates to try.
        temperature: of distilling.
        example_inputs: what the networks take; default the inputs of the first validation batch.
        calibration: unlabelled batches for refit and for methods that look at activations; default `train`.
        seed: of everything random inside.
        device: where to train; results come back on the members' own device.
        progress: called with what is being done.

    Raises:
        InputError: for batches that cannot be used.
        OptionError: for unknown methods or settings out of range.
        MembersDiffer: if the networks are of different classes.

    Example:
        >>> import neurograft as ng
        >>> from neurograft_experiments.data import load_images
        >>> from neurograft_experiments.networks import digits_mlp
        >>> digits = load_images("digits")
        >>> train, validation = digits.train.batches(32, shuffle=True), digits.validation.batches()
        >>> members = [ng.finetune(digits_mlp(), train, seed=seed, epochs=20, lr=0.03) for seed in (1, 2)]
        >>> advice = ng.advise(members, train, validation, methods=["transplant"], lr=0.03, epochs=1)
        >>> advice.fuse, advice.recipe.start
        (False, 'best member')

    Source: successive halving as in Jamieson & Talwalkar 2016, arXiv:1502.07943.
    """
    rates = (lr,) if isinstance(lr, (int, float)) else tuple(lr)
    _check(methods, recoveries, tunings, rates, epochs, minutes)
    check_models(models)
    check_batches(train, name="train")
    check_batches(validation, name="validation")
    scores = tuple(evaluate(model, validation) for model in models)
    best = max(range(len(models)), key=lambda m: (scores[m].accuracy, -scores[m].loss))
    where = None if device is None else str(device)
    race = Race(models, best, train, validation, temperature, seed, where, progress)
    example = _example(validation) if example_inputs is None else example_inputs
    starts = race.starts(example, methods, recoveries, train if calibration is None else calibration)
    trainings = [(tuning, rate) for tuning in tunings for rate in rates] if epochs or minutes is not None else []
    candidates = [start.tuned_by(*how) for start in starts.candidates if start.recipe.fuses for how in trainings]
    rivals = [starts.candidates[0].tuned_by(*how) for how in trainings]
    if minutes is not None and rivals:
        rivals = [race.train_further(rival, 1) for rival in rivals]
        spent = sum(rival.seconds for rival in rivals)
        left = max(0.0, 60 * minutes - spent)
        epochs = affordable(left, spent / len(rivals), len(candidates), len(tunings))
    tried = halving(race, candidates, rivals, epochs)
    progress("comparing")
    return _decided(race, starts, tried, scores, test, epochs)


def _decided(
    race: Race,
    starts: Starts,
    tried: Sequence[Candidate],
    members: tuple[Scores, ...],
    test: Batches | None,
    epochs: int,
) -> Advice:
    """Compare the best fused network with its rivals on validation, recommend one, and read the test samples once."""
    everything = tuple(dict.fromkeys([*tried, *starts.candidates]))
    whole = [candidate for candidate in everything if not candidate.diverged]
    fused = max((c for c in whole if c.recipe.fuses), key=lambda c: c.rank, default=None)
    rivals = [starts.candidates[0]]  # from the simplest to the most laborious
    for tuning in TUNINGS:
        own = [c for c in whole if not c.recipe.fuses and c.recipe.tuning == tuning]
        rivals += [max(own, key=lambda c: c.rank)] if own else []
    shown = [*([fused] if fused is not None else []), *rivals]
    right = {c: correct_predictions(c.network, race.validation) for c in shown}
    strongest = max(rivals, key=lambda c: c.rank)
    fuse = fused is not None and gap(right[fused], right[strongest]).sign > 0
    chosen = next(c for c in shown if fuse or (c is not fused and gap(right[strongest], right[c]).sign <= 0))
    ensemble = Ensemble(race.members)
    gain = gap(correct_predictions(ensemble, race.validation), right[rivals[0]])
    networks: list[tuple[str, Candidate | None, nn.Module]] = [(c.recipe.name, c, c.network) for c in shown]
    networks.append(("ensemble", None, ensemble))
    networks.sort(key=lambda entry: entry[1] is not chosen)
    contenders = _contenders(networks, race.validation, test)
    return Advice(
        fuse=fuse,
        recipe=chosen.recipe,
        network=chosen.network,
        verdict=verdict_of(contenders, fused, gain, fuse=fuse, members=len(race.members)),
        contenders=contenders,
        members=members,
        candidates=everything,
        refused=starts.refused,
        epochs=epochs,
        searched=sum(candidate.epochs for candidate in tried),
    )


def _contenders(
    networks: Sequence[tuple[str, Candidate | None, nn.Module]], validation: Batches, test: Batches | None
) -> tuple[Contender, ...]:
    """Every network beside the first one, which is recommended."""
    right = [correct_predictions(network, validation) for _, _, network in networks]
    on_test = [correct_predictions(network, test) for _, _, network in networks] if test is not None else None
    return tuple(
        Contender(
            name,
            candidate,
            float(right[number].double().mean()),
            gap(right[0], right[number]),
            float(on_test[number].double().mean()) if on_test is not None else None,
            gap(on_test[0], on_test[number]) if on_test is not None else None,
        )
        for number, (name, candidate, _) in enumerate(networks)
    )


def _example(validation: Batches) -> Inputs:
    """The inputs of the first batch; of a plain tensor two samples are enough."""
    inputs, _ = next(iter(labelled(validation)))
    return inputs[:2] if isinstance(inputs, Tensor) else inputs


def _check(
    methods: Sequence[str],
    recoveries: Sequence[str],
    tunings: Sequence[str],
    rates: Sequence[float],
    epochs: int,
    minutes: float | None,
) -> None:
    for names, known, what in (
        (methods, tuple(METHODS), "method"),
        (recoveries, RECOVERIES, "recovery"),
        (tunings, TUNINGS, "tuning"),
    ):
        for name in names:
            if name not in known:
                raise OptionError(f"unknown {what} {name!r}; {closest(str(name), known)}")
    if not methods or not recoveries:
        raise OptionError("methods and recoveries must name at least one each; to fuse nothing needs no advice")
    if not isinstance(epochs, int) or epochs < 0:
        raise OptionError(f"epochs={epochs!r}: must be an integer, 0 or more")
    if minutes is not None and not minutes > 0:
        raise OptionError(f"minutes={minutes!r}: must be above 0")
    if (epochs or minutes is not None) and not (rates and tunings and all(rate > 0 for rate in rates)):
        raise OptionError(
            f"lr={tuple(rates)!r} and tunings={tuple(tunings)!r}: at least one each, learning rates above 0"
        )
