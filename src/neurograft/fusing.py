"""`fuse`: plan, apply and recover in one call."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from torch import nn

from neurograft.applying.application import apply
from neurograft.applying.resizing import check_runs
from neurograft.errors import OptionError, closest
from neurograft.inputs import Batches, Inputs
from neurograft.members.members import Members, members_of
from neurograft.methods import method_of
from neurograft.methods.method import Method
from neurograft.methods.planner import plan_members
from neurograft.plans.output_heads import Heads
from neurograft.plans.plan import FusionPlan
from neurograft.recovery.batch_norm import has_batch_norm, reestimate_batch_norm
from neurograft.recovery.refit import refit
from neurograft.recovery.repair import repair
from neurograft.tracing.graph import NeuronGraph

Recovery: TypeAlias = Literal["auto", "refit", "repair", "batch_norm"]
RECOVERIES = ("auto", "refit", "repair", "batch_norm")


def fuse(
    models: Sequence[nn.Module] | Members,
    example_inputs: Inputs | None = None,
    method: str | Method = "transplant",
    weights: Sequence[float] | None = None,
    graph: NeuronGraph | None = None,
    calibration: Batches | None = None,
    recover: Recovery | None = "auto",
    *,
    fixed: Sequence[str] = (),
    heads: Heads = "average",
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Fuse trained networks into one of the same class: `apply(plan(models, ...), models)`, then recover.

    Args:
        models: at least two networks of one class, or `Members`, which carry example inputs, graph and fixed patterns.
        example_inputs: what the networks take: a tensor, a tuple of arguments, or a dict of keyword arguments.
        method: a method with its options, such as `ng.Transplant(balance=True)`, or its name.
        weights: one number per member, normalised to sum to 1.
        graph: the graph of `models[0]` if it was traced before.
        calibration: a re-iterable of batches, for methods and recovery that look at activations.
        recover: what is done without training to the fused network. "refit", "repair" or "batch_norm" on the
            calibration batches; None for nothing; "auto" refits if there are any, repairs the statistics of
            BatchNorms from the members' own if there are none and neurons were merged (a transplant and the vanilla
            average stay as published; ask for "repair" to have it there too); `recovery_report(fused)` says which.
        fixed: fnmatch patterns of parameters whose neurons stay where they are.
        heads: "average" fuses the layers that make the outputs too, "keep" leaves every member its own; see `plan`.
        seed: the only source of randomness.
        options: the options of a method that is given by name.

    Raises:
        OptionError: an unknown recovery, or one that needs calibration batches and has none.
        NeurograftError: as `plan`, `apply` and the recovery do.

    Example:
        >>> import torch, neurograft as ng
        >>> nets = [torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)) for _ in "ab"]
        >>> ng.fuse(nets, torch.randn(1, 4))[0].weight.shape
        torch.Size([8, 4])
        >>> ng.recovery_report(ng.fuse(nets, torch.randn(1, 4), calibration=[torch.randn(100, 4)])).recovery
        'refit'
    """
    check_recovery(recover, calibration)
    chosen = method_of(method, options)
    members = members_of(models, example_inputs, weights, graph, fixed, calibration)
    decided = plan_members(members, chosen, heads=heads, seed=seed)
    fused = apply(decided, members)
    if any(size != decided.graphs[0][name].size for name, size in decided.sizes.items()):
        check_runs(fused, members.example_inputs, decided.sizes)
    return recovered(fused, decided, members, members.calibration, recover)


def check_recovery(recover: str | None, calibration: object) -> None:
    """Refuse a recovery that is unknown or lacks its batches, before any work is done.

    Raises:
        OptionError: with the closest known names, or what to pass.
    """
    if recover is not None and recover not in RECOVERIES:
        raise OptionError(
            f"unknown recover={recover!r}; {closest(str(recover), RECOVERIES)}; for nothing None (on the command line: "
            "none)"
        )
    if recover in ("refit", "batch_norm") and calibration is None:
        raise OptionError(
            f"recover={recover!r} looks at activations: pass calibration=, some unlabelled batches (on the command "
            "line --calibration)"
        )


def recovered(
    fused: nn.Module,
    decided: FusionPlan,
    models: Sequence[nn.Module] | Members,
    calibration: Batches | None,
    recover: Recovery | None,
) -> nn.Module:
    """The fused network after the recovery that was asked for, or that suits it."""
    if recover == "auto":
        if calibration is not None:
            recover = "refit"
        else:
            # selections carry their statistics with them, and the vanilla average is the plain mean by definition
            merged = bool(decided.maps) and not decided.owned
            recover = "repair" if merged and has_batch_norm(fused) else None
    if recover == "refit":
        assert calibration is not None
        return refit(fused, decided, models, calibration)
    if recover == "batch_norm":
        assert calibration is not None
        return reestimate_batch_norm(fused, calibration)
    return repair(fused, decided, models, calibration) if recover == "repair" else fused
