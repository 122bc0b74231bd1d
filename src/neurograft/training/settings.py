"""How to train: the settings that `train`, `finetune` and `distill` share, each with its default, meaning and check."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeAlias, TypedDict, TypeVar

import torch
from torch import nn

from neurograft.errors import OptionError, closest
from neurograft.evaluating.evaluation import Metric, Scores
from neurograft.inputs import Batches
from neurograft.options import check_choice
from neurograft.training.learning_rates import Schedule, factor_of

OptimizerMaker: TypeAlias = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
Function = TypeVar("Function", bound=Callable[..., Any])
PRECISIONS = ("float32", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one pass over the batches did.

    Attributes:
        number: 0 for the network as it came, before any step, then 1, 2, …
        train_loss: the mean loss over the pass, in the mode the network trains in; nan for epoch 0.
        validation: the scores on the validation batches, None without any.
        seconds: how long the pass and its validation took.
    """

    number: int
    train_loss: float
    validation: Scores | None
    seconds: float


class TrainingSettings(TypedDict, total=False):
    """How to train: what `train`, `finetune` and `distill` have in common.

    Attributes:
        epochs: passes over the batches.
        lr: learning rate.
        momentum: share of the last step that is repeated.
        weight_decay: L2 penalty.
        schedule: what becomes of the learning rate: "constant"; "cosine", down towards 0; "step:50,80", a tenth after
            50 epochs, a hundredth after 80; "halve:30", half of it every 30 epochs; or a function that takes the number
            of epochs done, 0 before the first, and gives the factor.
        precision: "float32"; or mixed precision, "bf16" or (on a GPU, with scaled gradients) "fp16": layers compute in
            16 bits where that is safe, the weights stay as they are, validation is not mixed.
        optimizer: makes another optimizer from the parameters, in place of `lr`, `momentum` and `weight_decay`.
        loss: `loss(outputs, labels)`, a mean over the batch, instead of the cross-entropy.
        validation: labelled batches that choose the epoch.
        patience: stop after so many epochs without a better validation score.
        seed: of everything random inside; the caller's random state is not touched.
        device: where to train; the result comes back on the network's own device.
        checkpoint: a file that is rewritten after every epoch, all or nothing. Called again with the same arguments,
            training goes on after the last epoch in it, with the same result (on the CPU bit for bit).
        tracker: a folder for the curves, to look at with TensorBoard.
        progress: show a bar where there is a terminal.
        on_epoch: called with an `Epoch` after each pass and once before the first; `history.append` keeps them. Where a
            checkpoint is gone on from, it is called with that one's epochs first.
    """

    epochs: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: Schedule
    precision: str
    optimizer: OptimizerMaker | None
    loss: Metric | None
    validation: Batches | None
    patience: int | None
    seed: int
    device: torch.device | str | None
    checkpoint: str | PathLike[str] | None
    tracker: str | PathLike[str] | None
    progress: bool
    on_epoch: Callable[[Epoch], None] | None


DEFAULTS = TrainingSettings(
    epochs=10,
    lr=0.01,
    momentum=0.9,
    weight_decay=0.0,
    schedule="constant",
    precision="float32",
    optimizer=None,
    loss=None,
    validation=None,
    patience=None,
    seed=0,
    device=None,
    checkpoint=None,
    tracker=None,
    progress=True,
    on_epoch=None,
)


def settled(settings: Mapping[str, Any]) -> TrainingSettings:
    """The settings that were given, and the defaults of all others.

    Raises:
        OptionError: names the setting, its value and what it may be; for an unknown one, the closest that there is.

    Example:
        >>> settled({"epochs": 3})["lr"]
        0.01
        >>> settled({"momentun": 0.5})
        Traceback (most recent call last):
        neurograft.errors.OptionError: training has no setting 'momentun'; did you mean 'momentum'? known: ...
    """
    for name in settings:
        if name not in DEFAULTS:
            raise OptionError(f"training has no setting {name!r}; {closest(name, DEFAULTS)}")
    whole = TrainingSettings(**{**DEFAULTS, **settings})  # type: ignore[typeddict-item]
    _check_numbers(whole)
    _check_others(whole)
    return whole


def takes_settings(function: Function) -> Function:
    """Let a function that takes `**settings: Unpack[TrainingSettings]` show them in its signature and its docstring.

    Its docstring has a line `**settings:` where the descriptions of the settings belong.
    """
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    types = inspect.get_annotations(TrainingSettings)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[name])
        for name, default in DEFAULTS.items()
    ]
    function.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    if function.__doc__ and TrainingSettings.__doc__:  # both are None under `python -OO`
        described = TrainingSettings.__doc__.partition("Attributes:\n")[2].rstrip()
        lines = [line for line in function.__doc__.splitlines() if line.lstrip().startswith("**settings:")]
        function.__doc__ = function.__doc__.replace(lines[0], described)
    return function


def _check_numbers(settings: TrainingSettings) -> None:
    def require(name: str, value: object, kind: Any, met: Callable[[Any], bool], allowed: str) -> None:
        if isinstance(value, bool) or not isinstance(value, kind) or not met(value):
            raise OptionError(f"{name}={value!r}: must be {allowed}")

    number = (int, float)
    require("epochs", settings["epochs"], int, lambda n: n >= 0, "an integer, 0 or more")
    require("lr", settings["lr"], number, lambda x: 0 < x < math.inf, "a number above 0")
    require("momentum", settings["momentum"], number, lambda x: 0 <= x < 1, "at least 0 and below 1")
    require("weight_decay", settings["weight_decay"], number, lambda x: 0 <= x < math.inf, "0 or more")
    require("seed", settings["seed"], int, lambda n: 0 <= n < 2**63, "an integer from 0 to 2^63 - 1")
    if settings["patience"] is not None:
        require("patience", settings["patience"], int, lambda n: n >= 1, "None or at least 1 epoch")
        if settings["validation"] is None:
            raise OptionError("patience stops on the validation score: pass validation= too")


def _check_others(settings: TrainingSettings) -> None:
    factor_of(settings["schedule"], settings["epochs"])
    check_choice("precision", settings["precision"], PRECISIONS)
    if not isinstance(settings["progress"], bool):
        raise OptionError(f"progress={settings['progress']!r}: must be True or False")
    functions = {name: settings[name] for name in ("optimizer", "loss", "on_epoch")}
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise OptionError(f"{name}={function!r}: must be a function, or None")
    for name, path in {"checkpoint": settings["checkpoint"], "tracker": settings["tracker"]}.items():
        if path is not None and not isinstance(path, (str, PathLike)):
            raise OptionError(f"{name}={path!r}: must be a path, or None")
    if settings["device"] is not None:
        try:
            torch.device(settings["device"])
        except RuntimeError as error:
            raise OptionError(f"device={settings['device']!r}: {str(error).splitlines()[0]}") from error
