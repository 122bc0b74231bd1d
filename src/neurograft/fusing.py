"""`fuse`: plan, apply and recover in one call."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from neurograft.applying.application import apply
from neurograft.inputs import Batches, Inputs
from neurograft.planning.planner import plan
from neurograft.tracing.graph import NeuronGraph


def fuse(
    models: Sequence[nn.Module],
    example_inputs: Inputs,
    method: str = "transplant",
    weights: Sequence[float] | None = None,
    graph: NeuronGraph | None = None,
    calibration: Batches | None = None,
    *,
    fixed: Sequence[str] = (),
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Fuse trained networks into one of the same class: `apply(plan(models, ...), models)`.

    Args:
        models: at least two networks of one class.
        example_inputs: what the networks take: a tensor, a tuple of arguments, or a dict of keyword arguments.
        method: "average", "transplant", …; see `neurograft.planning.methods.METHODS`.
        weights: one number per member, normalised to sum to 1.
        graph: the graph of `models[0]` if it was traced before.
        calibration: a re-iterable of batches, for methods and recovery that look at activations.
        fixed: fnmatch patterns of parameters whose neurons stay where they are.
        seed: the only source of randomness.
        options: the method's own options.

    Raises:
        NeurograftError: as `plan` and `apply` do.

    Example:
        >>> import torch, neurograft as ng
        >>> nets = [torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)) for _ in "ab"]
        >>> ng.fuse(nets, torch.randn(1, 4))[0].weight.shape
        torch.Size([8, 4])
    """
    decided = plan(
        models, example_inputs, method, weights, graph, calibration=calibration, fixed=fixed, seed=seed, **options
    )
    return apply(decided, models)
