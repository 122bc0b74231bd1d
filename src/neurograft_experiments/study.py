"""What a study file may hold: the models its keys are checked against."""

from typing import Annotated, Any, Literal, Self, TypeAlias, get_args

from pydantic import BeforeValidator, Field, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from neurograft.errors import NeurograftError, closest
from neurograft_experiments.claims import Claim, TuningKind
from neurograft_experiments.strict import Strict

RecoveryKind: TypeAlias = Literal["none", "refit", "repair", "data_free", "batch_norm"]
Preset: TypeAlias = Literal["smoke", "small", "medium", "paper-short", "paper"]
PRESETS: tuple[Preset, ...] = ("smoke", "small", "medium", "paper-short", "paper")
OWN_STARTS = ("continue", "keep", "prune", "combine", "sequence", "untrained", "ensemble", "pooled")
"""Starts that are no fusion method."""
MOST_SEEDS = 1000
MOST_SEED = 10**12
"""Seeds of members, 1000 times that, are whole numbers of 64 bits."""


def _listed(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


def _counted(value: Any) -> Any:
    number = isinstance(value, int) and not isinstance(value, bool)
    return list(range(min(value, MOST_SEEDS + 1))) if number else value


Rates: TypeAlias = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_listed), Field(min_length=1)]
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=MOST_SEED)]
Seeds: TypeAlias = Annotated[tuple[Seed, ...], BeforeValidator(_counted), Field(min_length=1, max_length=MOST_SEEDS)]
Several: TypeAlias = Annotated[int, Field(ge=2, le=100)]


class Data(Strict):
    """The images.

    Attributes:
        source: "digits", "mnist", "cifar10", …, a hub name, or a folder.
        samples: how many images train and validate, null for all.
        test: how many test images are read, null for all; always the same ones.
        normalization: "train" or "papers", as `load_images` takes it.
        augment: the papers' random crops and flips while training.
    """

    source: str
    samples: PositiveInt | None = None
    test: PositiveInt | None = None
    normalization: Literal["train", "papers"] = "train"
    augment: bool = False


class Training(Strict):
    """Stochastic gradient descent.

    Attributes:
        epochs: passes over the training images.
        batch: samples per step.
        momentum: share of the last step that is repeated.
        weight_decay: L2 penalty.
        schedule: how the learning rate changes, as `schedule=` of `neurograft.finetune` takes it.
        precision: "float32", "bf16" or "fp16".
    """

    epochs: Annotated[int, Field(ge=0)]
    batch: PositiveInt = 256
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: str = "constant"
    precision: Literal["float32", "bf16", "fp16"] = "float32"


class SplitSettings(Strict):
    """Which part of the training images each member sees.

    Attributes:
        kind: "skill": member 0 alone sees one class, and a part of the rest; "parts": every member an equal part;
            "labels": every member mostly a few classes, as `label_groups` divides; "dirichlet": shares of every class
            drawn from a symmetric Dirichlet distribution.
        skill: that class.
        share: member 0's part of the rest.
        others: for "labels", how often an image goes to any member.
        concentration: for "dirichlet"; the smaller, the more unequal.
        reserve: for "labels" and "dirichlet", so many images no member sees: calibration images come from them.
    """

    kind: Literal["skill", "parts", "labels", "dirichlet"]
    skill: Annotated[int, Field(ge=0)] = 4
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    others: Annotated[float, Field(ge=0, le=1)] = 0.05
    concentration: Annotated[float, Field(gt=0)] = 0.1
    reserve: Annotated[int, Field(ge=0)] = 1000


class MemberSettings(Training):
    """The networks that are fused.

    Attributes:
        count: how many.
        lr: learning rate.
        initialisation: "different", or "same": all start from the first one's weights, the data comes in other orders.
        copies: "none"; "same": every member is member 0; "pruned": the second is member 0, the first its pruned copy.
        ratio: the share of neurons the pruned copy lacks.
        networks: settings in which each member's network differs from the study's, as `[{width: 64}, {width: 32}]`.
        split: which images each member sees; null: all.
    """

    count: Several = 2
    lr: Annotated[float, Field(gt=0)] = 0.01
    initialisation: Literal["different", "same"] = "different"
    copies: Literal["none", "same", "pruned"] = "none"
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    networks: tuple[dict[str, Any], ...] | None = None
    split: SplitSettings | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.networks is not None and len(self.networks) != self.count:
            raise PydanticCustomError(
                "networks",
                "networks names {named} members, count is {count}",
                {"named": len(self.networks), "count": self.count},
            )
        if self.copies == "pruned" and (self.count != 2 or self.networks or self.split):
            raise PydanticCustomError("copies", "copies: pruned is for two members of one network, trained alike", {})
        return self


def _check_vote(options: dict[str, Any]) -> None:
    from neurograft.evaluating.ensemble import Vote

    if unknown := options.keys() - {"vote"}:
        raise NeurograftError(f"an ensemble takes the option vote, got {', '.join(sorted(unknown))}")
    if "vote" in options and options["vote"] not in get_args(Vote):
        raise NeurograftError(f"unknown vote {options['vote']!r}; {closest(str(options['vote']), get_args(Vote))}")


class Start(Strict):
    """One way to a network that is then recovered and trained on.

    Attributes:
        method: a fusion method; "continue" (a member as it is), "keep" (a member's own neurons, to be recovered towards
            all members), "prune" (a member made narrower), "combine" (all side by side), "sequence" (`steps` in order),
            "untrained", "ensemble" (the members, their outputs combined), "pooled" (one network trained on the images
            of all members); by default the name of the row.
        options: of the method; of pruning for "prune" and "sequence"; of the network for "untrained"; `vote` for
            "ensemble".
        recoveries: recoveries without training; default those of the study.
        tunings: "none", "finetune", "distill"; default all that the study has.
        weights: of the members in a fused network: "samples": by how many images each was trained on.
        statistics: whether each member brings statistics of its own images, by which an ensemble weights it image by
            image; refit then recovers towards that ensemble. "inputs": inputs are drawn from them too.
        member: for "continue", "keep" and "prune": "best" or a number.
        steps: for "sequence".
        tune_epochs: for "sequence": epochs of each "tune" step, taken off the later training.
    """

    method: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    recoveries: tuple[RecoveryKind, ...] | None = None
    tunings: tuple[TuningKind, ...] | None = None
    weights: Literal["method", "samples"] = "method"
    statistics: bool | Literal["inputs"] = False
    member: Literal["best"] | Annotated[int, Field(ge=0)] = "best"
    steps: tuple[Literal["prune", "merge", "tune"], ...] = ()
    tune_epochs: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _known(self) -> Self:
        from neurograft.methods import METHODS, method_of

        try:
            if self.method in ("prune", "sequence"):
                method_of("transplant", self.options)
            elif self.method in METHODS:
                method_of(self.method, self.options)
            elif self.method not in OWN_STARTS:
                raise NeurograftError(
                    f"unknown method {self.method!r}; {closest(self.method, [*METHODS, *OWN_STARTS])}"
                )
            elif self.method == "ensemble":
                _check_vote(self.options)
            elif self.options and self.method != "untrained":
                raise NeurograftError(f"{self.method!r} takes no options, got {', '.join(self.options)}")
            if (self.method == "sequence") != bool(self.steps):
                raise NeurograftError("steps belong to method: sequence, which needs them")
        except NeurograftError as error:
            raise PydanticCustomError("method", "{message}", {"message": str(error)}) from error
        return self


class Tuning(Training):
    """Training a start further; of several learning rates validation chooses one.

    Attributes:
        lr: one learning rate or a list.
    """

    lr: Rates = (0.01,)


class Distilling(Tuning):
    """Training a start towards its teachers' outputs.

    Attributes:
        temperature: how much the teachers' outputs are flattened.
        soft: weight of the teachers' outputs.
        hard: weight of the labels.
        teachers: "members", "statistics" (the members weighted image by image by statistics of their own), or the
            number of one.
        inputs: on "training" images, or on the "calibration" inputs alone, which have no labels.
    """

    temperature: Annotated[float, Field(gt=0)] = 2.0
    soft: Annotated[float, Field(ge=0)] = 1.0
    hard: Annotated[float, Field(ge=0)] = 0.0
    teachers: Literal["members", "statistics"] | Annotated[int, Field(ge=0)] = "members"
    inputs: Literal["training", "calibration"] = "training"


class Tunings(Strict):
    """How starts are trained further; what is not named is not done."""

    finetune: Tuning | None = None
    distill: Distilling | None = None


class Synchronous(Strict):
    """Data-parallel training whose workers are fused after each epoch.

    Attributes:
        workers: processes, each with its own part of the images.
        methods: how they are fused.
    """

    workers: Several = 4
    methods: tuple[str, ...] = ("average", "transplant")


class StudySettings(Strict):
    """Everything that determines the trials of one case of a study.

    Attributes:
        kind: "pipeline": train members, fuse, recover, train on; "synchronous"; "costs": seconds and memory of fusing
            untrained networks.
        data: the images.
        network: `name` and what that network takes.
        members: how they are trained.
        mixing: the weight of the second of two members (for "transplant" its `fraction`); null: equal weights.
        starts: row -> how it is made. Every study has members, best member, ensemble, average and "continue" besides.
        recoveries: without training, of every fused start: "refit", "repair" and "batch_norm" on calibration images,
            "data_free" (REPAIR from the members' BatchNorm statistics).
        calibration: how many unlabelled inputs recoveries and methods read.
        inputs: what they are: "training" images; "crops" of them; "noise"; "statistics", inputs drawn from the moments
            of each member's own images; or the name of another data set.
        tuning: how starts are trained further.
        synchronous: for that kind.
        vary: dotted key -> values; every combination is a trial of its own.
        seeds: a number of seeds, or a list of them.
    """

    kind: Literal["pipeline", "synchronous", "costs"] = "pipeline"
    data: Data
    network: dict[str, Any]
    members: MemberSettings = MemberSettings(epochs=0)
    mixing: Annotated[float, Field(ge=0, le=1)] | None = None
    starts: dict[str, Start] = Field(default_factory=dict)
    recoveries: tuple[RecoveryKind, ...] = ("none",)
    calibration: PositiveInt = 1000
    inputs: str = "training"
    tuning: Tunings = Tunings()
    synchronous: Synchronous | None = None
    vary: dict[str, list[Any]] = Field(default_factory=dict)
    seeds: Seeds = (0,)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """What a preset set to null is gone, and a start without a method is called after it."""
        if not isinstance(data, dict):
            return data
        data = {key: value for key, value in data.items() if value is not None}
        starts = data.get("starts")
        if isinstance(starts, dict):
            kept = {row: start for row, start in starts.items() if start is not None}
            data["starts"] = {
                row: {"method": row, **start} if isinstance(start, dict) else start for row, start in kept.items()
            }
        return data

    def _check_networks(self) -> None:
        from neurograft_experiments.networks import check_network

        own = [start.options for start in self.starts.values() if start.method == "untrained"]
        try:
            for changes in ({}, *(self.members.networks or ()), *own):
                check_network({**self.network, **changes})
        except NeurograftError as error:
            raise PydanticCustomError("network", "{message}", {"message": str(error)}) from error

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self._check_networks()
        if self.kind == "pipeline" and "members" not in self.model_fields_set:
            raise PydanticCustomError("members", "members is missing: how the networks to fuse are trained", {})
        if self.mixing is not None and self.members.count != 2:
            raise PydanticCustomError("mixing", "mixing is for two members, there are {n}", {"n": self.members.count})
        if (self.kind == "synchronous") != (self.synchronous is not None):
            raise PydanticCustomError("synchronous", "kind: synchronous and the key synchronous go together", {})
        return self


class Plot(Strict):
    """What a study's plot shows.

    Attributes:
        x: "epoch" for curves, "row" for bars, or a key that varies.
        measure: as in a claim's quantity.
    """

    x: str = "epoch"
    measure: str = "accuracy"


class About(Strict):
    """What people read about a study.

    Attributes:
        title: a few words.
        question: what the study measures, as a question.
        paper: whose study it is.
        claims: of that paper, one by one.
        plot: what the plot shows.
    """

    title: str
    question: str
    paper: Literal["neuron transplantation", "optimal transport", "neurograft"]
    claims: tuple[Claim, ...] = ()
    plot: Plot = Plot()
