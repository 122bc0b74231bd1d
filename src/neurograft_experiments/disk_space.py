"""How much disk the tasks that are left will take, found out before anything is trained."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from neurograft.errors import NeurograftError
from neurograft_experiments.data.loading import shape_of
from neurograft_experiments.engine import TaskQueue
from neurograft_experiments.networks import is_factory, make_network
from neurograft_experiments.store import ROW_BYTES, Store
from neurograft_experiments.trials import Task

UNKNOWN_BYTES = 50_000_000
"""For a network that cannot be built without its data, or may not be."""


def room_for(tasks: Sequence[Task], store: Store, *, imports: bool = True) -> int:
    """Bytes that rows and members will take, and the training state of a member (weights, momentum, best so far).

    Args:
        tasks: of a study.
        store: what is done already takes nothing more.
        imports: whether factories that the study names may be imported, to build their networks.
    """
    left = TaskQueue(tasks, store).pending.values()
    sizes: dict[str, int] = {}
    members = 0
    for task in left:
        if task.kind == "member":
            named = json.dumps([task.settings.get("network"), task.settings.get("data")], sort_keys=True)
            if named not in sizes:
                unknown = not imports and is_factory(task.settings["network"])
                sizes[named] = UNKNOWN_BYTES if unknown else member_bytes(task.settings)
            members += sizes[named]
    return members + 4 * max(sizes.values(), default=0) + ROW_BYTES * len(left)


def member_bytes(settings: Mapping[str, Any]) -> int:
    """About what the tensors of a member take; the network is built without memory for its weights.

    Example:
        >>> network = {"name": "mlp", "width": 16, "depth": 1, "bias": False}
        >>> member_bytes({"network": network, "data": {"source": "digits"}})
        4736
    """
    shape, classes = shape_of(str(settings.get("data", {}).get("source")))
    try:
        with torch.device("meta"):
            network = make_network(settings["network"], shape, classes)
    except (NeurograftError, KeyError, RuntimeError, NotImplementedError):
        return UNKNOWN_BYTES
    return sum(tensor.nbytes for tensor in network.state_dict().values())
