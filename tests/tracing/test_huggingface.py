"""Hugging Face networks: the groups are those a person names, everything is proven, other inputs too."""

import warnings
from typing import Any

import pytest
import torch

import neurograft as ng
from tests.tracing.huggingface import HUGGINGFACE, WORDS, made
from tests.tracing.shares import free_share

pytest.importorskip("transformers")

Groups = dict[str, int]


def layers(
    where: str, query: str, value: str, up: str, heads: int = 4, width: int = 6, hidden: int = 40, count: int = 2
) -> Groups:
    """Per layer: heads, the channels that q and k share, the channels of v, and the hidden layer of the MLP."""
    found: Groups = {}
    for i in range(count):
        layer = where.format(i)
        found[f"{layer}.{query}.weight:0"] = heads
        found[f"{layer}.{query}.weight:0.1"] = width
        found[f"{layer}.{value}.weight:0"] = width
        found[f"{layer}.{up}.weight:0"] = hidden
    return found


def rotary(where: str, shared: int, count: int = 2) -> Groups:
    """Per layer: key/value heads, query heads that share one, channels of v, hidden layer; rotary fixes q and k."""
    found: Groups = {}
    for i in range(count):
        layer = where.format(i)
        found[f"{layer}.self_attn.q_proj.weight:0"] = 4 // shared
        if shared > 1:
            found[f"{layer}.self_attn.q_proj.weight:0.1"] = shared
        found[f"{layer}.self_attn.v_proj.weight:0"] = 8
        found[f"{layer}.mlp.gate_proj.weight:0"] = 40
    return found


def without(groups: Groups, *names: str) -> Groups:
    """The groups but for some."""
    return {name: size for name, size in groups.items() if name not in names}


ALBERT = "albert.encoder.albert_layer_groups.0.albert_layers.0"
SEGFORMER = "segformer.stages.{}.blocks.0"

# what a person would name, per network: streams, heads, channels inside heads, hidden layers
EXPECTED: dict[str, Groups] = {
    "resnet": {
        "resnet.embedder.embedder.convolution.weight:0": 8,
        **{f"resnet.encoder.stages.{s}.layers.0.shortcut.convolution.weight:0": w for s, w in ((0, 12), (1, 16))},
        **{
            f"resnet.encoder.stages.{s}.layers.{b}.layer.0.convolution.weight:0": w
            for s, w in ((0, 12), (1, 16))
            for b in (0, 1)
        },
    },
    "convnext": {
        "convnext.embeddings.patch_embeddings.weight:0": 8,
        **{f"convnext.encoder.stages.{s}.downsampling_layer.1.weight:0": w for s, w in ((1, 12), (2, 16), (3, 20))},
        **{
            f"convnext.encoder.stages.{s}.layers.{b}.pwconv1.weight:0": 4 * w
            for s, b, w in ((0, 0, 8), (1, 0, 12), (2, 0, 16), (2, 1, 16), (3, 0, 20))
        },
    },
    "vit": {
        "vit.embeddings.cls_token:2": 24,
        **layers("vit.layers.{}", "attention.q_proj", "attention.v_proj", "mlp.fc1"),
    },
    "deit": {
        "deit.embeddings.cls_token:2": 24,
        **layers("deit.layers.{}", "attention.q_proj", "attention.v_proj", "mlp.fc1"),
    },
    "swin": {
        "swin.embeddings.patch_embeddings.projection.weight:0": 12,
        "swin.encoder.layers.0.downsample.reduction.weight:0": 24,
        **layers(
            "swin.encoder.layers.0.blocks.{}", "attention.q_proj", "attention.v_proj", "mlp.fc1", heads=2, hidden=48
        ),
        **layers("swin.encoder.layers.1.blocks.{}", "attention.q_proj", "attention.v_proj", "mlp.fc1", hidden=96),
    },
    "bert": {
        "bert.embeddings.word_embeddings.weight:1": 24,
        "bert.pooler.dense.weight:0": 24,
        **layers("bert.encoder.layer.{}", "attention.self.query", "attention.self.value", "intermediate.dense"),
    },
    "roberta": {
        "roberta.embeddings.word_embeddings.weight:1": 24,
        "classifier.dense.weight:0": 24,
        **layers("roberta.encoder.layer.{}", "attention.self.query", "attention.self.value", "intermediate.dense"),
    },
    "distilbert": {
        "distilbert.embeddings.word_embeddings.weight:1": 24,
        "pre_classifier.weight:0": 24,
        **layers("distilbert.transformer.layer.{}", "attention.q_lin", "attention.v_lin", "ffn.lin1"),
    },
    "albert": {
        "albert.embeddings.word_embeddings.weight:1": 12,
        "albert.encoder.embedding_hidden_mapping_in.weight:0": 24,
        "albert.pooler.weight:0": 24,
        **layers(ALBERT, "attention.query", "attention.value", "ffn", count=1),
    },
    "electra": {
        "electra.embeddings.word_embeddings.weight:1": 12,
        "electra.embeddings_project.weight:0": 24,
        "classifier.dense.weight:0": 24,
        **layers("electra.encoder.layer.{}", "attention.self.query", "attention.self.value", "intermediate.dense"),
    },
    "deberta_v2": {
        "deberta.embeddings.word_embeddings.weight:1": 24,
        "pooler.dense.weight:0": 24,
        **layers(
            "deberta.encoder.layer.{}",
            "attention.self.query_proj",
            "attention.self.value_proj",
            "intermediate.dense",
        ),
    },
    "gpt2": {
        "transformer.wte.weight:1": 24,
        **{
            f"transformer.h.{i}.{name}": size
            for i in (0, 1)
            for name, size in (
                ("attn.c_attn.weight:1", 4),
                ("attn.c_attn.weight:1.1", 6),
                ("attn.c_attn.weight:1.2", 6),
                ("mlp.c_fc.weight:1", 96),
            )
        },
    },
    "opt": {
        "model.decoder.embed_tokens.weight:1": 24,
        **layers("model.decoder.layers.{}", "self_attn.k_proj", "self_attn.v_proj", "fc1"),
    },
    # half of each head is rotated, so only the other half of q and k is free
    "gpt_neox": {
        "gpt_neox.embed_in.weight:1": 32,
        **{
            f"gpt_neox.layers.{i}.{name}": size
            for i in (0, 1)
            for name, size in (
                ("attention.query_key_value.weight:0", 4),
                ("attention.query_key_value.weight:0.2", 4),
                ("attention.query_key_value.weight:0.3", 8),
                ("mlp.dense_h_to_4h.weight:0", 40),
            )
        },
    },
    # ALiBi gives every head a slope of its own: heads are fixed; q, k and v share their channels in [heads, 3, width]
    "bloom": {
        "transformer.word_embeddings.weight:1": 24,
        **{f"transformer.h.{i}.self_attention.query_key_value.weight:0.2": 6 for i in (0, 1)},
        **{f"transformer.h.{i}.mlp.dense_h_to_4h.weight:0": 96 for i in (0, 1)},
    },
    # one key/value head of the same channels as the query heads: rotary fixes them, the query heads are free
    "falcon": {
        "transformer.word_embeddings.weight:1": 32,
        **{f"transformer.h.{i}.self_attention.query_key_value.weight:0": 4 for i in (0, 1)},
        **{f"transformer.h.{i}.mlp.dense_h_to_4h.weight:0": 128 for i in (0, 1)},
    },
    "llama": {"model.embed_tokens.weight:1": 32, **rotary("model.layers.{}", shared=2)},
    "mistral": {"model.embed_tokens.weight:1": 32, **rotary("model.layers.{}", shared=2)},
    "qwen2": {"model.embed_tokens.weight:1": 32, **rotary("model.layers.{}", shared=2)},
    "gemma": {
        "model.embed_tokens.weight:1": 32,
        **{
            f"model.layers.{i}.{name}": size
            for i in (0, 1)
            for name, size in (
                ("self_attn.q_proj.weight:0", 4),
                ("self_attn.v_proj.weight:0", 8),
                ("mlp.gate_proj.weight:0", 40),
            )
        },
    },
    "phi": {
        "model.embed_tokens.weight:1": 32,
        **{
            f"model.layers.{i}.{name}": size
            for i in (0, 1)
            for name, size in (
                ("self_attn.q_proj.weight:0", 4),
                ("self_attn.q_proj.weight:0.2", 4),
                ("self_attn.v_proj.weight:0", 8),
                ("mlp.fc1.weight:0", 40),
            )
        },
    },
    "mixtral": {
        "model.embed_tokens.weight:1": 32,
        **without(rotary("model.layers.{}", shared=2), *(f"model.layers.{i}.mlp.gate_proj.weight:0" for i in (0, 1))),
        # the experts, and the hidden neurons of each
        **{f"model.layers.{i}.mlp.gate.weight:0": 3 for i in (0, 1)},
        **{f"model.layers.{i}.mlp.experts.gate_up_proj:1": 40 for i in (0, 1)},
    },
    # the relative position bias of the first layer is used in all: they share their heads
    "t5": {
        "shared.weight:1": 24,
        **without(
            layers(
                "encoder.block.{}.layer.0",
                "SelfAttention.q",
                "SelfAttention.v",
                "none",
            ),
            *(f"encoder.block.{i}.layer.0.none.weight:0" for i in (0, 1)),
            "encoder.block.1.layer.0.SelfAttention.q.weight:0.1",
        )
        | {"encoder.block.1.layer.0.SelfAttention.q.weight:0": 6},
        **{f"encoder.block.{i}.layer.1.DenseReluDense.wi.weight:0": 40 for i in (0, 1)},
        **{f"decoder.block.{i}.layer.2.DenseReluDense.wi.weight:0": 40 for i in (0, 1)},
        **{
            f"decoder.block.{i}.layer.0.SelfAttention.{part}": size
            for i, part, size in (
                (0, "q.weight:0", 4),
                (0, "q.weight:0.1", 6),
                (0, "v.weight:0", 6),
                (1, "q.weight:0", 6),
                (1, "v.weight:0", 6),
            )
        },
        # cross-attention has no position bias
        **{
            f"decoder.block.{i}.layer.1.EncDecAttention.{part}": size
            for i in (0, 1)
            for part, size in (("q.weight:0", 4), ("q.weight:0.1", 6), ("v.weight:0", 6))
        },
    },
    "bart": {
        "model.shared.weight:1": 24,
        **layers("model.encoder.layers.{}", "self_attn.k_proj", "self_attn.v_proj", "fc1"),
        **layers("model.decoder.layers.{}", "self_attn.k_proj", "self_attn.v_proj", "fc1", hidden=36),
        **layers("model.decoder.layers.{}", "encoder_attn.k_proj", "encoder_attn.v_proj", "fc1", hidden=36),
    },
    "whisper": {
        "model.encoder.conv1.weight:0": 24,
        "model.encoder.conv2.weight:0": 24,
        "model.decoder.embed_tokens.weight:1": 24,
        **layers("model.encoder.layers.{}", "self_attn.k_proj", "self_attn.v_proj", "fc1"),
        **layers("model.decoder.layers.{}", "self_attn.k_proj", "self_attn.v_proj", "fc1", hidden=36),
        **layers("model.decoder.layers.{}", "encoder_attn.k_proj", "encoder_attn.v_proj", "fc1", hidden=36),
    },
    # the grouped position convolution makes the stream (2 groups, 12 channels in each)
    "wav2vec2": {
        "wav2vec2.feature_extractor.conv_layers.0.conv.weight:0": 8,
        "wav2vec2.feature_extractor.conv_layers.1.conv.weight:0": 12,
        "wav2vec2.feature_projection.projection.weight:0": 2,
        "wav2vec2.feature_projection.projection.weight:0.1": 12,
        **layers(
            "wav2vec2.encoder.layers.{}",
            "attention.k_proj",
            "attention.v_proj",
            "feed_forward.intermediate_dense",
        ),
    },
    # inner channels, states, rank of the time step
    "mamba": {
        "backbone.embeddings.weight:1": 24,
        **{
            f"backbone.layers.{i}.mixer.{name}": size
            for i in (0, 1)
            for name, size in (("A_log:0", 48), ("A_log:1", 6), ("x_proj.weight:0", 3))
        },
    },
}

EXPECTED["clip"] = {
    "text_model.embeddings.token_embedding.weight:1": 24,
    "vision_model.embeddings.class_embedding:0": 24,
    "visual_projection.weight:0": 20,
    **layers("text_model.encoder.layers.{}", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"),
    **layers("vision_model.encoder.layers.{}", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"),
}
# stage 0 has one head: its channels are units; stages 0 to 2 reduce keys and values in space
EXPECTED["segformer"] = {
    **{f"segformer.stages.{s}.patch_embeddings.proj.weight:0": w for s, w in enumerate((8, 12, 16, 24))},
    **{f"segformer.stages.{s}.blocks.0.mlp.fc1.weight:0": 4 * w for s, w in enumerate((8, 12, 16, 24))},
    **{f"segformer.stages.{s}.blocks.0.attention.k_proj.weight:1": w for s, w in enumerate((8, 12, 16))},
    "segformer.stages.0.blocks.0.attention.q_proj.weight:0": 8,
    "segformer.stages.0.blocks.0.attention.v_proj.weight:0": 8,
    **{
        f"{SEGFORMER.format(s)}.attention.{part}": size
        for s, heads, width in ((1, 2, 6), (2, 2, 8), (3, 4, 6))
        for part, size in (("q_proj.weight:0", heads), ("q_proj.weight:0.1", width), ("v_proj.weight:0", width))
    },
}
# the groups of the grouped convolutions, channels inside them (in, out), squeeze-and-excite
EXPECTED["regnet"] = {
    "regnet.embedder.embedder.convolution.weight:0": 8,
    **{f"regnet.encoder.stages.{s}.layers.0.shortcut.convolution.weight:0": w for s, w in ((0, 12), (1, 16))},
    **{
        f"regnet.encoder.stages.{s}.layers.{b}.layer.{part}": size
        for s, b, groups, squeezed in ((0, 0, 3, 2), (1, 0, 4, 3), (1, 1, 4, 4))
        for part, size in (
            ("0.convolution.weight:0", groups),
            ("0.convolution.weight:0.1", 4),
            ("1.convolution.weight:0", 4),
            ("2.attention.0.weight:0", squeezed),
        )
    },
}
# inverted bottlenecks: a stream per stage, an expansion per layer
EXPECTED["mobilenet_v2"] = {
    "mobilenet_v2.conv_stem.first_conv.convolution.weight:0": 8,
    "mobilenet_v2.conv_stem.reduce_1x1.convolution.weight:0": 8,
    "mobilenet_v2.conv_1x1.convolution.weight:0": 1280,
    **{
        f"mobilenet_v2.layer.{i}.reduce_1x1.convolution.weight:0": w
        for i, w in ((0, 8), (2, 8), (5, 16), (9, 24), (12, 40), (15, 80))
    },
    **{
        f"mobilenet_v2.layer.{i}.expand_1x1.convolution.weight:0": w
        for i, w in enumerate((48,) * 6 + (96,) * 4 + (144,) * 3 + (240,) * 3)
    },
}
EXPECTED["efficientnet"] = {
    "efficientnet.embeddings.convolution.weight:0": 8,
    "efficientnet.encoder.top_conv.weight:0": 320,
    **{
        f"efficientnet.encoder.blocks.{i}.{part}": size
        for i, expanded, made_by in ((0, None, 8), (1, 48, 8), (2, 48, 16))
        for part, size in (
            ("expansion.expand_conv.weight:0", expanded),
            ("squeeze_excite.reduce.weight:0", 2),
            ("projection.project_conv.weight:0", made_by),
        )
        if size is not None
    },
}

# what is too slow for every run; the others stand for their kinds
SLOW = {"roberta", "electra", "deit", "mistral", "qwen2", "mobilenet_v2", "opt", "whisper", "distilbert", "clip"}


def marked(names: Any) -> list[Any]:
    """The names, the slow ones marked."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


def other_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs of the same kind: other tokens (some masked), other noise, another batch size."""
    generator = torch.Generator().manual_seed(11)
    found = {}
    for name, x in inputs.items():
        if name == "attention_mask":
            found[name] = torch.cat([x, x[:1]])
            found[name][0, -2:] = 0
        elif x.is_floating_point():
            found[name] = torch.randn(3, *x.shape[1:], generator=generator)
        else:
            found[name] = torch.randint(4, WORDS, (3, *x.shape[1:]), generator=generator)
    return found


def test_every_network_of_the_list_is_expected() -> None:
    assert set(EXPECTED) == set(HUGGINGFACE)


@pytest.mark.parametrize("name", marked(HUGGINGFACE))
def test_network(name: str) -> None:
    model, inputs = made(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        graph = ng.trace(model, inputs)
    assert graph.unruled == ()
    assert {group.name: group.size for group in graph.free} == EXPECTED[name]
    assert free_share(model, graph) >= 0.95
    proof = ng.verify(model, graph, inputs, seed=1, deep=True)
    assert proof.passed, str(proof)
    assert max(proof.error, proof.role_error) < 1e-4
    assert ng.verify(model, graph, other_inputs(inputs), seed=2).passed


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_heads_hold_their_channels(name: str) -> None:
    model, inputs = made(name)
    graph = ng.trace(model, inputs, verify=False)
    inner = [group for group in graph.free if group.inside]
    assert inner
    assert all(graph[group.inside].inside is None for group in inner if group.inside)


@pytest.mark.parametrize("name", ["gemma", "t5", "bart", "mamba", "gpt2"])
def test_the_norm_in_front_of_a_tied_head_is_found(name: str) -> None:
    model, inputs = made(name)
    (tied,) = ng.trace(model, inputs, verify=False).tied
    parameters = dict(model.named_parameters())
    assert tied.norm
    assert all(parameters[norm].dim() == 1 for norm in tied.norm)
