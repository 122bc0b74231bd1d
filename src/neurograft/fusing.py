"""`fuse`: plan, apply and recover in one call, and `Fusion`, which keeps what was made and how."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from neurograft.applying.application import apply
from neurograft.applying.resizing import check_runs
from neurograft.errors import OptionError, closest
from neurograft.evaluating.ensemble import Ensemble
from neurograft.inputs import Batches, Calibration, Inputs
from neurograft.member_statistics.statistics import Statistics
from neurograft.members.checks import Weights
from neurograft.members.members import Members, members_of
from neurograft.methods import choice_of
from neurograft.methods.method import Method
from neurograft.methods.planner import plan_members
from neurograft.operators.operator import Operator
from neurograft.plans.output_heads import Heads
from neurograft.plans.plan import FusionPlan
from neurograft.plans.shares import dominant_member, member_shares, shares_text
from neurograft.preserve_state import keeps_random_state
from neurograft.recovery.batch_norm import has_batch_norm, reestimated
from neurograft.recovery.refit import refitted
from neurograft.recovery.repair import repaired
from neurograft.recovery.report import Recovered, RecoveryReport
from neurograft.tracing.graph import NeuronGraph
from neurograft.tracing.own_tensors import check_own_tensors
from neurograft.tracing.proof import examples_of

Recovery: TypeAlias = Literal["auto", "refit", "repair", "batch_norm"]
TensorStamp: TypeAlias = tuple[tuple[int, int], ...]
RECOVERIES = ("auto", "refit", "repair", "batch_norm")


def stamp_of(model: nn.Module) -> TensorStamp:
    """Where each tensor of a network lies and how often it was written to, so that a change is noticed."""

    def stamp(tensor: torch.Tensor) -> tuple[int, int]:
        place = tensor.data_ptr() if tensor.layout is torch.strided else id(tensor)  # sparse ones lie in several places
        return place, 0 if tensor.is_inference() else tensor._version

    return tuple(map(stamp, (*model.parameters(), *model.buffers())))


@dataclass(frozen=True, slots=True)
class FusionReport:
    """What a fused network is made of, and what every recovery did to it; prints as text.

    Attributes:
        method: which method made it.
        shares: how much of the result is each member's; they sum to 1.
        recoveries: what was done to it without training, oldest first.
    """

    method: str
    shares: tuple[float, ...]
    recoveries: tuple[RecoveryReport, ...] = ()

    @property
    def recovery(self) -> RecoveryReport | None:
        """The last recovery; None for a network that was not recovered."""
        return self.recoveries[-1] if self.recoveries else None

    def __str__(self) -> str:
        return "\n".join([shares_text(self.shares), *map(str, self.recoveries)])


@dataclass(frozen=True, eq=False)
class Fusion:
    """A fused network, the plan and the members it was made by, and what was done to it since.

    Every recovery gives a new `Fusion`; the network of the one before stays as it is.

    Attributes:
        model: the fused network, an ordinary module of the members' class.
        plan: the plan it follows; `refit` may have weighted its neurons anew.
        members: what it was made of.
        recoveries: reports of what was done to it without training, oldest first.
        applied: the state of `model` as the plan made it. While it is in that state nothing need be compared; leave it
            out for any other network.

    Example:
        >>> import torch
        >>> nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in "ab"]
        >>> x = torch.randn(100, 4)
        >>> fusion = Fusion.of(Members(nets, x[:1]), "transplant", balance=True, quota=[1, 3])
        >>> fusion
        Fusion(transplant of 2 members: member 0 25%, member 1 75%)
        >>> fusion.refit([x])
        Fusion(transplant of 2 members: member 0 25%, member 1 75%; refit)
        >>> fusion.refit([x]).report.recovery.samples
        100
    """

    model: nn.Module
    plan: FusionPlan
    members: Members
    recoveries: tuple[RecoveryReport, ...] = ()
    applied: TensorStamp | None = None

    @classmethod
    @keeps_random_state
    def of(
        cls,
        members: Members,
        method: str | Method | Operator = "transplant",
        *,
        align: str | Method | None = None,
        base: nn.Module | str | Path | None = None,
        weights: Weights | None = None,
        calibration: Calibration | None = None,
        statistics: Sequence[Statistics] | None = None,
        recover: Recovery | None = None,
        heads: Heads = "average",
        seed: int = 0,
        **options: Any,
    ) -> "Fusion":
        """Plan and apply, and recover only if that is asked for; arguments as `fuse` takes them.

        Raises:
            NeurograftError: as `fuse`.
        """
        chosen, operator = choice_of(method, options, align)
        members = members_of(members, None, weights, calibration=calibration, base=base, statistics=statistics)
        check_recovery(recover, members.calibration)
        decided = plan_members(members, chosen, operator, heads=heads, seed=seed)
        model = apply(decided, members)
        check_own_tensors(model, members.networks, examples_of(members.example_inputs))
        if any(size != decided.graphs[0][name].size for name, size in decided.sizes.items()):
            check_runs(model, members.example_inputs, decided.sizes)
        return cls(model, decided, members, applied=stamp_of(model)).recovered(recover)

    @property
    def report(self) -> FusionReport:
        """How much of the network is each member's, and what every recovery did."""
        return FusionReport(self.plan.method, member_shares(self.plan), self.recoveries)

    @keeps_random_state
    def refit(self, batches: Batches | None = None, **options: Any) -> "Fusion":
        """`neurograft.refit`, with its options; on the members' calibration batches if none are given.

        Where members brought statistics, the target is the ensemble these make of classifiers; for other networks pass
        `target=None`, or an `Ensemble` of the members with the vote average.
        """
        calibration = self._batches(batches, "refit")
        if self.members.statistics is not None:
            options.setdefault(
                "target", Ensemble(self.members.networks, "probabilities", statistics=self.members.statistics)
            )
        applied = self.applied is not None and self.applied == stamp_of(self.model)
        return self._after(refitted(self.model, self.plan, self.members, calibration, applied=applied, **options))

    @keeps_random_state
    def repair(self, batches: Batches | None = None, **options: Any) -> "Fusion":
        """`neurograft.repair`, with its options; without batches from the members' running statistics alone."""
        return self._after(repaired(self.model, self.plan, self.members, batches, **options))

    @keeps_random_state
    def reestimate_batch_norm(self, batches: Batches | None = None) -> "Fusion":
        """`neurograft.reestimate_batch_norm`; on the members' calibration batches if none are given."""
        return self._after(reestimated(self.model, self._batches(batches, "batch_norm")))

    @keeps_random_state
    def recovered(self, recover: Recovery | None, batches: Batches | None = None) -> "Fusion":
        """The recovery of that name, or with "auto" the one that suits; on the members' calibration batches by default.

        Raises:
            OptionError: an unknown recovery, or one that needs calibration batches and has none.
        """
        batches = self.members.calibration if batches is None else batches
        check_recovery(recover, batches)
        if recover == "auto":
            recover = self._suitable(batches)
        if recover == "refit":
            return self.refit(batches)
        if recover == "batch_norm":
            return self.reestimate_batch_norm(batches)
        return self.repair(batches) if recover == "repair" else self

    def _suitable(self, batches: Batches | None) -> Recovery | None:
        if batches is not None:
            return "refit"
        # selections carry their statistics with them, and the vanilla average is the plain mean by definition
        merged = bool(self.plan.maps) and not self.plan.owned
        return "repair" if merged and has_batch_norm(self.model) else None

    def _batches(self, batches: Batches | None, recover: str) -> Batches:
        given = self.members.calibration if batches is None else batches
        check_recovery(recover, given)
        assert given is not None
        return given

    def _after(self, found: Recovered) -> "Fusion":
        plan = self.plan if found.plan is None else found.plan
        recoveries = (*self.recoveries, found.report)
        return replace(self, model=found.model, plan=plan, recoveries=recoveries, applied=None)

    def __repr__(self) -> str:
        done = "".join(f"; {report.recovery}" for report in self.recoveries)
        shares = shares_text(self.report.shares)
        return f"Fusion({self.plan.method} of {self.plan.members} members: {shares}{done})"


@keeps_random_state
def fuse(
    models: Sequence[nn.Module] | Members,
    example_inputs: Inputs | None = None,
    method: str | Method | Operator = "transplant",
    weights: Weights | None = None,
    graph: NeuronGraph | None = None,
    calibration: Calibration | None = None,
    recover: Recovery | None = "auto",
    *,
    statistics: Sequence[Statistics] | None = None,
    align: str | Method | None = None,
    base: nn.Module | str | Path | None = None,
    fixed: str | Sequence[str] = (),
    heads: Heads = "average",
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Fuse trained networks into one of the same class: `apply(plan(models, ...), models)`, then recover.

    It warns where one member supplies more than nine tenths of the result, and of products of parameters (LoRA) whose
    factors are fused apart. `Fusion.of` takes the same steps and keeps
    plan and reports.

    Args:
        models: at least two networks of one class, or `Members`, which carry example inputs, graph and fixed patterns.
        example_inputs: what the networks take: a tensor, a tuple of arguments, or a dict of keyword arguments.
        method: a method with its options, such as `ng.Transplant(balance=True)`, or its name; or an operator, such as
            `ng.Ties(density=0.5)`, or its name.
        weights: one number per member, normalised to sum to 1, or patterns of tensor names -> one number per member.
        graph: the graph of `models[0]` if it was traced before.
        calibration: a re-iterable of batches, for methods and recovery that look at activations. "noise" stands for
            inputs drawn at random, for those who have nothing else.
        recover: what is done without training to the fused network. "refit", "repair" or "batch_norm" on the
            calibration batches; None for nothing; "auto" refits if there are any, repairs the statistics of
            BatchNorms from the members' own if there are none and neurons were merged (a transplant and the vanilla
            average stay as published; name "repair" to have it there too).
        align: for an operator, the method that brings members into one basis first; see `plan`.
        base: for an operator, the network that all members were trained from; see `plan`.
        statistics: what every member sent of its own data, one `Statistics` each. Without calibration batches inputs
            are drawn from them, so no data is needed; refit brings the outputs towards the members weighted by
            whose data each input resembles: probabilities, as classifiers' outputs are taken to be (with
            `Fusion.refit(target=...)` for other networks).
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
    """
    choice_of(method, options, align)  # refused before the networks are traced
    carried = models.calibration if isinstance(models, Members) else None
    check_recovery(recover, next((own for own in (calibration, statistics, carried) if own is not None), None))
    members = members_of(models, example_inputs, weights, graph, fixed, calibration, base, statistics)
    fusion = Fusion.of(members, method, align=align, recover=recover, heads=heads, seed=seed, **options)
    shares = fusion.report.shares
    if dominant_member(shares) is not None:
        warnings.warn(f"{shares_text(shares)}; see `Fusion` for a report", stacklevel=3)
    for note in members.factor_warnings:
        warnings.warn(note, stacklevel=3)
    return fusion.model


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
            f"recover={recover!r} looks at activations: pass calibration=, some unlabelled batches, or "
            "statistics= (on the command line --calibration or --statistics)"
        )
