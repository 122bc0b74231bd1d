"""Refitting attention: fused projections of torch's own layers and the transposed weights of GPT-2."""

import pytest
import torch
from tests.fusion import refit_and_report
from torch import Tensor, nn

import neurograft as ng
from neurograft.inputs import first_tensor


def members_of(make, count: int = 2) -> list[nn.Module]:
    nets = []
    for seed in range(count):
        torch.manual_seed(seed)
        net = make()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        nets.append(net.eval())
    return nets


def farness(net: nn.Module, members: list[nn.Module], x) -> float:
    with torch.no_grad():
        said = [first_tensor(m(x)) for m in (net, *members)]
    mean: Tensor = sum(said[1:]) / len(members)
    return float((said[0] - mean).norm() / mean.norm())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", ["average", "permutation", "transplant"])
def test_a_tiny_gpt2(method: str, tied: bool) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
    config = transformers.GPT2Config(**sizes, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0, tie_word_embeddings=tied)
    members = members_of(lambda: transformers.GPT2LMHeadModel(config))
    torch.manual_seed(9)
    x, new = torch.randint(0, 40, (64, 12)), torch.randint(0, 40, (16, 12))
    plan = ng.plan(members, x[:2], method)
    start = ng.apply(plan, members)
    better, report = refit_and_report(start, plan, members, [x])
    notes = {layer.tensor: layer.note for layer in report.layers}
    for block in range(2):
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            assert notes[f"transformer.h.{block}.{name}.weight"] == ""
    assert notes["transformer.wte.weight" if tied else "lm_head.weight"] == ("tied to an embedding" if tied else "")
    assert (better.lm_head.weight is better.transformer.wte.weight) == tied
    towards = {layer.tensor: layer.target for layer in report.layers}
    assert towards["transformer.h.0.attn.c_proj.weight"] == towards["transformer.h.1.mlp.c_proj.weight"] == "stream"
    before, after = farness(start, members, new), farness(better, members, new)
    if tied:  # the head cannot follow: what comes of it is kept only where those that judge are nearer to the members
        assert report.after <= report.before
    else:
        assert after < before


@pytest.mark.parametrize("method", ["average", "transplant"])
def test_torchs_own_encoder_layer(method: str) -> None:
    members = members_of(lambda: nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True))
    torch.manual_seed(9)
    x, new = torch.randn(60, 6, 16), torch.randn(20, 6, 16)
    plan = ng.plan(members, x[:2], method)
    start = ng.apply(plan, members)
    better, report = refit_and_report(start, plan, members, [x])
    notes = {layer.tensor: layer.note for layer in report.layers}
    assert {name for name, note in notes.items() if not note} == {
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    }
    assert farness(better, members, new) < farness(start, members, new)
