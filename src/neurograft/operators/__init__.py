"""How members that share a basis are combined: one frozen dataclass each, and the table of their names."""

from collections.abc import Mapping
from typing import Any

from neurograft.operators.arcee_fusion import ArceeFusion
from neurograft.operators.breadcrumbs import Breadcrumbs
from neurograft.operators.dare import Dare
from neurograft.operators.della import Della
from neurograft.operators.fisher import Fisher
from neurograft.operators.karcher import Karcher
from neurograft.operators.linear import Linear
from neurograft.operators.mean import Mean
from neurograft.operators.model_stock import ModelStock
from neurograft.operators.multi_slerp import MultiSlerp
from neurograft.operators.nearswap import NearSwap
from neurograft.operators.nuslerp import NuSlerp
from neurograft.operators.operator import Operator
from neurograft.operators.owned import Owned
from neurograft.operators.passthrough import Passthrough
from neurograft.operators.regmean import RegMean
from neurograft.operators.sce import Sce
from neurograft.operators.slerp import Slerp
from neurograft.operators.task_arithmetic import TaskArithmetic
from neurograft.operators.ties import Ties

OPERATORS: dict[str, type[Operator]] = {
    kind.name: kind
    for kind in (
        *(Mean, Owned, Linear, TaskArithmetic, Ties, Dare, Della, Breadcrumbs, Sce),
        *(Slerp, NuSlerp, MultiSlerp, Karcher, ModelStock, NearSwap, ArceeFusion, Fisher, RegMean, Passthrough),
    )
}
"""A new operator is one file, and its class in these lines."""

VARIANTS: dict[str, tuple[type[Operator], Mapping[str, Any]]] = {
    "dare_linear": (Dare, {}),
    "dare_ties": (Dare, {"consensus": "sum"}),
    "della_linear": (Della, {"consensus": "none", "normalize": False}),
    "breadcrumbs_ties": (Breadcrumbs, {"consensus": "sum"}),
}
"""Names by which operators with certain options are known."""
