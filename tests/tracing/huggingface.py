"""Tiny Hugging Face networks with random weights: `HUGGINGFACE[name]()` is (model, inputs), nothing is downloaded."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Made = tuple[nn.Module, dict[str, Any]]

HUGGINGFACE: dict[str, Callable[[], Made]] = {}

WORDS = 64


def network(make: Callable[[], Made]) -> Callable[[], Made]:
    """Enter a network under its function's name."""
    HUGGINGFACE[make.__name__] = make
    return make


def seeded() -> torch.Generator:
    """Always the same noise."""
    return torch.Generator().manual_seed(3)


def ids(length: int = 7) -> Tensor:
    """Token numbers, shape (2, length)."""
    return torch.randint(4, WORDS, (2, length), generator=seeded())


def pixels(size: int = 32) -> dict[str, Tensor]:
    """Images, shape (2, 3, size, size)."""
    return {"pixel_values": torch.randn(2, 3, size, size, generator=seeded())}


def text() -> dict[str, Tensor]:
    """Token numbers and a mask."""
    tokens = ids()
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def small(**more: Any) -> dict[str, Any]:
    """Settings that most text configurations share."""
    return {
        "vocab_size": WORDS,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


def vision(**more: Any) -> dict[str, Any]:
    """Settings that most vision transformers share."""
    return {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "num_labels": 5,
        **more,
    }


@network
def resnet() -> Made:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[12, 16], depths=[2, 2], num_labels=5, layer_type="basic")
    return ResNetForImageClassification(config), pixels()


@network
def regnet() -> Made:
    from transformers import RegNetConfig, RegNetForImageClassification

    config = RegNetConfig(embedding_size=8, hidden_sizes=[12, 16], depths=[1, 2], groups_width=4, num_labels=5)
    return RegNetForImageClassification(config), pixels()


@network
def convnext() -> Made:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1], num_labels=5)
    return ConvNextForImageClassification(config), pixels()


@network
def mobilenet_v2() -> Made:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(depth_multiplier=0.25, min_depth=8, depth_divisible_by=8, num_labels=5)
    return MobileNetV2ForImageClassification(config), pixels()


@network
def efficientnet() -> Made:
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        width_coefficient=0.25,
        depth_coefficient=0.25,
        hidden_dim=320,
        num_labels=5,
        in_channels=[32, 16, 24],
        out_channels=[16, 24, 40],
        kernel_sizes=[3, 3, 5],
        strides=[1, 2, 2],
        num_block_repeats=[1, 2, 2],
        expand_ratios=[1, 6, 6],
        depthwise_padding=[],
    )
    return EfficientNetForImageClassification(config), pixels()


@network
def vit() -> Made:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**vision())), pixels()


@network
def deit() -> Made:
    from transformers import DeiTConfig, DeiTForImageClassification

    return DeiTForImageClassification(DeiTConfig(**vision())), pixels()


@network
def swin() -> Made:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=32, patch_size=2, embed_dim=12, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=5
    )
    return SwinForImageClassification(config), pixels()


@network
def segformer() -> Made:
    from transformers import SegformerConfig, SegformerForImageClassification

    config = SegformerConfig(
        hidden_sizes=[8, 12, 16, 24],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 4],
        decoder_hidden_size=16,
        num_labels=5,
    )
    return SegformerForImageClassification(config), pixels()


@network
def clip() -> Made:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    words = CLIPTextConfig(**small(projection_dim=20))
    images = CLIPVisionConfig(**{**vision(), "projection_dim": 20})
    config = CLIPConfig(text_config=words.to_dict(), vision_config=images.to_dict(), projection_dim=20)
    return CLIPModel(config), {**text(), **pixels()}


@network
def bert() -> Made:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(**small(num_labels=5))), text()


@network
def roberta() -> Made:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    return RobertaForSequenceClassification(RobertaConfig(**small(num_labels=5))), text()


@network
def distilbert() -> Made:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(
        vocab_size=WORDS, dim=24, n_layers=2, n_heads=4, hidden_dim=40, max_position_embeddings=32, num_labels=5
    )
    return DistilBertForSequenceClassification(config), text()


@network
def albert() -> Made:
    from transformers import AlbertConfig, AlbertForSequenceClassification

    return AlbertForSequenceClassification(AlbertConfig(**small(embedding_size=12, num_labels=5))), text()


@network
def electra() -> Made:
    from transformers import ElectraConfig, ElectraForSequenceClassification

    return ElectraForSequenceClassification(ElectraConfig(**small(embedding_size=12, num_labels=5))), text()


@network
def deberta_v2() -> Made:
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    config = DebertaV2Config(
        **small(
            num_labels=5,
            relative_attention=True,
            position_buckets=8,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
        )
    )
    return DebertaV2ForSequenceClassification(config), text()


@network
def gpt2() -> Made:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=WORDS, n_embd=24, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2
    )
    return GPT2LMHeadModel(config), {"input_ids": ids()}


@network
def opt() -> Made:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(**{**small(), "ffn_dim": 40, "word_embed_proj_dim": 24})
    return OPTForCausalLM(config), text()


@network
def gpt_neox() -> Made:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(GPTNeoXConfig(**small(hidden_size=32, rotary_pct=0.5))), text()


@network
def bloom() -> Made:
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(vocab_size=WORDS, hidden_size=24, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    return BloomForCausalLM(config), text()


@network
def falcon() -> Made:
    from transformers import FalconConfig, FalconForCausalLM

    return FalconForCausalLM(FalconConfig(**small(hidden_size=32, multi_query=True, alibi=False))), text()


@network
def llama() -> Made:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**small(hidden_size=32, num_key_value_heads=2))), text()


@network
def mistral() -> Made:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**small(hidden_size=32, num_key_value_heads=2))), text()


@network
def qwen2() -> Made:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**small(hidden_size=32, num_key_value_heads=2))), text()


@network
def gemma() -> Made:
    from transformers import GemmaConfig, GemmaForCausalLM

    config = GemmaConfig(**small(hidden_size=32, num_key_value_heads=1, head_dim=8))
    return GemmaForCausalLM(config), text()


@network
def phi() -> Made:
    from transformers import PhiConfig, PhiForCausalLM

    return PhiForCausalLM(PhiConfig(**small(hidden_size=32, partial_rotary_factor=0.5))), text()


@network
def mixtral() -> Made:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**small(hidden_size=32, num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2))
    return MixtralForCausalLM(config), text()


@network
def t5() -> Made:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=WORDS,
        d_model=24,
        d_kv=6,
        d_ff=40,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5ForConditionalGeneration(config), {"input_ids": ids(), "decoder_input_ids": ids(5)}


@network
def bart() -> Made:
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=WORDS,
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=40,
        decoder_ffn_dim=36,
        max_position_embeddings=32,
        decoder_start_token_id=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        forced_eos_token_id=2,
    )
    return BartForConditionalGeneration(config), {"input_ids": ids(), "decoder_input_ids": ids(5)}


@network
def whisper() -> Made:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=WORDS,
        num_mel_bins=8,
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=40,
        decoder_ffn_dim=36,
        max_source_positions=10,
        max_target_positions=16,
        decoder_start_token_id=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    features = torch.randn(2, 8, 20, generator=seeded())
    return WhisperForConditionalGeneration(config), {"input_features": features, "decoder_input_ids": ids(5)}


@network
def wav2vec2() -> Made:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = Wav2Vec2Config(
        **{
            **small(vocab_size=16),
            "conv_dim": (8, 12),
            "conv_stride": (4, 4),
            "conv_kernel": (8, 4),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 2,
            "feat_extract_norm": "group",
        }
    )
    return Wav2Vec2ForCTC(config), {"input_values": torch.randn(2, 400, generator=seeded())}


@network
def mamba() -> Made:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=WORDS, hidden_size=24, state_size=6, num_hidden_layers=2, time_step_rank=3, pad_token_id=0
    )
    return MambaForCausalLM(config), {"input_ids": ids()}


def roughen(model: nn.Module) -> nn.Module:
    """Eval mode, and noise on every parameter and running statistic: ones and zeros hide mistakes."""
    generator = seeded()
    with torch.no_grad():
        for x in model.parameters():
            x.add_(0.1 * torch.randn(x.shape, generator=generator))
        for name, x in model.named_buffers():
            if name.endswith("running_var"):
                x.copy_(0.5 + torch.rand(x.shape, generator=generator))
            elif name.endswith("running_mean"):
                x.copy_(0.2 * torch.randn(x.shape, generator=generator))
    return model.eval()


def made(name: str) -> Made:
    """A network with noisy weights, always the same, and its inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = HUGGINGFACE[name]()
    return roughen(model), inputs
