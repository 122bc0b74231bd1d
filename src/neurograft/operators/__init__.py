"""How members that share a basis are combined: one frozen dataclass each, and the table that saved plans know."""

from neurograft.operators.mean import Mean
from neurograft.operators.operator import Operator
from neurograft.operators.owned import Owned

OPERATORS: dict[str, type[Operator]] = {kind.name: kind for kind in (Mean, Owned)}
"""A new operator is one file, and its class in this line."""
