"""BatchNorm statistics of a fused network from the members' own, without a single sample."""

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from neurograft.axes.layout import Layout
from neurograft.members.members import Members
from neurograft.members.states import State
from neurograft.plans.plan import FusionPlan
from neurograft.recovery.report import LayerRecovery, RecoveryReport
from neurograft.recovery.targets import planned_part
from neurograft.recovery.watching import shown
from neurograft.tracing.flow import MOVING
from neurograft.tracing.graph import Kind, NeuronGraph, Use

PRESERVING = MOVING | {"relu", "leaky_relu", "prelu", "gelu", "silu", "elu", "hardswish", "hardtanh", "mish"}
"""Ops between a layer and its BatchNorm after which σ² still grows with |W|²: exactly for ReLUs, roughly for others."""


def repair_without_data(own: State, plan: FusionPlan, members: Members, started: float) -> RecoveryReport:
    """Set the running statistics of every BatchNorm right behind a convolution or linear layer, in place in `own`.

    What a neuron reads is as large, per unit of weight, as its member's: σ² = |W|² Σ_m c_m A_m (σ_m² / |W_m|²).
    Where neurons have one owner that member's mean shrinks with the weights that are left, μ = A_m μ_m |W|²/|W_m|²;
    merged neurons keep the planned mean.
    """
    lines = []
    with torch.no_grad():
        for layer, *names in _pairs(plan.graph):
            power, mean, planned = (torch.zeros_like(own[names[1]], dtype=torch.float64) for _ in range(3))
            for m, state in enumerate(members.states):
                layout = plan.graphs[m].tensors[layer.tensor].layouts[0]
                size = _size(state[layer.tensor]).clamp_min(torch.finfo(torch.float32).tiny)
                both = torch.stack([state[names[1]].double() / size, state[names[0]].double(), size])
                rates = _mixed(both, layout, plan, layer, m)
                power, mean, planned = power + rates[0], mean + rates[1], planned + rates[2]
            size = _size(own[layer.tensor])
            share = (size / planned.clamp_min(torch.finfo(torch.float32).tiny)).clamp(max=1)
            own[names[1]].copy_(size * power)
            own[names[0]].copy_(mean * share if plan.owned else mean)
            lines.append(LayerRecovery(shown(names[0]), "statistics", note="from the members' statistics"))
    seconds = time.perf_counter() - started
    notes = () if lines else ("no BatchNorm stands right behind a layer: nothing was changed",)
    return RecoveryReport("repair without data", tuple(lines), 0, 0, seconds, notes)


def _pairs(graph: NeuronGraph) -> Iterator[tuple[Use, str, str]]:
    """Every layer whose output a BatchNorm reads, with the names of its running mean and variance."""
    layers = {use.node: use for use in graph.uses if use.output_dims.get(0) == 1}
    for node, edges in zip(graph.flow.nodes, graph.flow.into, strict=True):
        mean, variance = (_of_kind(node.tensors, graph, kind) for kind in ("mean", "variance"))
        layer = layers.get(edges[0].source) if edges and PRESERVING.issuperset(edges[0].ops) else None
        if mean and variance and layer and graph.tensors[layer.tensor].kind == "weight":
            yield layer, mean, variance


def _of_kind(names: Sequence[str], graph: NeuronGraph, kind: Kind) -> str | None:
    return next((name for name in names if graph.tensors[name].kind == kind), None)


def _size(weight: Tensor) -> Tensor:
    """|W|² per output neuron."""
    return weight.detach().double().flatten(1).square().sum(1)


def _mixed(rows: Tensor, layout: Layout, plan: FusionPlan, layer: Use, member: int) -> Tensor:
    fused = plan.graph.tensors[layer.tensor].layouts[0]
    return planned_part(rows, layout, fused, layer.tensor, plan, member)
