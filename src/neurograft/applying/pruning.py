"""`prune`: structured pruning of one network, which is what transplanting does to a single member."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from neurograft.applying.application import assemble
from neurograft.applying.combining import joined_norms
from neurograft.applying.resizing import check_runs
from neurograft.applying.segmented import SegmentedNorm
from neurograft.errors import OptionError, PlanError
from neurograft.inputs import Batches, Inputs
from neurograft.members.members import Members
from neurograft.methods import method_of
from neurograft.methods.planner import plan_members
from neurograft.preserve_state import copy_of, keeps_random_state
from neurograft.tracing.graph import NeuronGraph
from neurograft.tracing.own_tensors import check_own_tensors
from neurograft.tracing.proof import examples_of


@keeps_random_state
def prune(
    model: nn.Module,
    example_inputs: Inputs,
    ratio: float | None = None,
    *,
    width: int | Mapping[str, int] | None = None,
    graph: NeuronGraph | None = None,
    calibration: Batches | None = None,
    fixed: str | Sequence[str] = (),
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Remove the least important neurons of every free group; the result is a smaller network of the same class.

    Pruning a combined network to the members' size is transplanting: `prune(combine(models, x), x,
    ratio=1 - 1/k)` equals `fuse(models, x, method="transplant")`. Norms that `combine` kept apart per member are
    joined again.

    Args:
        model: any network; it is only read.
        example_inputs: what it takes.
        ratio: the share of every group's neurons to remove, in [0, 1); 0.5 if neither it nor `width` is given.
        width: neurons to keep per group, one number for all or a mapping of patterns to numbers.
        graph: the graph of `model` if it was traced before.
        calibration: batches for importances that look at activations.
        fixed: fnmatch patterns of parameters whose neurons all stay.
        seed: the only source of randomness.
        options: as `method="transplant"` takes them: `importance`, `order`, `normalize`, …

    Raises:
        OptionError: an unknown option or a value outside its range.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> prune(net, torch.randn(1, 4), ratio=0.75)[0].out_features
        2

    Source: Öz et al. 2024, arXiv:2502.06849; Fang et al. 2023, arXiv:2301.12900 (group magnitude).
    """
    if not isinstance(model, nn.Module):
        raise PlanError(f"model is a {type(model).__name__}, not a torch.nn.Module")
    for name in ("strategy", "sequence", "fraction", "quota"):
        if name in options:
            raise OptionError(f"prune has no option {name!r}: it concerns several members")
    if ratio is None and width is None:
        ratio = 0.5
    method = method_of("transplant", {"ratio": ratio, "width": width, **options})
    if any(isinstance(module, SegmentedNorm) for module in model.modules()):
        model, graph = joined_norms(copy_of(model)), None
    alone = Members.single(model, example_inputs, graph=graph, fixed=fixed, calibration=calibration)
    plan = plan_members(alone, method, seed=seed)
    pruned, _ = assemble(plan, alone)
    check_own_tensors(pruned, [model], examples_of(example_inputs))
    check_runs(pruned, example_inputs, plan.sizes)
    return pruned
