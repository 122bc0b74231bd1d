"""The classes in transformers as Hugging Face writes them; random elements are aligned back by `symmetric`."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import neurograft as ng
from tests.methods.test_symmetric import change, doubled, noisy
from tests.planting import planted_in_class

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = {**SIZES, **ENDS, "num_key_value_heads": 2, "head_dim": 4}
TOKENS = {"input_ids": torch.arange(14).reshape(2, 7)}
BOTH = {**TOKENS, "decoder_input_ids": torch.arange(10).reshape(2, 5)}
T5 = {"vocab_size": 20, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}


def of(kind: str, config: str, **sizes: object) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, kind)(getattr(transformers, config)(**sizes))


NETWORKS = {
    "bert": of("BertForSequenceClassification", "BertConfig", **SIZES, **ENDS, max_position_embeddings=16),
    "opt": of(
        "OPTForCausalLM",
        "OPTConfig",
        vocab_size=20,
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        word_embed_proj_dim=16,
        **ENDS,
    ),
    "t5": of("T5ForConditionalGeneration", "T5Config", **T5),
    "gemma": of("GemmaForCausalLM", "GemmaConfig", **GROUPED, tie_word_embeddings=False),
    "tied gemma": of("GemmaForCausalLM", "GemmaConfig", **GROUPED),
    "qwen3": of("Qwen3ForCausalLM", "Qwen3Config", **GROUPED, tie_word_embeddings=False),
    "neox": of("GPTNeoXForCausalLM", "GPTNeoXConfig", **SIZES, **ENDS),
    "phi": of("PhiForCausalLM", "PhiConfig", **SIZES, **ENDS),
    "mixtral": of("MixtralForCausalLM", "MixtralConfig", **GROUPED, num_local_experts=4),
}
CLASSES = {
    # post-norm: what the norm scales is added to; the pooler is odd
    "bert": {
        "bert.embeddings.word_embeddings.weight:1": "permutation",
        "bert.pooler.dense.weight:0": "signed",
        "bert.encoder.layer.0.attention.self.value.weight:0": "linear",
    },
    # tied behind a norm with a scale; ReLU
    "opt": {"model.decoder.embed_tokens.weight:1": "permutation", "model.decoder.layers.0.fc1.weight:0": "scaled"},
    # cross attention: queries and keys of different streams
    "t5": {
        "decoder.block.0.layer.1.EncDecAttention.q.weight:0.1": "linear",
        "decoder.block.0.layer.1.EncDecAttention.v.weight:0": "linear",
        "decoder.block.0.layer.2.DenseReluDense.wi.weight:0": "scaled",
    },
    # RMSNorm written out, with a scale of 1 + w; rotary embeddings fix queries and keys
    "gemma": {
        "model.embed_tokens.weight:1": "orthogonal",
        "model.layers.0.self_attn.v_proj.weight:0": "linear",
        "model.layers.0.mlp.gate_proj.weight:0": "permutation",
    },
    "tied gemma": {"model.embed_tokens.weight:1": "permutation"},
    # queries and keys with norms of their own
    "qwen3": {"model.embed_tokens.weight:1": "orthogonal", "model.layers.0.self_attn.v_proj.weight:0": "linear"},
    # rotary embeddings turn a part of the channels, the rest is linear
    "neox": {
        "gpt_neox.embed_in.weight:1": "orthogonal fixing 1",
        "gpt_neox.layers.0.attention.query_key_value.weight:0.2": "linear",
    },
    "phi": {
        "model.embed_tokens.weight:1": "orthogonal fixing 1",
        "model.layers.0.self_attn.q_proj.weight:0.2": "linear",
    },
    # a mixture of experts reads the stream
    "mixtral": {"model.embed_tokens.weight:1": "orthogonal", "model.layers.0.self_attn.v_proj.weight:0": "linear"},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_classes(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = noisy(NETWORKS[name](), 0)
    inputs = BOTH if name == "t5" else doubled(TOKENS)
    if name == "mixtral":  # its experts do not run in float64
        net = net.float()
    graph = ng.trace(net, inputs)
    assert {group: graph[group].symmetry.value for group in CLASSES[name]} == CLASSES[name]
    other = planted_in_class(net, graph, 1)
    exact = 1e-4 if name == "mixtral" else 1e-6
    assert change(net, other, inputs) < exact
    assert change(net, ng.fuse([net, other], inputs, "symmetric", graph=graph), inputs) < exact
