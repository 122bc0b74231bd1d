"""Fusing without recovery, for tests of what a method alone does."""

from collections.abc import Sequence
from typing import Any

from torch import nn

import neurograft as ng


def planned(models: Sequence[nn.Module], inputs: Any, method: str = "transplant", **options: Any) -> nn.Module:
    """The plan, applied."""
    return ng.apply(ng.plan(models, inputs, method, **options), models)
