"""One rule per ATen op, by family; importing this package fills the table `RULES`."""

from neurograft.tracing.rules import (
    attention,
    constants,
    contractions,
    convolutions,
    following,
    index_semantics,
    indexing,
    joining,
    norms,
    pieces,
    pointwise,
    recurrent,
    reductions,
    views,
)
from neurograft.tracing.rules.table import RULES, Result, Rule, rule

__all__ = [
    "RULES",
    "Result",
    "Rule",
    "attention",
    "constants",
    "contractions",
    "convolutions",
    "following",
    "index_semantics",
    "indexing",
    "joining",
    "norms",
    "pieces",
    "pointwise",
    "recurrent",
    "reductions",
    "rule",
    "views",
]
