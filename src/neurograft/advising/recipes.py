"""Ways from members to one network, and how far each has come."""

from dataclasses import dataclass, field, replace

from torch import nn

from neurograft.evaluating.evaluation import Scores

BEST_MEMBER = "best member"
WORDS = {"none": "as it is", "finetune": "fine-tuned", "distill": "distilled"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to one network.

    Attributes:
        start: a fusion method, or "best member": not fused.
        recovery: "none", or "refit" on unlabelled inputs.
        tuning: "none"; "finetune", on labels; "distill", to output what the ensemble outputs.
        lr: the learning rate of the tuning.
    """

    start: str
    recovery: str = "none"
    tuning: str = "none"
    lr: float | None = None

    @property
    def fuses(self) -> bool:
        """Whether it makes one network out of several."""
        return self.start != BEST_MEMBER

    @property
    def name(self) -> str:
        """The recipe in words.

        Example:
            >>> Recipe("optimal_transport", "refit", "distill", 0.03).name
            'optimal transport + refit, distilled (lr 0.03)'
        """
        start = self.start.replace("_", " ") + ("" if self.recovery == "none" else f" + {self.recovery}")
        rate = "" if self.lr is None else f" (lr {self.lr:g})"
        return f"{start}, {WORDS[self.tuning]}{rate}"


@dataclass(frozen=True, eq=False)
class Candidate:
    """A recipe and how far it has been followed.

    Attributes:
        recipe: what is done.
        network: the best so far.
        validation: its scores.
        curve: validation accuracy before the first and after each epoch.
        epochs: how many were trained.
        epoch: the one that validation chose, 0 for the start.
        seconds: for making and training it.
        diverged: whether training had to stop.
    """

    recipe: Recipe
    network: nn.Module
    validation: Scores
    curve: tuple[float, ...]
    epochs: int = 0
    epoch: int = 0
    seconds: float = 0.0
    diverged: bool = False

    @property
    def rank(self) -> tuple[float, float]:
        """Higher is better: accuracy, then the loss."""
        return self.validation.rank

    def tuned_by(self, tuning: str, lr: float) -> "Candidate":
        """The same start, about to be trained."""
        return replace(self, recipe=replace(self.recipe, tuning=tuning, lr=lr))


@dataclass(frozen=True, eq=False)
class Starts:
    """What was made of the members without training.

    Attributes:
        candidates: the best member, and every fusion that could be made.
        refused: method -> why it could not.
    """

    candidates: tuple[Candidate, ...]
    refused: dict[str, str] = field(default_factory=dict)
