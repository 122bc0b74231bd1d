"""neurograft: fuse several trained PyTorch networks into one of the same architecture."""

import importlib
import random
from typing import TYPE_CHECKING, Any

from neurograft._version import __version__ as __version__

if TYPE_CHECKING:
    from neurograft.advising.advice import advise as advise
    from neurograft.applying.application import apply as apply
    from neurograft.applying.combining import combine as combine
    from neurograft.applying.pruning import prune as prune
    from neurograft.evaluating.barrier import barrier as barrier
    from neurograft.evaluating.ensemble import Ensemble as Ensemble
    from neurograft.evaluating.evaluation import evaluate as evaluate
    from neurograft.fusing import Fusion as Fusion
    from neurograft.fusing import fuse as fuse
    from neurograft.inputs import PreparedBatches as PreparedBatches
    from neurograft.member_statistics.collecting import statistics as statistics
    from neurograft.member_statistics.statistics import Statistics as Statistics
    from neurograft.members.members import Members as Members
    from neurograft.merging.compare import compare as compare
    from neurograft.merging.merge import merge as merge
    from neurograft.merging.merge_adapters import merge_adapters as merge_adapters
    from neurograft.merging.recipe import Recipe as Recipe
    from neurograft.methods.average import Average as Average
    from neurograft.methods.optimal_transport import OptimalTransport as OptimalTransport
    from neurograft.methods.permutation import Permutation as Permutation
    from neurograft.methods.planner import plan as plan
    from neurograft.methods.symmetric import Symmetric as Symmetric
    from neurograft.methods.transplant import Transplant as Transplant
    from neurograft.methods.zip import Zip as Zip
    from neurograft.operators.arcee_fusion import ArceeFusion as ArceeFusion
    from neurograft.operators.breadcrumbs import Breadcrumbs as Breadcrumbs
    from neurograft.operators.dare import Dare as Dare
    from neurograft.operators.della import Della as Della
    from neurograft.operators.fisher import Fisher as Fisher
    from neurograft.operators.karcher import Karcher as Karcher
    from neurograft.operators.linear import Linear as Linear
    from neurograft.operators.model_stock import ModelStock as ModelStock
    from neurograft.operators.multi_slerp import MultiSlerp as MultiSlerp
    from neurograft.operators.nearswap import NearSwap as NearSwap
    from neurograft.operators.nuslerp import NuSlerp as NuSlerp
    from neurograft.operators.passthrough import Passthrough as Passthrough
    from neurograft.operators.regmean import RegMean as RegMean
    from neurograft.operators.sce import Sce as Sce
    from neurograft.operators.settings import Gradient as Gradient
    from neurograft.operators.slerp import Slerp as Slerp
    from neurograft.operators.task_arithmetic import TaskArithmetic as TaskArithmetic
    from neurograft.operators.ties import Ties as Ties
    from neurograft.plans.plan import FusionPlan as FusionPlan
    from neurograft.recovery.batch_norm import reestimate_batch_norm as reestimate_batch_norm
    from neurograft.recovery.refit import refit as refit
    from neurograft.recovery.repair import repair as repair
    from neurograft.tracing.graph import NeuronGraph as NeuronGraph
    from neurograft.tracing.permutation import permute as permute
    from neurograft.tracing.proof import verify as verify
    from neurograft.tracing.tracer import trace as trace
    from neurograft.training.distilling import distill as distill
    from neurograft.training.finetuning import finetune as finetune
    from neurograft.training.fresh import train as train
    from neurograft.training.sequences import fuse_in_sequence as fuse_in_sequence

# public name -> module that defines it; resolved on first use, so that `neurograft --help` imports no torch
_PUBLIC = {
    "ArceeFusion": "neurograft.operators.arcee_fusion",
    "Average": "neurograft.methods.average",
    "Breadcrumbs": "neurograft.operators.breadcrumbs",
    "Dare": "neurograft.operators.dare",
    "Della": "neurograft.operators.della",
    "Ensemble": "neurograft.evaluating.ensemble",
    "Fisher": "neurograft.operators.fisher",
    "Fusion": "neurograft.fusing",
    "FusionPlan": "neurograft.plans.plan",
    "Gradient": "neurograft.operators.settings",
    "Karcher": "neurograft.operators.karcher",
    "Linear": "neurograft.operators.linear",
    "Members": "neurograft.members.members",
    "ModelStock": "neurograft.operators.model_stock",
    "MultiSlerp": "neurograft.operators.multi_slerp",
    "NearSwap": "neurograft.operators.nearswap",
    "NeuronGraph": "neurograft.tracing.graph",
    "NuSlerp": "neurograft.operators.nuslerp",
    "OptimalTransport": "neurograft.methods.optimal_transport",
    "Passthrough": "neurograft.operators.passthrough",
    "Permutation": "neurograft.methods.permutation",
    "PreparedBatches": "neurograft.inputs",
    "Recipe": "neurograft.merging.recipe",
    "RegMean": "neurograft.operators.regmean",
    "Sce": "neurograft.operators.sce",
    "Slerp": "neurograft.operators.slerp",
    "Statistics": "neurograft.member_statistics.statistics",
    "Symmetric": "neurograft.methods.symmetric",
    "TaskArithmetic": "neurograft.operators.task_arithmetic",
    "Ties": "neurograft.operators.ties",
    "Transplant": "neurograft.methods.transplant",
    "Zip": "neurograft.methods.zip",
    "advise": "neurograft.advising.advice",
    "apply": "neurograft.applying.application",
    "barrier": "neurograft.evaluating.barrier",
    "combine": "neurograft.applying.combining",
    "compare": "neurograft.merging.compare",
    "distill": "neurograft.training.distilling",
    "evaluate": "neurograft.evaluating.evaluation",
    "finetune": "neurograft.training.finetuning",
    "fuse": "neurograft.fusing",
    "fuse_in_sequence": "neurograft.training.sequences",
    "merge": "neurograft.merging.merge",
    "merge_adapters": "neurograft.merging.merge_adapters",
    "permute": "neurograft.tracing.permutation",
    "plan": "neurograft.methods.planner",
    "prune": "neurograft.applying.pruning",
    "reestimate_batch_norm": "neurograft.recovery.batch_norm",
    "refit": "neurograft.recovery.refit",
    "repair": "neurograft.recovery.repair",
    "statistics": "neurograft.member_statistics.collecting",
    "trace": "neurograft.tracing.tracer",
    "train": "neurograft.training.fresh",
    "verify": "neurograft.tracing.proof",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


if not TYPE_CHECKING:  # type checkers read the imports above, so that they see a misspelt name

    def __getattr__(name: str) -> Any:
        if name not in _PUBLIC:
            raise AttributeError(f"module 'neurograft' has no attribute {name!r}")
        # some modules draw random numbers when they are imported
        state = random.getstate()
        try:
            forked_random_state = importlib.import_module("neurograft.preserve_state").forked_random_state
        finally:
            random.setstate(state)
        with forked_random_state():
            return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
