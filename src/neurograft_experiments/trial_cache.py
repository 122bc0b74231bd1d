"""What the trials of one process share: images, trained members, and the start that was made last."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from neurograft.applying.pruning import prune
from neurograft.checkpoints.loading import load_into
from neurograft.evaluating.evaluation import Scores, evaluate
from neurograft.fusing import Fusion
from neurograft_experiments.data import Images, Split, load_images
from neurograft_experiments.data.loading import SPLIT_SEED
from neurograft_experiments.networks import make_network as make_network
from neurograft_experiments.trials import JSON, key_of

Tick: TypeAlias = Callable[[str], None]
Kept = TypeVar("Kept")
IMAGES_KEPT, NETWORKS_KEPT, STARTS_KEPT, ANSWERS_KEPT = 3, 32, 3, 3


@dataclass(frozen=True, eq=False)
class Made:
    """A network to measure or train on.

    Attributes:
        network: the start; it is only read.
        fusion: how it was fused, None for starts that are no fusion.
        fuse: seconds of fusing.
        recover: seconds of recovering.
    """

    network: nn.Module
    fusion: Fusion | None
    fuse: float
    recover: float = 0.0


class MemberStore(Protocol):
    """Where rows and records are found, and members' tensors lie."""

    folder: Path

    def row(self, key: str) -> JSON:
        """The record of a finished member."""
        ...

    def member_path(self, key: str) -> Path:
        """The file of a member's tensors."""
        ...

    def unfinished_path(self, key: str) -> Path:
        """Where the state of a training that is not done may lie."""
        ...

    def __hash__(self) -> int:
        """Stores are told apart by identity."""
        ...


@dataclass(frozen=True, eq=False)
class Lab:
    """One store on one device; what was loaded or made stays at hand for the next trial.

    Attributes:
        store: where members are.
        data_folder: where local copies of data sets lie.
        device: where networks and images are.
        starts: that were made last.
        answers: of the teachers that were asked last.
    """

    store: MemberStore
    data_folder: Path | None
    device: torch.device
    _images: "OrderedDict[str, Images]" = field(default_factory=OrderedDict)
    _networks: "OrderedDict[str, nn.Module]" = field(default_factory=OrderedDict)
    starts: "OrderedDict[str, Made]" = field(default_factory=OrderedDict)
    answers: "OrderedDict[str, Tensor]" = field(default_factory=OrderedDict)

    def images(self, data: Mapping[str, Any]) -> Images:
        """The data set of `data` settings, on the device."""

        def load() -> Images:
            named = {name: data[name] for name in ("samples", "normalization")}
            images = load_images(data["source"], folder=self.data_folder, **named)
            if data.get("test") is not None:
                order = torch.randperm(len(images.test), generator=torch.Generator().manual_seed(SPLIT_SEED))
                images = replace(images, test=images.test.subset(order[: data["test"]]))
            return images.to(self.device)

        return keep(self._images, key_of({**data, "augment": None}), load, IMAGES_KEPT)

    def member(self, entry: Mapping[str, Any], images: Images) -> nn.Module:
        """A trained member, pruned if its entry says so."""

        def load() -> nn.Module:
            network = make_network(entry["network"], images.shape, images.classes)
            load_into(network, self.store.member_path(entry["key"]))
            if "pruned" in entry:
                network = prune(network, example_of(images), ratio=entry["pruned"])
            return network.to(self.device).eval()

        return keep(self._networks, key_of(entry), load, NETWORKS_KEPT)

    def untrained(self, network: Mapping[str, Any], images: Images, seed: int) -> nn.Module:
        """A new network from a seed; the caller's random state is not touched."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return make_network(network, images.shape, images.classes).to(self.device)


def keep(kept: "OrderedDict[str, Kept]", key: str, make: Callable[[], Kept], most: int) -> Kept:
    """The thing kept under a key, made if it is not there; the one used longest ago makes room."""
    if key not in kept:
        value = make()
        kept[key] = value
        while len(kept) > most:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


def example_of(images: Images) -> Tensor:
    """Two images, as tracing takes them."""
    return images.train.examples(2)


def calibration_of(images: Images, samples: int) -> Sequence[Tensor]:
    """Unlabelled training images in batches."""
    return torch.split(images.train.examples(samples), 250)


def scores_of(network: nn.Module, split: Split) -> JSON:
    """What a row says of a network on a split."""
    return scores_json(evaluate(network, split.batches()))


def scores_json(scores: Scores) -> JSON:
    """Scores as a row has them."""
    return {
        "accuracy": scores.accuracy,
        "loss": scores.loss,
        "calibration_error": scores.calibration_error,
        "samples": scores.samples,
    }


def rank(scores: Mapping[str, Any]) -> tuple[float, float]:
    """What "better" means when validation chooses: accuracy, then loss."""
    return scores["accuracy"], -scores["loss"]
