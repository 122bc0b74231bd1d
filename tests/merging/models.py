"""Tiny model folders: a base and fine-tunes of it."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
}


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()


def write_models(folder: Path, members: int = 3, tokens: dict[str, int] | None = None) -> None:
    """Folders `base`, `m0`, `m1`, … with weights, configuration and, if asked for, a tokenizer."""
    base = llama()
    base.config.architectures = ["LlamaForCausalLM"]
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for m, name in enumerate(["base", *(f"m{m}" for m in range(members))]):
        place = folder / name
        base.config.save_pretrained(place)
        generator = torch.Generator().manual_seed(m)
        moved = {
            key: tensor + (0.1 * tensor.std() * torch.randn(tensor.shape, generator=generator) if m else 0)
            for key, tensor in state.items()
        }
        save_file(moved, place / "model.safetensors", {"format": "pt"})
        if tokens is not None:
            (place / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": tokens}}))
