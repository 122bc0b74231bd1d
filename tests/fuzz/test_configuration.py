"""Damaged configurations build a network that fits the weights, or give a CheckpointError; nothing is fetched."""

import json
import logging
import random
import warnings

import pytest
import torch
from tests.fuzz.damage import damaged_bytes, damaged_tree, json_text, watched

from neurograft.applying.huggingface import example_inputs, open_folder

transformers = pytest.importorskip("transformers")

MAKERS = {
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4
        )
    ),
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=16,
            patch_size=4,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=24,
        )
    ),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4)
    ),
}


@pytest.fixture(autouse=True)
def quiet():
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(before)


def reader(folder):
    def read(data: bytes) -> None:
        (folder / "config.json").write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = open_folder(folder)
        assert opened.network.config._attn_implementation == "eager"
        assert all(parameter.is_meta for parameter in opened.network.parameters())
        example_inputs(opened.network)

    return read


@pytest.mark.parametrize("damage", ["fields", "bytes"])
@pytest.mark.parametrize("kind", MAKERS)
def test_damaged_configurations(tmp_path, kind, damage):
    torch.manual_seed(0)
    MAKERS[kind]().save_pretrained(tmp_path / "member")
    whole = (tmp_path / "member" / "config.json").read_bytes()
    read, chance, tree = reader(tmp_path / "member"), random.Random(0), json.loads(whole)
    read(whole)  # imports the class once
    if damage == "fields":
        outcome = watched((json_text(damaged_tree(tree, chance)) for _ in range(350)), read)
    else:
        outcome = watched((damaged_bytes(whole, chance) for _ in range(350)), read)
    assert outcome.read > 5
    assert len(outcome.refused) > 50
