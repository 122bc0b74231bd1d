"""Every Hugging Face network: average and transplant run, and members run side by side or it is said why not."""

import copy
from typing import Any

import pytest
import torch
from tests.tracing.huggingface import HUGGINGFACE, made
from torch import Tensor, nn

import neurograft as ng
from neurograft.errors import NeurograftError
from neurograft.inputs import call
from neurograft.tracing.labelling import pinned_outputs

pytest.importorskip("transformers")

# what no wide network can be, and why
APART = {
    "clip": "contracted over: visual_projection.weight:0",  # compares two projections
    "bloom": "contracted over: transformer.h.0.self_attention.query_key_value",  # ALiBi fixes heads: q·k over both
    "falcon": "they would meet inside",  # rotary fixes the one key/value head
    "gemma": "they would meet inside: group model.layers.0.self_attn.k_proj.weight:0 is fixed",  # the same
    "mixtral": "would choose among all members' units at once",  # experts compete
    "mamba": "contracted over: backbone.layers.0.mixer.A_log:1",  # states are contracted as they are made
}


def pair(name: str) -> tuple[list[nn.Module], dict[str, Any]]:
    """Two members in float64, the second with noise on every parameter."""
    model, inputs = made(name)
    if name == "mixtral":  # the grouped product of matrices knows no float64
        model.config._experts_implementation = "batched_mm"
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator) * parameter.abs().mean())
    inputs = {key: x.double() if x.is_floating_point() else x for key, x in inputs.items()}
    return [model.double(), other.double()], inputs


def answers(model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        return [x for _, x in pinned_outputs(call(model, inputs)) if x.is_floating_point()]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this is member")  # the larger of two random networks may supply nearly all
@pytest.mark.parametrize("name", HUGGINGFACE)
def test_members_are_fused_and_run_side_by_side(name: str) -> None:
    models, inputs = pair(name)
    graph = ng.trace(models[0], inputs)
    options: dict[str, Any] = {"graph": graph, "fixed": graph.unreached}
    own = [answers(model, inputs) for model in models]

    same = ng.fuse([models[0], copy.deepcopy(models[0])], inputs, method="average", **options)
    for mine, theirs in zip(answers(same, inputs), own[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    for method in ("average", "transplant"):
        fused = ng.fuse(models, inputs, method=method, **options)
        assert {n: p.shape for n, p in fused.named_parameters()} == {
            n: p.shape for n, p in models[0].named_parameters()
        }
        assert all(bool(torch.isfinite(x).all()) for x in answers(fused, inputs))

    if name in APART:
        with pytest.raises(NeurograftError, match=APART[name]):
            ng.combine(models, inputs, **options)
        return
    # many norms compute in float32 whatever they are given
    for i, mine in enumerate(answers(ng.combine(models, inputs, **options), inputs)):
        torch.testing.assert_close(mine, (own[0][i] + own[1][i]) / 2, rtol=1e-5, atol=1e-5)
