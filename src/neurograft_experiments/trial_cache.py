"""What the trials of one process share: images, trained members, and what was made last."""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from neurograft.applying.pruning import prune
from neurograft.checkpoints.writing import PROVENANCE
from neurograft.evaluating.evaluation import Scores, evaluate
from neurograft.fusing import Fusion
from neurograft_experiments.data import Images, Split, load_images
from neurograft_experiments.data.loading import SPLIT_SEED
from neurograft_experiments.networks import make_network
from neurograft_experiments.trials import JSON, MemberNetworks, key_of

Value = TypeVar("Value")
MOST = {"images": 3, "networks": 32, "starts": 3, "outputs": 3, "statistics": 2}
"""Of each kind so many are kept."""


@dataclass(frozen=True, eq=False)
class InitialModel:
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


class TrialCache:
    """What was used last on one device; of each kind the oldest makes room."""

    def __init__(self, data_folder: Path | None, device: torch.device) -> None:
        self.data_folder, self.device = data_folder, device
        self._kept: dict[str, OrderedDict[str, Any]] = {kind: OrderedDict() for kind in MOST}

    def keep(self, kind: str, settings: Mapping[str, Any], make: Callable[[], Value]) -> Value:
        """The thing of these settings, made if it is not there."""
        kept, key = self._kept[kind], key_of(settings)
        if key not in kept:
            kept[key] = make()
            while len(kept) > MOST[kind]:
                kept.popitem(last=False)
        kept.move_to_end(key)
        value: Value = kept[key]
        return value

    def images(self, data: Mapping[str, Any]) -> Images:
        """The data set of `data` settings, on the device."""

        def load() -> Images:
            named = {name: data[name] for name in ("samples", "normalization")}
            images = load_images(data["source"], folder=self.data_folder, **named)
            if data.get("test") is not None:
                order = torch.randperm(len(images.test), generator=torch.Generator().manual_seed(SPLIT_SEED))
                images = replace(images, test=images.test.subset(order[: data["test"]]))
            return images.to(self.device)

        return self.keep("images", {**data, "augment": None}, load)

    def member(self, entry: Mapping[str, Any], images: Images, members: MemberNetworks) -> nn.Module:
        """A trained member, pruned if its entry names a ratio."""

        def load() -> nn.Module:
            network = make_network(entry["network"], images.shape, images.classes)
            network.load_state_dict(safetensors.torch.load(members.tensors(entry["key"])))
            if "pruned" in entry:
                network = prune(network, example_of(images), ratio=entry["pruned"])
            return network.to(self.device).eval()

        return self.keep("networks", entry, load)

    def untrained(self, network: Mapping[str, Any], images: Images, seed: int) -> nn.Module:
        """A new network from a seed; the caller's random state is not touched."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return make_network(network, images.shape, images.classes).to(self.device)


@lru_cache(maxsize=1)
def cache_of(folder: Path, data_folder: Path | None, device: torch.device) -> TrialCache:
    """This process's cache for the store in a folder."""
    del folder
    return TrialCache(data_folder, device)


def packed(network: nn.Module, provenance: Mapping[str, Any]) -> bytes:
    """A network's tensors as the bytes of a safetensors file; tied tensors are there under each of their names."""
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }
    return safetensors.torch.save(tensors, {"format": "pt", PROVENANCE: json.dumps(provenance, sort_keys=True)})


def example_of(images: Images) -> Tensor:
    """Two images, as tracing takes them."""
    return images.train.examples(2)


def scores_of(network: nn.Module, split: Split) -> JSON:
    """The scores of a network on a split, as a row has them."""
    return scores_json(evaluate(network, split.batches()))


def scores_json(scores: Scores) -> JSON:
    """Scores as a row has them."""
    return {name: getattr(scores, name) for name in ("accuracy", "loss", "calibration_error", "samples")}


def rank(scores: Mapping[str, Any]) -> tuple[float, float]:
    """What "better" means when validation chooses: accuracy, then loss."""
    return scores["accuracy"], -scores["loss"]
