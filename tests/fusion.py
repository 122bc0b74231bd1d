"""Fusing without recovery, for tests of what a method alone does; recovery with its report."""

from collections.abc import Sequence
from typing import Any

from torch import nn

import neurograft as ng
from neurograft.inputs import Batches
from neurograft.plans.check_members import members_for
from neurograft.recovery.refit import refitted
from neurograft.recovery.repair import repaired
from neurograft.recovery.report import RecoveryReport


def planned(models: Sequence[nn.Module], inputs: Any, method: str = "transplant", **options: Any) -> nn.Module:
    """The plan, applied."""
    return ng.apply(ng.plan(models, inputs, method, **options), models)


def refit_and_report(
    fused: nn.Module, plan: ng.FusionPlan, models: Sequence[nn.Module], batches: Batches, **options: Any
) -> tuple[nn.Module, RecoveryReport]:
    """What `ng.refit` gives, and what it did to every layer."""
    found = refitted(fused, plan, members_for(plan, models), batches, **options)
    return found.model, found.report


def repair_and_report(
    fused: nn.Module, plan: ng.FusionPlan, models: Sequence[nn.Module], batches: Batches | None = None
) -> tuple[nn.Module, RecoveryReport]:
    """What `ng.repair` gives, and what it did to every layer."""
    found = repaired(fused, plan, members_for(plan, models), batches)
    return found.model, found.report
