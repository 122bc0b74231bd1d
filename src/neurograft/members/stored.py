"""One member on disk: a checkpoint, matched with the network it belongs to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from neurograft.checkpoints.naming import find_network
from neurograft.checkpoints.reading import Checkpoint, Renamed
from neurograft.errors import CheckpointError


@dataclass(frozen=True, eq=False)
class StoredMember:
    """One member on disk: `stored` maps the network's name of a tensor (of tied ones the first) to its stored name."""

    checkpoint: Checkpoint
    stored: Mapping[str, str]

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The tensors under the network's names, read from their files when they are used."""
        return Renamed(self.checkpoint.tensors, self.stored)

    def in_reading_order(self) -> dict[str, str]:
        """Stored names -> the network's, in the order of the files' bytes, so that the disk is read front to back."""
        names = {stored: name for name, stored in self.stored.items()}
        return {stored: names[stored] for stored in self.checkpoint.tensors if stored in names}


def stored_member(
    checkpoint: Checkpoint,
    network: nn.Module,
    ignored: Callable[[str], bool] = lambda _: False,
    renamed: Callable[[str], str] | None = None,
) -> StoredMember:
    """Match a checkpoint with the network it belongs to, which may be on the meta device.

    A tied tensor may be stored under any of its names; names for which `ignored` is true are passed over, and `renamed`
    turns a name in the files into the network's. See `find_network`.

    Raises:
        CheckpointError: tensors that are missing, extra or of another shape; a parametrised network.
    """
    if any(is_parametrized(module) for module in network.modules()):
        raise CheckpointError(
            f"{type(network).__name__} has parametrised weights (weight norm, …), which act as wholes and cannot be "
            "streamed tensor by tensor; fuse it in memory"
        )
    return StoredMember(*find_network(checkpoint, network, ignored=ignored, renamed=renamed))
