"""Hugging Face folders in, a folder that `from_pretrained` loads out."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import neurograft as ng
from neurograft.applying.huggingface import example_inputs, is_model_folder, open_folder
from neurograft.applying.stored import fuse_stored, open_folders
from neurograft.checkpoints import open_checkpoint, sha256
from neurograft.errors import CheckpointError, MembersDiffer, OptionError
from neurograft.plans.saving import SavedPlan

transformers = pytest.importorskip("transformers")

LLAMA = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAKERS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
    "llama tied": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=32)
    ),
    "bert": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24
        )
    ),
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=16,
            patch_size=4,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=24,
        )
    ),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
    ),
}


def folders(place: Path, kind: str, count: int = 2, **saving) -> list[Path]:
    found = []
    for m in range(count):
        torch.manual_seed(m)
        model = MAKERS[kind]()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        found.append(place / f"member-{m}")
        model.save_pretrained(found[-1], **saving)
        (found[-1] / "tokenizer.json").write_text('{"version": "1.0"}')
    return found


def fused(members: list[Path], output: Path, method: str = "average", options: dict | None = None, **how):
    stored = open_folders(members)
    plan = ng.plan(stored, method=method, **(options or {}))
    return fuse_stored(stored, SavedPlan(plan, stored.name), output, **how)


def outputs(model, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    if model.main_input_name == "pixel_values":
        given = {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    else:
        given = {"input_ids": torch.randint(3, 40, (2, 7), generator=generator)}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = given["input_ids"]
    with torch.no_grad():
        return model.eval()(**given).logits


@pytest.mark.parametrize("kind", MAKERS)
def test_the_average_loads_and_runs(tmp_path, kind):
    members = folders(tmp_path, kind)
    fused(members, tmp_path / "out")
    auto = type(MAKERS[kind]())
    models = [auto.from_pretrained(path) for path in members]
    found = auto.from_pretrained(tmp_path / "out")
    for name, parameter in found.named_parameters():
        expected = sum(dict(model.named_parameters())[name].detach() for model in models) / 2
        torch.testing.assert_close(parameter.detach(), expected)
    assert torch.isfinite(outputs(found)).all()
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"version": "1.0"}'
    assert (tmp_path / "out" / "config.json").read_bytes() == (members[0] / "config.json").read_bytes()


@pytest.mark.parametrize("kind", ["llama", "llama tied", "gpt2", "vit"])
def test_a_transplant_is_what_the_library_makes_in_memory(tmp_path, kind):
    members = folders(tmp_path, kind)
    fused(members, tmp_path / "out", "transplant", {"order": "joint"})
    kind_of = type(MAKERS[kind]())
    models = [kind_of.from_pretrained(path).eval() for path in members]
    graph = open_folders(members).graph
    expected = ng.apply(ng.plan(models, {}, "transplant", graph=graph, order="joint"), models)
    torch.testing.assert_close(
        outputs(kind_of.from_pretrained(tmp_path / "out")), outputs(expected), rtol=1e-5, atol=1e-6
    )


def test_a_member_with_itself_is_the_member(tmp_path):
    (member,) = folders(tmp_path, "llama", 1)
    fused([member, member], tmp_path / "out", "permutation")
    before, after = (transformers.AutoModelForCausalLM.from_pretrained(p) for p in (member, tmp_path / "out"))
    torch.testing.assert_close(outputs(after), outputs(before))


def test_tied_weights_are_written_once(tmp_path):
    fused(folders(tmp_path, "llama tied"), tmp_path / "out")
    names = set(open_checkpoint(tmp_path / "out").tensors)
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_shards_dtype_and_card(tmp_path):
    members = folders(tmp_path, "llama", max_shard_size="8KB")
    assert len(open_checkpoint(members[0]).files) > 1
    fused(members, tmp_path / "out", dtype=torch.bfloat16, shard_size=4000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    card = (tmp_path / "out" / "README.md").read_text()
    for member in members:
        for file in open_checkpoint(member).files:
            assert sha256(file) in card
    for text in ("library_name: transformers", "`transformers:LlamaForCausalLM`", "method: `average`", "| member-1 |"):
        assert text in card


def test_other_tokenizers_are_named_in_the_card(tmp_path):
    members = folders(tmp_path, "llama")
    (members[1] / "tokenizer.json").write_text("{}")
    fused(members, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "tokenizer.json of member-1 is not that of member-0, which is kept" in card


def test_folders_that_do_not_fit(tmp_path):
    (llama,) = folders(tmp_path / "a", "llama", 1)
    (gpt2,) = folders(tmp_path / "b", "gpt2", 1)
    with pytest.raises(MembersDiffer, match="is a GPT2LMHeadModel but members.0. a LlamaForCausalLM"):
        open_folders([llama, gpt2])
    other = tmp_path / "other"
    shutil.copytree(llama, other)
    (other / "config.json").write_text((gpt2 / "config.json").read_text())
    with pytest.raises(CheckpointError, match="GPT2LMHeadModel"):
        open_folder(other)
    with pytest.raises(OptionError, match=r"keeps the sizes in its config.json; leave out width and ratio"):
        fused([llama, llama], tmp_path / "out", "transplant", {"ratio": 0.75})
    with pytest.raises(CheckpointError, match=r"model folders become a folder; give a name without .safetensors"):
        fused([llama, llama], tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "config.json cannot be read"),
        ('{"model_type": "no such thing"}', "config.json cannot be read"),
        ('{"model_type": "llama"}', "config.json names no architecture"),
        ('{"model_type": "llama", "architectures": ["Evil"]}', "names 'Evil', which transformers .* does not have"),
        ('{"model_type": "llama", "architectures": ["pipeline"]}', "names 'pipeline', which"),
        ('{"model_type": "x", "auto_map": {"AutoConfig": "evil.Config"}}', "config.json cannot be read"),
    ],
)
def test_configurations_that_cannot_be_used(tmp_path, config, message):
    (folder,) = folders(tmp_path, "llama", 1)
    (folder / "config.json").write_text(config)
    (folder / "evil.py").write_text("raise SystemExit('ran code of the folder')")
    assert is_model_folder(folder)
    with pytest.raises(CheckpointError, match=message):
        open_folder(folder)


def test_inputs_are_found_from_the_configuration(tmp_path):
    for kind, names in {
        "llama": {"input_ids"},
        "vit": {"pixel_values"},
        "t5": {"input_ids", "decoder_input_ids"},
    }.items():
        given = example_inputs(MAKERS[kind]().to("meta"))
        assert {name for name, value in given.items() if isinstance(value, torch.Tensor)} == names
