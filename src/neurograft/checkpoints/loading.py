"""From a checkpoint to a network in memory."""

from pathlib import Path

from torch import nn

from neurograft.checkpoints.naming import find_network
from neurograft.checkpoints.reading import Checkpoint, open_checkpoint


def load_into(model: nn.Module, source: Path | Checkpoint) -> nn.Module:
    """Put a checkpoint's tensors into `model`, which takes on their dtypes, and return it.

    Raises:
        CheckpointError: as `open_checkpoint` and `find_network`, and if the file changes meanwhile.
    """
    opened = open_checkpoint(source) if isinstance(source, Path) else source
    found, names = find_network(opened, model)
    own = model.state_dict(keep_vars=True)
    first = {id(own[name]): found.tensors[stored] for name, stored in names.items()}
    for tensor in own.values():
        tensor.data = tensor.data.to(first[id(tensor)].dtype)
    model.load_state_dict({name: first[id(tensor)] for name, tensor in own.items()})
    opened.check_unchanged()
    return model
