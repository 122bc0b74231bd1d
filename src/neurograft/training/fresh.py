"""Train a network from its first weights on."""

from collections.abc import Callable
from typing import Unpack

import torch
from torch import nn

from neurograft.errors import InputError
from neurograft.inputs import Batches, check_model
from neurograft.preserve_state import forked_random_state, keeps_random_state
from neurograft.training.finetuning import finetune
from neurograft.training.settings import TrainingSettings, settled, takes_settings


@keeps_random_state
@takes_settings
def train(make: Callable[[], nn.Module], batches: Batches, **settings: Unpack[TrainingSettings]) -> nn.Module:
    """Build a network and train it: its first weights, the order of the batches and dropout all come from `seed`.

    So members of an ensemble differ by their seed alone, and each can be made again. From there on it is `finetune`:
    with `validation` the best epoch is given back, otherwise the last one.

    Args:
        make: builds the network: a function or a class, called without arguments.
        batches: a re-iterable of `(inputs, labels)`; a shuffling DataLoader shuffles the same way for the same seed.
        **settings: see `TrainingSettings`.

    Raises:
        InputError: for batches that are empty, unlabelled, one-shot or hold NaN; if `make` builds no network.
        OptionError: for settings that do not exist or are out of range.
        TrainingDiverged: if the loss becomes NaN or infinite.
        CheckpointError: if `checkpoint` is of another training, or cannot be read or written.

    Example:
        >>> batches = [(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]))]
        >>> one, same, other = (train(lambda: nn.Linear(1, 2), batches, seed=seed) for seed in (1, 1, 2))
        >>> torch.equal(one.weight, same.weight), torch.equal(one.weight, other.weight)
        (True, False)
    """
    seed = settled(settings)["seed"]
    if isinstance(make, nn.Module) or not callable(make):
        raise InputError(
            f"make is a {type(make).__name__}: train builds the network itself, from a function or a class; "
            "finetune trains a network that is there"
        )
    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        forked_random_state(batches=batches, seed=seed),
    ):
        torch.manual_seed(seed)  # on every GPU too, as it is not known where `make` builds
        network = make()
    check_model(network, "what make gives")
    return finetune(network, batches, **settings)
