"""One member on disk: a checkpoint, matched with the network it belongs to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from neurograft.checkpoints.loading import check_names
from neurograft.checkpoints.reading import Checkpoint, Renamed
from neurograft.errors import CheckpointError


@dataclass(frozen=True, eq=False)
class StoredMember:
    """One member on disk: `stored` maps the network's name of a tensor (of tied ones the first) to its stored name."""

    checkpoint: Checkpoint
    stored: Mapping[str, str]

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The tensors under the network's names, mapped from their files."""
        return Renamed(self.checkpoint.tensors, self.stored)

    def in_reading_order(self) -> dict[str, str]:
        """Stored names -> the network's, in the order of the files' bytes, so that the disk is read front to back."""
        names = {stored: name for name, stored in self.stored.items()}
        return {stored: names[stored] for stored in self.checkpoint.tensors if stored in names}


def stored_member(
    checkpoint: Checkpoint,
    network: nn.Module,
    ignored: Callable[[str], bool] | None = None,
    renamed: Callable[[str], str] | None = None,
) -> StoredMember:
    """Match a checkpoint with the network it belongs to, which may be on the meta device.

    A tied tensor may be stored under any of its names. Buffers that the network does not save are passed over,
    and so are names for which `ignored` is true; `renamed` turns a name in the files into the network's.

    Raises:
        CheckpointError: tensors that are missing, extra or of another shape; a parametrised network.
    """
    if any(is_parametrized(module) for module in network.modules()):
        raise CheckpointError(
            f"{type(network).__name__} has parametrised weights (weight norm, …), which act as wholes and cannot be "
            "streamed tensor by tensor; fuse it in memory"
        )
    own = network.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for name, tensor in own.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{type(network).__name__} keeps {name!r}, which is no tensor; it cannot be streamed")
        first.setdefault(id(tensor), name)
    unsaved = {name for name, _ in network.named_buffers()} - own.keys()
    stored: dict[str, str] = {}
    extra = []
    for name in checkpoint.tensors:
        known = name if name in own or renamed is None else renamed(name)
        if known in own:
            canonical = first[id(own[known])]
            if known == canonical or canonical not in stored:
                stored[canonical] = name
        elif known not in unsaved and not (ignored is not None and (ignored(name) or ignored(known))):
            extra.append(name)
    missing = [name for name in first.values() if name not in stored]
    check_names(checkpoint.path, type(network).__name__, missing, extra)
    for canonical, name in stored.items():
        found, expected = tuple(checkpoint.tensors[name].shape), tuple(own[canonical].shape)
        if found != expected:
            raise CheckpointError(
                f"{checkpoint.path}: {name} has shape {found}, but {type(network).__name__} expects {expected}"
            )
    return StoredMember(checkpoint, stored)
