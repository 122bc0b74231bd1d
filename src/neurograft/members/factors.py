"""Weights that act as a product of parameters (LoRA and its kin, low-rank layers), whose factors fuse apart."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn.utils import parametrize

from neurograft.members.states import State
from neurograft.tracing.graph import NeuronGraph

# what the two factors are called, in PEFT, loralib, torchtune, diffusers and LyCORIS
NAMES = (
    *(("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"), ("lora_a", "lora_b")),
    *(("lora_down", "lora_up"), ("lora.down", "lora.up")),
    *(("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b"), ("lokr_w1_a", "lokr_w1_b"), ("lokr_w2_a", "lokr_w2_b")),
    *(("lokr_w1", "lokr_w2"), ("oft_a", "oft_b")),
)


def factor_warnings(model: nn.Module, states: Sequence[State], graph: NeuronGraph) -> tuple[str, ...]:
    """Warn of products whose factors both differ between members: the mean of factors is not the mean of products.

    With factors A_m, B_m of the members, Σ_m w_m B_m · Σ_m w_m A_m ≠ Σ_m w_m B_m A_m; they are equal where all members
    share one factor.

    Args:
        model: member 0.
        states: the members' tensors.
        graph: member 0's graph, which has the products that an op makes of parameters.
    """
    pairs = dict.fromkeys((*_by_name(states[0]), *_multiplied(graph), *_parametrised(model, states[0])))
    apart = [pair for pair in pairs if all(_differs(name, states) for name in pair)]
    if not apart:
        return ()
    more = f" (and {len(apart) - 1} more products)" if len(apart) > 1 else ""
    return (
        f"{' and '.join(apart[0])}{more} are factors of a product, which are fused apart: what they make then is not "
        "the mean of what the members' make; merge adapters with merge_adapters (neurograft merge-adapters), merge "
        "each into its weights before (merge_and_unload of PEFT), or fuse members that share one of the factors",
    )


def _by_name(state: State) -> Iterator[tuple[str, ...]]:
    for name in state:
        for first, second in NAMES:
            if first in name and name.replace(first, second) in state:
                yield name, name.replace(first, second)


def _multiplied(graph: NeuronGraph) -> Iterator[tuple[str, ...]]:
    for names in graph.products:
        factors = tuple(name for name in names if sum(n > 1 for n in graph.tensors[name].shape) > 1)
        if len(factors) > 1:
            yield factors


def _parametrised(model: nn.Module, state: State) -> Iterator[tuple[str, ...]]:
    for path, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for weight, steps in module.get_submodule("parametrizations").named_children():
            prefix = f"{path}." if path else ""
            own = [f"{prefix}parametrizations.{weight}.{name}" for name, _ in steps.named_parameters()]
            inner = tuple(n for n in own if n in state and ".original" not in n and state[n].dim() > 1)
            if len(inner) > 1:
                yield inner


def _differs(name: str, states: Sequence[State]) -> bool:
    first = states[0][name]
    if first.is_meta:
        return True
    return any(
        state[name].shape != first.shape or not torch.equal(state[name].to(first), first) for state in states[1:]
    )


__all__ = ["factor_warnings"]
