"""Whatever a model folder's config.json and links say: nothing is fetched, nothing outside of it is read or copied."""

import json
from pathlib import Path

import pytest
import torch

import neurograft as ng
from neurograft.applying.huggingface import open_folder
from neurograft.applying.stored import fuse_stored, open_folders
from neurograft.errors import CheckpointError
from neurograft.plans.saving import SavedPlan

transformers = pytest.importorskip("transformers")

LLAMA = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


@pytest.fixture
def folder(tmp_path) -> Path:
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).save_pretrained(tmp_path / "member")
    (tmp_path / "member" / "tokenizer.json").write_text("{}")
    return tmp_path / "member"


def changed(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def kernels(monkeypatch) -> list[str]:
    """The kernels that transformers was asked to load."""
    asked: list[str] = []

    def load(name, **_):
        asked.append(name)
        raise RuntimeError(f"{name} would have been fetched")

    for module in ("modeling_utils", "modeling_flash_attention_utils", "integrations.hub_kernels"):
        for name in ("lazy_import_flash_attention", "load_and_register_attn_kernel", "get_kernel"):
            monkeypatch.setattr(f"transformers.{module}.{name}", load, raising=False)
    return asked


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize(
    "name", ["org/kernel", "kernels-community/flash-attn", "flash_attention_2", "sdpa", {"": "org/k"}]
)
def test_no_implementation_of_attention_is_loaded(folder, kernels, key, name):
    changed(folder, **{key: name}, experts_implementation="org/experts")
    network = open_folder(folder).network
    assert network.config._attn_implementation == "eager"
    assert kernels == []


def test_nor_in_a_configuration_inside(tmp_path, kernels):
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**LLAMA),
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4, image_size=8, patch_size=4
        ),
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "a")
    written = json.loads((tmp_path / "a" / "config.json").read_text())
    changed(tmp_path / "a", text_config=written["text_config"] | {"_attn_implementation": "org/kernel"})
    network = open_folder(tmp_path / "a").network
    assert network.config.text_config._attn_implementation == "eager"
    assert kernels == []


def test_the_fused_folder_asks_for_no_kernel_either(folder, tmp_path):
    changed(folder, attn_implementation="org/kernel", text={"_attn_implementation": "org/kernel", "kept": 1})
    members = open_folders([folder, folder])
    fuse_stored(members, SavedPlan(ng.plan(members, method="average"), members.name), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "kernel" not in json.dumps(written)
    assert written["text"] == {"kept": 1}
    assert written["hidden_size"] == 16


def test_the_hub_is_not_asked(folder, monkeypatch):
    from huggingface_hub import constants

    seen = []
    build = transformers.LlamaForCausalLM.post_init
    monkeypatch.setattr(
        transformers.LlamaForCausalLM, "post_init", lambda self: (seen.append(constants.is_offline_mode()), build(self))
    )
    before = constants.HF_HUB_OFFLINE
    open_folder(folder)
    assert seen == [True]
    assert before == constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 15}, "config.json"),
        ({"hidden_size": "16"}, "config.json"),
        ({"hidden_size": -1}, "config.json"),
        ({"hidden_size": None}, "config.json"),
        ({"hidden_act": "nothing"}, "LlamaForCausalLM cannot be built: .*nothing"),
        ({"rope_parameters": {"rope_type": "nothing"}}, "config.json"),
        ({"num_hidden_layers": 10**9}, "config.json cannot be read: 'num_hidden_layers' is 1000000000"),
        ({"num_hidden_layers": 10**4000}, "'num_hidden_layers' is 1000"),
        ({"vocab_size": 1 << 50}, "'vocab_size' is 1125899906842624"),
        (
            {"num_hidden_layers": 50_000},
            "LlamaForCausalLM cannot be built: it needs far more tensors than there are",
        ),
        ({"architectures": "LlamaForCausalLM"}, "names no architecture"),
        ({"architectures": [["LlamaForCausalLM"]]}, "config.json"),
        ({"architectures": [None]}, "config.json"),
    ],
    ids=str,
)
def test_configurations_that_no_network_has(folder, values, message):
    changed(folder, **values)
    with pytest.raises(CheckpointError, match=message):
        open_folder(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a":' * 40 + b"1" + b"}" * 40])
def test_files_that_are_no_configuration(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="config.json cannot be read"):
        open_folder(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.txt", "LICENSE", "config.json"])
def test_links_that_leave_the_folder_are_not_followed(folder, tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_text((folder / "config.json").read_text())
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    with pytest.raises(CheckpointError, match=rf"'{name}' leads outside its folder: it is a link to .*secret; put the"):
        open_folder(folder)
    (folder / name).unlink()
    (folder / "real").write_text(secret.read_text())
    (folder / name).symlink_to("real")
    open_folder(folder)


def test_weights_are_no_links_out_of_the_folder(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match=r"'model.safetensors' leads outside its folder"):
        open_folder(folder)


def test_the_cache_of_the_hub_is_one_folder(folder, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "f00", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / f"{i}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{i}")
    members = open_folders([snapshot, snapshot])
    fuse_stored(members, SavedPlan(ng.plan(members, method="average"), members.name), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()
