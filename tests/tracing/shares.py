"""How much of a network lies on free axes."""

from torch import nn

from neurograft.tracing.graph import NeuronGraph


def free_share(model: nn.Module, graph: NeuronGraph) -> float:
    """The share of the elements of all weights of two or more dims that lie on an axis of a free group."""
    weights = {name: x for name, x in model.named_parameters() if x.dim() > 1}
    on_free = [
        x.numel()
        for name, x in weights.items()
        if any(not graph[group].fixed for roles in graph.tensors[name].roles for group in roles)
    ]
    return sum(on_free) / sum(x.numel() for x in weights.values())
