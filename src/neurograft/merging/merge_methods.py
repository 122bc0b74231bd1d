"""mergekit's merge methods by name: which operator each is, and what its parameters are called here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from neurograft.operators.arcee_fusion import ArceeFusion
from neurograft.operators.breadcrumbs import Breadcrumbs
from neurograft.operators.dare import Dare
from neurograft.operators.della import Della
from neurograft.operators.karcher import Karcher
from neurograft.operators.linear import Linear
from neurograft.operators.model_stock import ModelStock
from neurograft.operators.multi_slerp import MultiSlerp
from neurograft.operators.nearswap import NearSwap
from neurograft.operators.nuslerp import NuSlerp
from neurograft.operators.operator import Operator
from neurograft.operators.sce import Sce
from neurograft.operators.slerp import Slerp
from neurograft.operators.task_arithmetic import TaskArithmetic
from neurograft.operators.ties import Ties

BaseUse: TypeAlias = Literal["ancestor", "first member", "if given", "none"]
"""What `base_model` is: the members' ancestor, the first of two members, an ancestor if there is one, or nothing."""

Switches: TypeAlias = Callable[[Mapping[str, bool]], Mapping[str, Any]]


@dataclass(frozen=True)
class MergeMethod:
    """One of mergekit's methods.

    Attributes:
        operator: what computes it.
        base: what `base_model` is to it.
        each: its parameters that each model has its own of -> the operator's option.
        shared: its other numbers -> the operator's option.
        defaults: its parameters' defaults, by the operator's option, where they are not the operator's.
        required: parameters without a default.
        switches: its parameters that are true or false, with their defaults.
        refused: those of them that must not be true, and why.
        switched: the options that the switches stand for.
    """

    operator: type[Operator]
    base: BaseUse = "none"
    each: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    switches: Mapping[str, bool] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    switched: Switches = field(default=lambda _: {})

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of all its parameters."""
        return (*self.each, *self.shared, *self.switches)


def _task_vectors(
    operator: type[Operator],
    each: Mapping[str, str],
    normalize: bool,
    rescale: bool,
    options: Mapping[str, Any] | None = None,
) -> MergeMethod:
    """One of the methods that mergekit calls generalized task arithmetic."""
    random = "rescale" in operator.option_names()

    def switched(given: Mapping[str, bool]) -> Mapping[str, Any]:
        by_norm = {"rescale": "norm" if given["rescale"] else "none"} if random else {}
        return {"normalize": given["normalize"], **by_norm, **(options or {})}

    return MergeMethod(
        operator,
        "ancestor",
        {"weight": "weights", **each},
        {"lambda": "scale"},
        {"density": 1.0} if "density" in each else {},
        ("weight",),
        {"normalize": normalize, "int8_mask": False, "rescale": rescale},
        {} if random else {"rescale": "only what is chosen at random is rescaled (DARE, DELLA)"},
        switched,
    )


DENSITY = {"density": "density"}
DELLA = {**DENSITY, "epsilon": "epsilon"}
BREADCRUMBS = {**DENSITY, "gamma": "gamma"}


def _nuslerp(given: Mapping[str, bool]) -> Mapping[str, Any]:
    over = "tensor" if given["nuslerp_flatten"] else "first" if given["nuslerp_row_wise"] else "last"
    return {"over": over}


MERGE_METHODS: dict[str, MergeMethod] = {
    "linear": MergeMethod(
        Linear,
        each={"weight": "weights"},
        required=("weight",),
        switches={"normalize": True},
        switched=lambda given: {"normalize": given["normalize"]},
    ),
    "task_arithmetic": _task_vectors(TaskArithmetic, {}, False, False),
    "ties": _task_vectors(Ties, DENSITY, True, False),
    "dare_linear": _task_vectors(Dare, DENSITY, False, True, {"consensus": "none"}),
    "dare_ties": _task_vectors(Dare, DENSITY, False, True, {"consensus": "sum"}),
    "della": _task_vectors(Della, DELLA, True, True, {"consensus": "sum"}),
    "della_linear": _task_vectors(Della, DELLA, False, True, {"consensus": "none"}),
    "breadcrumbs": _task_vectors(Breadcrumbs, BREADCRUMBS, False, False, {"consensus": "none"}),
    "breadcrumbs_ties": _task_vectors(Breadcrumbs, BREADCRUMBS, False, False, {"consensus": "sum"}),
    "sce": MergeMethod(Sce, "ancestor", shared={"select_topk": "density"}, switches={"int8_mask": False}),
    "slerp": MergeMethod(Slerp, "first member", shared={"t": "t"}, required=("t",)),
    "nuslerp": MergeMethod(
        NuSlerp,
        "if given",
        each={"weight": "weights"},
        required=("weight",),
        switches={"nuslerp_flatten": True, "nuslerp_row_wise": False},
        switched=_nuslerp,
    ),
    "multislerp": MergeMethod(
        MultiSlerp,
        "if given",
        each={"weight": "weights"},
        required=("weight",),
        switches={"normalize_weights": True},
        switched=lambda given: {"normalize": given["normalize_weights"]},
    ),
    "karcher": MergeMethod(Karcher, shared={"max_iter": "iterations", "tol": "tolerance"}),
    "model_stock": MergeMethod(
        ModelStock,
        "ancestor",
        switches={"filter_wise": False},
        switched=lambda given: {"over": "rows" if given["filter_wise"] else "tensor"},
    ),
    "nearswap": MergeMethod(NearSwap, "first member", shared={"t": "t"}, required=("t",)),
    "arcee_fusion": MergeMethod(ArceeFusion, "first member"),
}
"""All of mergekit's methods that there is an operator for."""

LACKING = {
    "passthrough": "copies the layers of one model, or stacks those of several (a frankenmerge)",
    "ram": "is not implemented",
    "ramplus_tl": "is not implemented",
}
"""mergekit's methods that there is no operator for, and why."""
